"""DashSchedule: what counts as a step, and resuming bit for bit."""

import copy

import pytest
import torch
from torch import nn

from dash_vision import DashConfig, DashSchedule, inject


def make(k=2, prelaunch=4, dropout=0.0):
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5))
    adapter = inject(net, DashConfig(rank=2, dash_k=k, dropout=dropout, target=["0", "2"]))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02, weight_decay=0.01)
    return net, adapter, optimizer, DashSchedule(adapter, prelaunch_steps=prelaunch)


def train(net, optimizer, schedule, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def test_launches_once_right_after_step_number_prelaunch_steps():
    net, adapter, optimizer, schedule = make(prelaunch=4)
    launched_after = []
    for step in range(1, 9):
        net(torch.randn(3, 6)).square().mean().backward()
        optimizer.step()
        if schedule.step() is not None:
            launched_after.append(step)
        assert schedule.launched == (step >= 4)
    assert launched_after == [4]
    assert 0 <= adapter.mean_relative_index() <= 1


def test_forward_passes_and_accumulation_are_not_steps():
    net, _, optimizer, schedule = make(prelaunch=3)
    for _ in range(2):
        for _ in range(50):
            net(torch.randn(3, 6)).square().mean().backward()
            with torch.no_grad():
                net(torch.randn(3, 6))
        optimizer.step()
        schedule.step()
    assert not schedule.launched


def test_plain_lora_never_launches():
    net, _, optimizer, schedule = make(k=0, prelaunch=1)
    train(net, optimizer, schedule, 3)
    assert schedule.steps == 3
    assert not schedule.launched


@pytest.mark.parametrize("bad", [0, -1, 2.5, "100"])
def test_senseless_prelaunch_steps_are_refused(bad):
    adapter = inject(nn.Sequential(nn.Linear(4, 4)), DashConfig(rank=1, dash_k=1, target=["0"]))
    with pytest.raises(ValueError, match="prelaunch_steps"):
        DashSchedule(adapter, prelaunch_steps=bad)


@pytest.mark.parametrize("stop", [0, 2, 3, 4, 5, 9])
def test_resuming_before_at_and_after_the_launch_is_bit_exact(stop):
    net, adapter, optimizer, schedule = make(dropout=0.3)
    torch.manual_seed(1)
    train(net, optimizer, schedule, stop)
    saved = copy.deepcopy((adapter.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    random_state = torch.get_rng_state()
    train(net, optimizer, schedule, 12 - stop, start=stop)

    other, again, optimizer2, schedule2 = make(dropout=0.3)
    again.load_state_dict(saved[0])
    optimizer2.load_state_dict(saved[1])
    schedule2.load_state_dict(saved[2])
    torch.set_rng_state(random_state)
    assert schedule2.launched == (stop >= 4)
    train(other, optimizer2, schedule2, 12 - stop, start=stop)
    assert schedule2.steps == 12
    for key, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_the_optimizer_keeps_the_parameters_it_was_given():
    net, adapter, optimizer, schedule = make(prelaunch=2)
    before = [id(p) for p in adapter.parameters()]
    train(net, optimizer, schedule, 5)
    assert [id(p) for p in adapter.parameters()] == before
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(before)
    assert all(w.dsigma.abs().min() > 0 for _, w in adapter.weights())


def test_one_schedule_for_several_adapters():
    a = inject(nn.Sequential(nn.Linear(6, 6)), DashConfig(rank=1, dash_k=2, target=["0"]))
    b = inject(nn.Sequential(nn.Linear(9, 6)), DashConfig(rank=1, dash_k=3, target=["0"]))
    schedule = DashSchedule({"unet": a, "text_encoder": b}, prelaunch_steps=2)
    assert schedule.step() is None
    report = schedule.step()
    assert report is not None
    assert report.layers == 2
    assert "2 layers" in str(report)
    twin = DashSchedule({"unet": a, "text_encoder": b}, prelaunch_steps=50)
    twin.load_state_dict(schedule.state_dict())
    assert (twin.steps, twin.prelaunch_steps, twin.launched) == (2, 2, True)


def test_a_state_of_other_layers_is_refused_and_changes_nothing():
    _, _, _, schedule = make()
    state = schedule.state_dict()
    other = inject(nn.Sequential(nn.Linear(6, 8)), DashConfig(rank=2, dash_k=2, target=["0"]))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    target = DashSchedule(other)
    with pytest.raises(ValueError, match="does not fit"):
        target.load_state_dict(state)
    assert target.steps == 0
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    with pytest.raises(ValueError, match="unet"):
        DashSchedule({"unet": other}).load_state_dict(state)


def test_an_optimizer_that_was_made_before_the_shifts_is_refused_at_the_first_step():
    _, adapter, _, _ = make()
    factors = [p for name, p in adapter.named_parameters() if not name.endswith(".dsigma")]
    schedule = DashSchedule(adapter, 2, optimizer=torch.optim.SGD(factors, lr=0.1))
    with pytest.raises(ValueError, match="not its shifts, which would never be trained"):
        schedule.step()
    both = [torch.optim.SGD(factors, lr=0.1), torch.optim.SGD([w.dsigma for _, w in adapter.weights()], lr=0.1)]
    DashSchedule(adapter, 2, optimizer=both).step()
