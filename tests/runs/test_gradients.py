"""What the loop says of trainable tensors that training does not reach."""

import copy

import pytest
import torch
from torch import nn

from dash_vision import DashConfig, DashSchedule, inject
from dash_vision.files.errors import RunError
from dash_vision.runs.loop import Training, train
from dash_vision.runs.runtime import make_runtime
from dash_vision.runs.signals import StopRequest
from tests.support.processes import spread


class Net(nn.Module):
    """Three linear layers: one that is used, one whose output is multiplied by zero, one that is never called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.dead, self.idle = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return self.used(x) + 0 * self.dead(x)


class NetJob:
    """A job of the loop over a network; it keeps what the loop says."""

    def __init__(self, network):
        self.network, self.said = network, []

    def loss(self, batch):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(batch))
        return self.network(x).square().mean()

    def log(self, first, losses, rate):
        pass

    def save(self):
        pass

    def untrained(self, names, unused):
        self.said.append((sorted(names), unused))


def training_of(network, parameters=None, rate=lambda full, updates: full, **options):
    optimizer = torch.optim.AdamW(parameters or network.parameters(), lr=1e-2)
    return Training([network], [optimizer], rate, **options)


def run(job, training, steps):
    assert train(job, training, make_runtime("no", "cpu"), steps, StopRequest())
    return job.said


@pytest.mark.parametrize("accumulation", [1, 3])
def test_tensors_without_a_gradient_are_named_once(accumulation):
    net = Net()
    training = training_of(net, accumulation=accumulation)
    job = NetJob(net)
    assert run(job, training, 1) == [(["idle.bias", "idle.weight"], True)]
    assert run(job, training, 40)[1:] == [(["dead.bias", "dead.weight"], False)]
    assert training.untrained == ["dead.bias", "dead.weight", "idle.bias", "idle.weight"]


def test_a_stopped_training_remembers_what_it_does_not_reach():
    net, runtime = Net(), make_runtime("no", "cpu")
    training = training_of(net)
    run(NetJob(net), training, 20)
    again = training_of(copy.deepcopy(net))
    again.load_state_dict(copy.deepcopy(training.state_dict(runtime)), runtime)
    assert again.untrained == ["dead.bias", "dead.weight", "idle.bias", "idle.weight"]


def test_a_gradient_that_comes_later_than_the_first_step_is_one():
    """LoRA's A has none while B is zero, and B is zero for two steps where the warm-up begins with a rate of zero."""
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    adapter = inject(net, DashConfig(rank=2, dash_k=2, target=["0", "2"]))
    job = NetJob(net)
    job.loss(0).backward()
    assert all(not p.grad.any() for name, p in adapter.named_parameters() if name.endswith(".A"))
    training = training_of(net, [*adapter.parameters()], rate=lambda full, updates: full * min(1, updates / 4))
    training.schedule = DashSchedule(adapter, 15, training.optimizers)
    assert run(job, training, 40) == []
    assert training.launch["step"] == 15
    assert training.untrained == []


def test_the_shifts_are_looked_at_after_the_launch():
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    adapter = inject(net, DashConfig(rank=2, dash_k=2, target=["0", "2"]))
    training = training_of(net, [*adapter.parameters()])
    training.schedule = DashSchedule(adapter, 20, training.optimizers)
    job = NetJob(net)
    assert run(job, training, 20) == []
    adapter.layers["2"].weights(adapter.name).U.zero_()  # the update of its shifts is zero, whatever they are
    assert run(job, training, 29) == []
    assert [unused for _, unused in run(job, training, 30)] == [False]
    ((name,), _) = job.said[0]
    assert name.startswith("2.")
    assert name.endswith(".dsigma")


class Rows(nn.Module):
    """Of `first` only half of the outputs count, which FSDP gives to one of two processes; `dead` has no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.dead = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return self.first(x)[:, :2] + 0 * self.dead(x)[:, :2]


def _split(rank, world, folder):
    runtime = make_runtime("no", "cpu")
    runtime.sharded = True
    net = runtime.spread(Rows(), lambda name, module: False)
    job = NetJob(net)
    train(job, training_of(net), runtime, 20, StopRequest())
    assert job.said == [(["dead.weight"], False)], job.said


def test_a_split_gradient_counts_where_any_part_of_it_does(tmp_path):
    spread(_split, 2, tmp_path)


def _copies(rank, world, folder):
    runtime = make_runtime("no", "cpu")
    net = Net()
    job = NetJob(runtime.spread(net, lambda name, module: False))
    with pytest.raises(RunError, match=r"idle\.weight, idle\.bias take no part in the loss, and several processes"):
        train(job, training_of(job.network), runtime, 20, StopRequest())
    assert job.said == [(["idle.bias", "idle.weight"], True)], job.said


def test_copies_on_several_processes_end_with_a_sentence_where_a_layer_is_not_used(tmp_path):
    """DistributedDataParallel waits for its gradient, and torch's error does not say so."""
    spread(_copies, 2, tmp_path)
