"""The core on a GPU computes what it computes on a CPU."""

import copy

import pytest
import torch

from dash_vision import DashConfig, inject
from tests.support import gpu
from tests.support.layers import Net
from tests.support.models import sd_unet, trained, unet_inputs

pytestmark = pytest.mark.gpu
GPU = gpu.DEVICE
SHAPES = {"linear": (5, 12), "bare": (2, 7, 12), "gpt": (5, 12), "conv": (2, 3, 9, 9), "point": (2, 3, 9, 9)}


@pytest.fixture(autouse=True)
def exactly():
    with gpu.exact():
        yield


def output_and_gradients(net, name, x):
    """What the layer `name` gives for x, and the gradients of A, B, dsigma and x, all on the CPU."""
    x = x.detach().clone().requires_grad_()
    y = net.get_submodule(name)(x)
    y.square().sum().backward()
    weights = net.get_submodule(name).weights("default")
    found = {"output": y, "x": x.grad, **{key: getattr(weights, key).grad for key in ("A", "B", "dsigma")}}
    return {key: tensor.detach().cpu() for key, tensor in found.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_forward_and_backward_passes_are_the_cpu_s(name):
    net = Net()
    trained(net, DashConfig(rank=4, dash_k=3, target=[name]))
    x = torch.randn(SHAPES[name])
    expected = output_and_gradients(copy.deepcopy(net), name, x)
    found = output_and_gradients(copy.deepcopy(net).to(GPU), name, x.to(GPU))
    for key, tensor in expected.items():
        assert tensor.abs().max() > 0
        torch.testing.assert_close(found[key], tensor, atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("selection", ["change_rate", "random"])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_launch_chooses_the_cpu_s_directions(selection, prepared):
    """With the decompositions made on the GPU, and with those that a thread has made on the CPU."""
    states = []
    for device in ("cpu", GPU):
        unet = sd_unet().to(device)
        adapter = inject(unet, DashConfig(rank=2, dash_k=3, selection=selection))
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if not name.endswith(".dsigma"):  # no shifts before there are directions
                    parameter.copy_(torch.randn(parameter.shape, generator=draw))
        if prepared:
            adapter.prepare()
            adapter.decompositions.wait()
        adapter.launch()
        assert {tensor.device.type for tensor in adapter.state_dict().values()} == {device}
        states.append({key: tensor.cpu() for key, tensor in adapter.state_dict().items()})
    for key, tensor in states[0].items():
        if key.endswith("indices"):
            assert torch.equal(states[1][key], tensor), key
        else:  # U and V, rounded from float64 to float32
            torch.testing.assert_close(states[1][key], tensor, atol=1e-6, rtol=0, msg=key)


def test_a_seed_gives_the_same_adapter_on_every_device():
    begun = []
    for device in ("cpu", GPU):
        torch.manual_seed(4)
        begun.append(inject(Net().to(device), DashConfig(rank=4, dash_k=3, target=["linear"])))
    (own,), (other,) = ([w for _, w in adapter.weights()] for adapter in begun)
    assert other.A.device.type == GPU
    assert torch.equal(own.A, other.A.cpu())


def test_a_trained_unet_gives_what_it_gives_on_the_cpu():
    unet = sd_unet()
    trained(unet, DashConfig(rank=2, dash_k=3), scale=0.08)
    inputs = unet_inputs(unet)
    with torch.no_grad():
        expected = unet(**inputs).sample
        found = unet.to(GPU)(**{key: tensor.to(GPU) for key, tensor in inputs.items()}).sample
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_layer_computes_in_bfloat16_and_trains_float32(autocast):
    net = Net().to(GPU, torch.bfloat16)
    adapter = trained(net, DashConfig(rank=4, dash_k=3, target=["linear"]))
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    exact = copy.deepcopy(net).double()
    x = torch.randn(64, 12, device=GPU)
    with torch.autocast(GPU, torch.bfloat16, enabled=autocast):
        y = net.linear(x if autocast else x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    z = exact.linear(x.bfloat16().double())
    z.square().mean().backward()
    assert (y - z).norm() / z.norm() < 0.01  # bfloat16 keeps 8 bits
    for key in ("A", "B", "dsigma"):
        gradient = getattr(net.linear.weights("default"), key).grad
        expected = getattr(exact.linear.weights("default"), key).grad
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() / expected.norm() < 0.03, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merging_is_undone_to_the_last_bit(dtype):
    net = Net().to(GPU, dtype)
    adapter = trained(net, DashConfig(rank=4, dash_k=3, target=["linear", "conv"]))
    x = torch.randn(5, 12, device=GPU, dtype=dtype)
    before = {name: net.get_submodule(name).base.weight.clone() for name in ("linear", "conv")}
    with torch.no_grad():
        expected = net.linear(x)
        adapter.merge()
        assert not torch.equal(net.linear.base.weight, before["linear"])
        torch.testing.assert_close(net.linear(x), expected, atol=0.05, rtol=0.05)
        adapter.unmerge()
    assert all(torch.equal(net.get_submodule(name).base.weight, weight) for name, weight in before.items())
