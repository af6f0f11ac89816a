"""Two gloo processes: equal directions on every rank, DDP without find_unused_parameters, failure on all ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dash_vision import DashConfig, DashSchedule, inject
from tests.support.networks import batch, net
from tests.support.processes import spread

WORLD = 2


def train(model, adapter, schedule, shard):
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.5)
    for step in range(8):
        optimizer.zero_grad()
        model(batch(step)[shard]).square().mean().backward()
        optimizer.step()
        schedule.step()


def _trains(rank, world, folder):
    model = net()
    adapter = inject(model, DashConfig(rank=2, dash_k=3, target=["0", "2", "4"]))
    wrapped = nn.parallel.DistributedDataParallel(model)
    decomposed = []
    import dash_vision.core.decompositions as decompositions

    original = decompositions.decompose
    decompositions.decompose = lambda W: decomposed.append(tuple(W.shape)) or original(W)
    train(wrapped, adapter, DashSchedule(adapter, prelaunch_steps=4), slice(rank * 4, rank * 4 + 4))
    torch.save((adapter.state_dict(), decomposed), f"{folder}/{rank}.pt")


def _fails(rank, world, folder):
    model = net()
    adapter = inject(model, DashConfig(rank=2, dash_k=3, target=["0", "2", "4"]))
    if rank == 1:
        with torch.no_grad():
            for _, w in adapter.weights():
                w.B.fill_(float("nan"))
    try:
        adapter.launch()
        message = "no error"
    except ValueError as error:
        message = str(error)
    with open(f"{folder}/{rank}.txt", "w") as file:
        file.write(message)


@pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")
def test_two_processes_train_like_one(tmp_path):
    spread(_trains, WORLD, tmp_path)
    (first, done0), (second, done1) = (torch.load(tmp_path / f"{r}.pt") for r in range(WORLD))
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert len(done0) >= 1
    assert len(done1) >= 1
    assert len(done0) + len(done1) == 3

    model = net()
    adapter = inject(model, DashConfig(rank=2, dash_k=3, target=["0", "2", "4"]))
    train(model, adapter, DashSchedule(adapter, prelaunch_steps=4), slice(None))
    for key, tensor in adapter.state_dict().items():
        torch.testing.assert_close(tensor, first[key], atol=1e-5, rtol=0, msg=key)


@pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")
def test_a_failure_on_one_rank_is_an_error_on_all(tmp_path):
    spread(_fails, WORLD, tmp_path)
    messages = [(tmp_path / f"{r}.txt").read_text() for r in range(WORLD)]
    assert messages[0] == messages[1]
    assert "NaN" in messages[0]
