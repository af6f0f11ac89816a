"""FSDP (torch's fully_shard) on two and four gloo processes gives what one process with the whole model gives."""

import copy
import os
import sys
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from dash_vision import DashConfig, DashSchedule, export_lora, inject, load_adapter
from dash_vision.core.sharding import is_sharded, load_optimizer, shard, whole_state
from dash_vision.core.weights import weight_matrix
from tests.support.networks import batch, net

LOWEST = tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 8)
if dist.is_available():  # before processes are forked: each of them would import it by itself, for seconds
    import torch.distributed.fsdp
    import torch.distributed.tensor


pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed"),
    pytest.mark.skipif(LOWEST, reason="gloo averages, which FSDP needs, from PyTorch 2.8 on"),
]
CPU = torch.device("cpu")
HALF, STEPS = 5, 8  # where a checkpoint is taken: after the launch


class Convolutions(nn.Module):
    """Kernels and linear layers: one whose rows do not divide by 2 or 4, one in no unit of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.block, self.last = nn.Conv2d(2, 5, 3), nn.Linear(20, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.block(self.conv(x).flatten(1))))


def pictures(step):
    return batch(step).repeat(1, 4)[:, :32].view(8, 2, 4, 4)


MODELS = {
    "linear": (net, batch, ["0", "2", "4"], lambda name, module: name == "2"),
    "conv": (Convolutions, pictures, ["conv", "block", "last"], lambda name, module: name in ("conv", "block")),
}


def steps(model, adapter, schedule, optimizer, draw, shard_of, start, end):
    for step in range(start, end):
        model(draw(step)[shard_of]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def prepared(kind, k=3):
    build, draw, target, unit = MODELS[kind]
    model = build()
    adapter = inject(model, DashConfig(rank=2, dash_k=k, target=target))
    return model, adapter, draw, unit


def optimizer_of(adapter):
    return torch.optim.AdamW(adapter.parameters(), lr=1e-2, eps=1e-3)


def single(kind, k=3):
    """(adapter state, optimizer state) of the whole model on one process after HALF and after all STEPS."""
    model, adapter, draw, _ = prepared(kind, k)
    optimizer, schedule = optimizer_of(adapter), DashSchedule(adapter, prelaunch_steps=4)
    found = []
    for start, end in ((0, HALF), (HALF, STEPS)):
        steps(model, adapter, schedule, optimizer, draw, slice(None), start, end)
        copied = {key: tensor.clone() for key, tensor in adapter.state_dict().items()}
        found.append((copied, copy.deepcopy(optimizer.state_dict())))
    return found


def _trains(rank, world, folder, kind, k):
    from torch.distributed.tensor import DTensor

    model, adapter, draw, unit = prepared(kind, k)
    bases = {tuple(weight_matrix(layer.base).shape) for layer in adapter.layers.values()}
    shard(model, unit, CPU)
    assert adapter.sharded
    assert all(is_sharded(p) for p in adapter.parameters())
    optimizer, schedule = optimizer_of(adapter), DashSchedule(adapter, prelaunch_steps=4)
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    gathered, decomposed = [], []
    import dash_vision.core.decompositions as decompositions

    full, decompose = DTensor.full_tensor, decompositions.decompose
    DTensor.full_tensor = lambda self, **more: gathered.append(self.shape) or full(self, **more)
    decompositions.decompose = lambda W: decomposed.append(tuple(W.shape)) or decompose(W)
    steps(model, adapter, schedule, optimizer, draw, mine, 0, HALF)
    DTensor.full_tensor, decompositions.decompose = full, decompose
    state = adapter.state_dict()
    half = ({key: tensor.clone() for key, tensor in state.items()}, copy.deepcopy(whole_state(optimizer.state_dict())))
    steps(model, adapter, schedule, optimizer, draw, mine, HALF, STEPS)
    adapter.save(f"{folder}/adapter-{rank}.safetensors")
    export_lora(adapter, f"{folder}/peft-{rank}", "peft")
    with pytest.raises(RuntimeError, match="FSDP has split the model"):
        adapter.merge()
    if kind == "linear":
        with pytest.raises(ValueError, match=r"put the adapter in first"):
            inject(model, DashConfig(rank=2, target=["0"]), "other")

    # Go on from the middle, in another model: what comes out has to be the same.
    model, again, draw, unit = prepared(kind, k)
    shard(model, unit, CPU)
    optimizer, later = optimizer_of(again), DashSchedule(again, prelaunch_steps=4)
    again.load_state_dict(half[0])
    later.steps = HALF
    load_optimizer(optimizer, copy.deepcopy(half[1]))
    steps(model, again, later, optimizer, draw, mine, HALF, STEPS)
    resumed = again.state_dict()
    counts = {"weights": [s for s in map(tuple, gathered) if s in bases], "bases": bases, "decomposed": decomposed}
    torch.save((half, adapter.state_dict(), resumed, counts), f"{folder}/{rank}.pt")


def _fails(rank, world, folder, kind, k):
    model, adapter, _, unit = prepared(kind, k)
    with torch.no_grad():
        next(w for _, w in adapter.weights()).B.fill_(float("nan"))
    shard(model, unit, CPU)
    try:
        adapter.launch()
        message = "no error"
    except ValueError as error:
        message = str(error)
    assert not adapter.launched
    with open(f"{folder}/{rank}.txt", "w") as file:
        file.write(message)


def _run(rank, job, world, folder, *more):
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        job(rank, world, folder, *more)
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def spread(job, world, folder, *more):
    """`job` on `world` processes; forked, since importing torch takes longer than the job."""
    mp.start_processes(_run, (job, world, str(folder), *more), nprocs=world, start_method="fork")


def close(one, two, what):
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, atol=1e-5, rtol=0, msg=f"{what} {key}")


@pytest.mark.parametrize(("kind", "world", "k"), [("linear", 2, 3), ("conv", 4, 3), ("linear", 2, 0)])
def test_a_split_model_trains_launches_saves_and_resumes_as_a_whole_one(tmp_path, kind, world, k):
    spread(_trains, world, tmp_path, kind, k)
    (half, half_optimizer), (end, _) = single(kind, k)
    ranks = [torch.load(tmp_path / f"{r}.pt") for r in range(world)]
    for (state, optimizer), finished, resumed, _ in ranks:
        close(half, state, "at half")
        close(end, finished, "at the end")
        for key, tensor in finished.items():
            assert torch.equal(tensor, resumed[key]), key
        for number, moments in half_optimizer["state"].items():
            close(moments, optimizer["state"][number], f"optimizer {number}")
    for _, finished, _, _ in ranks[1:]:
        assert all(torch.equal(tensor, ranks[0][1][key]) for key, tensor in finished.items())
    counts = [entry[3] for entry in ranks]
    for count in counts:  # each weight was gathered once on every rank, and decomposed on one
        assert sorted(count["weights"]) == (sorted(count["bases"]) if k else [])
    assert sum(len(count["decomposed"]) for count in counts) == (3 if k else 0)
    assert (max(len(count["decomposed"]) for count in counts) < 3) or not k

    files = {p.name: p.read_bytes() for p in tmp_path.glob("adapter-*.safetensors")}
    assert len(files) == world
    assert len(set(files.values())) == 1
    assert len({(tmp_path / f"peft-{r}" / "adapter_model.safetensors").read_bytes() for r in range(world)}) == 1
    loaded = load_adapter(MODELS[kind][0](), tmp_path / "adapter-0.safetensors")
    close(end, loaded.state_dict(), "the file's")


def test_a_failure_in_a_split_model_is_an_error_on_all(tmp_path):
    spread(_fails, 2, tmp_path, "linear", 3)
    messages = [(tmp_path / f"{r}.txt").read_text() for r in range(2)]
    assert messages[0] == messages[1]
    assert "cannot choose directions in 0" in messages[0]


def _sums(rank, world, folder):
    """As gloo does in some releases of PyTorch: the sum where the mean was asked for."""
    name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    scatter = getattr(dist, name)
    setattr(dist, name, lambda out, given, op: scatter(out, given, op=dist.ReduceOp.SUM))
    with pytest.raises(ValueError, match="it gives 2 for the mean of ones"):
        shard(net(), lambda name, module: False, CPU)


def test_a_pytorch_that_cannot_average_is_refused(tmp_path):
    spread(_sums, 2, tmp_path)


@pytest.mark.parametrize("number", [999, -1])
def test_an_optimizer_state_of_strange_parameters_is_refused(number):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match=f"of parameter {number}; there are 1"):
        load_optimizer(optimizer, {**optimizer.state_dict(), "state": {number: {"exp_avg": torch.zeros(3)}}})
