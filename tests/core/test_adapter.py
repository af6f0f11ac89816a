"""Several adapters, merging and unmerging bit for bit, removal, and launches by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dash_vision import DashConfig, inject
from dash_vision.core.layer import DashLinear
from tests.support import reference
from tests.support.models import trained
from tests.support.networks import Net, arrays, frozen


def test_only_the_adapter_trains():
    net = Net()
    adapter = inject(net, DashConfig(rank=2, dash_k=2, target=["linear"]))
    trainable = {id(p) for p in net.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters()}


def test_two_adapters_live_side_by_side():
    net = Net().double()
    x = torch.randn(3, 12, dtype=torch.float64)
    base = net.linear(x)
    first = trained(net, DashConfig(rank=2, dash_k=2, target=["linear"]), name="first")
    only_first = net.linear(x) - base
    second = trained(net, DashConfig(rank=3, dash_k=0, target=["linear", "bare"]), name="second")
    only_second = net.linear(x) - base
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in second.parameters()}
    first.enable()
    torch.testing.assert_close(net.linear(x), base + only_first + only_second)
    first.activate()
    torch.testing.assert_close(net.linear(x), base + only_first)
    first.disable()
    torch.testing.assert_close(net.linear(x), base)
    second.remove()
    assert type(net.bare) is nn.Linear
    first.enable()
    torch.testing.assert_close(net.linear(x), base + only_first)
    with pytest.raises(ValueError, match="already"):
        inject(net, DashConfig(target=["linear"]), "first")


def test_launching_one_adapter_leaves_the_other_in_its_phase():
    net = Net()
    first = inject(net, DashConfig(rank=2, dash_k=2, target=["linear"]), "first")
    second = inject(net, DashConfig(rank=2, dash_k=2, target=["linear"]), "second")
    second.launch()
    assert (first.launched, second.launched) == (False, True)
    assert not first.state_dict()["linear.U"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "gpt", "conv"])
def test_merge_is_exact_and_unmerge_restores_every_bit(name, dtype):
    net = Net().to(dtype)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    adapter = trained(net, DashConfig(rank=4, alpha=6, dash_k=3, target=[name]))
    w, layer = arrays(adapter, name), getattr(net, name)
    expected = frozen(layer) + reference.dense_update(w["A"], w["B"], 6, 4, w["U"], w["V"], w["dsigma"])
    adapter.merge()
    adapter.merge()
    np.testing.assert_allclose(frozen(layer), expected, rtol=5e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert torch.equal(layer.weight, layer.base.weight)
    adapter.unmerge()
    assert torch.equal(layer.base.weight, before[f"{name}.weight"])
    adapter.remove()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_two_merged_adapters_come_out_in_any_order():
    net = Net()
    original = net.linear.weight.clone()
    a = trained(net, DashConfig(rank=2, dash_k=2, target=["linear"]), name="a")
    b = trained(net, DashConfig(rank=2, dash_k=2, target=["linear"]), name="b")
    a.merge()
    only_a = net.linear.base.weight.clone()
    b.merge()
    a.unmerge()
    b.merge()
    torch.testing.assert_close(
        net.linear.base.weight, original + b.layers["linear"].weights("b").delta(), atol=1e-6, rtol=0
    )
    b.unmerge()
    assert torch.equal(net.linear.base.weight, original)
    a.merge()
    assert torch.equal(net.linear.base.weight, only_a)


def test_a_merged_adapter_is_not_applied_twice():
    net = Net().double()
    x = torch.randn(3, 12, dtype=torch.float64)
    adapter = trained(net, DashConfig(rank=2, dash_k=2, target=["linear"]))
    before = net.linear(x)
    adapter.merge()
    torch.testing.assert_close(net.linear(x), before, atol=1e-6, rtol=0)


def test_shared_weights_are_not_merged():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    adapter = trained(net, DashConfig(rank=1, dash_k=1, target=["0"]))
    with pytest.raises(RuntimeError, match="shared"):
        adapter.merge()


def test_remove_gives_the_model_back():
    net = Net()
    net.bare.requires_grad_(False)
    modules = dict(net.named_modules())
    state = {k: v.clone() for k, v in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    attributes = set(net.__dict__)
    adapter = trained(net, DashConfig(rank=2, dash_k=2, target=r"\w+"))
    adapter.merge()
    adapter.remove()
    assert dict(net.named_modules()) == modules
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert set(net.__dict__) == attributes


def test_a_copy_of_the_model_has_its_own_adapter():
    net = Net()
    adapter = trained(net, DashConfig(rank=2, dash_k=2, target=["linear"]))
    twin = copy.deepcopy(net)
    twin.dash_adapters["default"].remove()
    assert type(twin.linear) is nn.Linear
    assert isinstance(net.linear, DashLinear)
    assert adapter.layers["linear"] is net.linear


def test_launch_by_hand_has_clear_limits():
    adapter = inject(Net(), DashConfig(rank=2, dash_k=2, target=["linear"]))
    adapter.launch()
    with pytest.raises(RuntimeError, match="already"):
        adapter.launch()
    with pytest.raises(RuntimeError, match="plain LoRA"):
        inject(Net(), DashConfig(rank=2, dash_k=0, target=["linear"])).launch()


def test_a_diverged_update_stops_the_launch_by_name_and_changes_nothing():
    net = Net()
    adapter = inject(net, DashConfig(rank=2, dash_k=2, target=["linear", "bare"]))
    with torch.no_grad():
        adapter.layers["bare"].weights("default").B.fill_(float("nan"))
    with pytest.raises(ValueError, match="directions in bare"):
        adapter.launch()
    assert not adapter.launched
    assert not adapter.state_dict()["linear.U"].any()


def test_a_channels_last_convolution_is_merged_and_restored():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)).to(memory_format=torch.channels_last)
    before = model[0].weight.clone()
    x = torch.randn(2, 4, 5, 5)
    adapter = trained(model, DashConfig(rank=2, dash_k=2, target=["0"]))
    expected = model(x)
    adapter.merge()
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert not torch.equal(model[0].base.weight, before)
    adapter.remove()
    assert torch.equal(model[0].weight, before)
