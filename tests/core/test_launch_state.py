"""The optimizer's state of the shifts begins at the launch."""

import copy

import pytest
import torch
from torch import nn

from dash_vision import DashConfig, DashSchedule, inject


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 6))


def batches(count, start=0):
    for step in range(start, start + count):
        generator = torch.Generator().manual_seed(step)
        yield torch.randn(5, 10, generator=generator), torch.randn(5, 6, generator=generator)


def groups(adapter):
    named = list(adapter.named_parameters())
    shifts = [p for name, p in named if name.endswith("dsigma")]
    return [{"params": [p for name, p in named if not name.endswith("dsigma")]}, {"params": shifts}]


def update(model, optimizer, batch):
    inputs, targets = batch
    nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()


OPTIMIZERS = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "Adam with AMSGrad": lambda groups: torch.optim.Adam(groups, lr=1e-2, amsgrad=True),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=1e-2),
    "SGD with momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_shifts_move_as_under_an_optimizer_made_at_the_launch(name):
    """To the last bit: after the launch, dsigma's steps are those of a new optimizer that updates the shifts alone,
    while A and B keep theirs."""
    model = network()
    adapter = inject(model, DashConfig(rank=3, dash_k=4, target=["0", "2"]))
    optimizer = OPTIMIZERS[name](groups(adapter))
    schedule = DashSchedule(adapter, prelaunch_steps=7, optimizer=optimizer)
    for batch in batches(7):
        update(model, optimizer, batch)
        schedule.step()
    assert schedule.launched

    twin = copy.deepcopy(model)
    other = twin.dash_adapters["default"]
    factors, shifts = groups(other)
    kept = OPTIMIZERS[name]([factors])
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"] = state["param_groups"][:1]
    kept.load_state_dict(state)
    new = OPTIMIZERS[name]([shifts])
    for batch in batches(9, start=7):
        update(model, optimizer, batch)
        schedule.step()
        inputs, targets = batch
        nn.functional.mse_loss(twin(inputs), targets).backward()
        for each in (kept, new):
            each.step()
            each.zero_grad()
    for key, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


def test_adams_first_update_of_a_shift_has_the_size_of_the_rate():
    """|m / sqrt(v)| = 1 in the first step of Adam, whatever the gradient: with its bias correction spent on a hundred
    steps of zero gradients it would be sqrt(1 - 0.999^101) * 0.1 / (sqrt(0.001) * (1 - 0.9^101)) = 0.98 times 3.16."""
    model = network()
    adapter = inject(model, DashConfig(rank=3, dash_k=4, target=["0", "2"]))
    optimizer = torch.optim.Adam(groups(adapter), lr=1e-3)
    schedule = DashSchedule(adapter, prelaunch_steps=100, optimizer=optimizer)
    for batch in batches(100):
        update(model, optimizer, batch)
        schedule.step()
    update(model, optimizer, next(batches(1, start=100)))
    for _, w in adapter.weights():
        torch.testing.assert_close(w.dsigma.abs(), torch.full((4,), 1e-3), rtol=1e-3, atol=0)


def test_an_optimizer_inside_accelerates_wrapper_is_reached():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = network()
    adapter = inject(model, DashConfig(rank=3, dash_k=4, target=["0", "2"]))
    optimizer = torch.optim.AdamW(adapter.parameters())
    schedule = DashSchedule(adapter, prelaunch_steps=2, optimizer=Wrapper(optimizer))
    for batch in batches(2):
        update(model, optimizer, batch)
        schedule.step()
    shifts = [w.dsigma for _, w in adapter.weights()]
    assert all(parameter not in optimizer.state for parameter in shifts)
    assert len(optimizer.state) == 4


def test_prodigys_state_of_the_shifts_is_cleared_and_its_common_estimate_kept():
    from prodigyopt import Prodigy

    model = network()
    adapter = inject(model, DashConfig(rank=3, dash_k=4, target=["0", "2"]))
    optimizer = Prodigy(groups(adapter), lr=1.0)
    schedule = DashSchedule(adapter, prelaunch_steps=3, optimizer=optimizer)
    for batch in batches(3):
        update(model, optimizer, batch)
        schedule.step()
    shifts = [w.dsigma for _, w in adapter.weights()]
    assert all(parameter not in optimizer.state for parameter in shifts)
    before = optimizer.param_groups[0]["d"]
    update(model, optimizer, next(batches(1, start=3)))
    assert optimizer.param_groups[0]["d"] >= before
    assert all(optimizer.state[parameter]["step"] == 1 for parameter in shifts)


def test_a_random_choice_does_not_depend_on_what_was_drawn_before_but_on_the_seed():
    def chosen(seed, drawn):
        model = network()
        adapter = inject(model, DashConfig(rank=3, dash_k=3, target=["0", "2"], selection="random"))
        torch.rand(drawn)
        adapter.launch(seed)
        return [w.indices.tolist() for _, w in adapter.weights()]

    assert chosen(0, 1) == chosen(0, 5)
    assert chosen(0, 1) != chosen(1, 1)
    assert chosen(0, 1)[0] != chosen(0, 1)[1]
