"""The adapted layers: forward passes and gradients against the naive float64 reference and the dense formula."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dash_vision import DashConfig, inject
from dash_vision.core.layer import DashConv2d
from tests.support import reference
from tests.support.models import trained
from tests.support.networks import Net, arrays, frozen


@pytest.mark.parametrize("name", ["linear", "bare", "gpt"])
@pytest.mark.parametrize(("rank", "k"), [(4, 3), (4, 0), (0, 3), (12, 12), (15, 12)])
def test_forward_of_linear_layers_is_the_dense_formula(name, rank, k):
    net = Net().double()
    adapter = trained(net, DashConfig(rank=rank, alpha=6, dash_k=k, target=[name]))
    w, layer = arrays(adapter, name), getattr(net, name)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    dW = reference.dense_update(w["A"], w["B"], 6, rank, w["U"], w["V"], w["dsigma"])
    bias = None if layer.bias is None else layer.bias.detach().double().numpy()
    expected = reference.forward(x.numpy(), frozen(layer), bias, dW)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(layer(x[0, 0]).detach().numpy(), expected[0, 0], atol=2e-6)


@pytest.mark.parametrize(("name", "stride", "padding"), [("conv", 2, 1), ("point", 1, 0)])
def test_forward_of_convolutions_is_the_dense_formula(name, stride, padding):
    net = Net().double()
    adapter = trained(net, DashConfig(rank=4, alpha=6, dash_k=3, target=[name]))
    layer, w = getattr(net, name), arrays(adapter, name)
    assert isinstance(layer, DashConv2d)
    dW = reference.dense_update(w["A"], w["B"], 6, 4, w["U"], w["V"], w["dsigma"])
    kernel = (frozen(layer) + dW).reshape(layer.base.weight.shape)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = reference.conv2d(x.numpy(), kernel, stride, padding) + layer.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=2e-6)


def test_circular_padding_and_dilation_follow_the_frozen_convolution():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=2, dilation=2, padding_mode="circular")).double()
    plain = copy.deepcopy(net)
    adapter = trained(net, DashConfig(rank=2, dash_k=2, target=["0"]))
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        plain[0].weight += adapter.layers["0"].weights("default").delta(torch.float64).view_as(plain[0].weight)
        torch.testing.assert_close(net(x), plain(x), atol=1e-6, rtol=0)


def test_gradients_are_the_chain_rule_of_the_dense_formula():
    net = Net().double()
    adapter = trained(net, DashConfig(rank=4, alpha=6, dash_k=3, target=["linear"]))
    layer, w = net.linear, arrays(adapter, "linear")
    x = torch.randn(7, 12, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, 20, dtype=torch.float64)
    (layer(x) * upstream).sum().backward()
    dA, dB, ddsigma, dx = reference.gradients(
        x.detach().numpy(), frozen(layer), w["A"], w["B"], 6, 4, w["U"], w["V"], w["dsigma"], upstream.numpy()
    )
    own = layer.weights("default")
    for got, expected in ((own.A.grad, dA), (own.B.grad, dB), (own.dsigma.grad, ddsigma), (x.grad, dx)):
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    assert layer.base.weight.grad is None


def test_a_fresh_adapter_changes_nothing_and_dsigma_has_a_zero_gradient():
    net = Net()
    x = torch.randn(4, 12)
    before = net.linear(x)
    adapter = inject(net, DashConfig(rank=4, dash_k=3, target=["linear"]))
    after = net.linear(x)
    assert torch.equal(before, after)
    after.sum().backward()
    w = adapter.layers["linear"].weights("default")
    assert torch.equal(w.dsigma.grad, torch.zeros(3))
    assert w.B.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["linear", "gpt", "conv", "point"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_output_dtype_is_the_frozen_layers(name, dtype, autocast):
    net = Net().to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype) if "o" in name[1:3] else torch.randn(2, 12, dtype=dtype)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        expected = getattr(net, name)(x)
        adapter = trained(net, DashConfig(rank=2, dash_k=2, target=[name]))
        got = getattr(net, name)(x)
    assert got.dtype == expected.dtype
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.parameters())


def test_one_dropout_draw_serves_both_branches():
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    nn.init.zeros_(net[0].weight)
    with torch.no_grad():
        net[0].weight.fill_diagonal_(1.0)
    adapter = inject(net, DashConfig(rank=64, dash_k=64, dropout=0.5, target=["0"]))
    w = adapter.layers["0"].weights("default")
    adapter.launch()
    with torch.no_grad():
        w.A.copy_(torch.eye(64))
        w.B.copy_(torch.eye(64))
        w.dsigma.fill_(1.0)
    net.train()
    # base + lora + dash of an input of ones: 1 where both branches dropped, 1 + 2 + 2 where both kept.
    values = set(net(torch.ones(8, 64)).detach().flatten().round(decimals=4).tolist())
    assert values == {1.0, 5.0}
    net.eval()
    torch.testing.assert_close(net(torch.ones(8, 64)), torch.full((8, 64), 3.0))


def test_code_that_reads_the_weight_sees_the_adapter():
    net = Net().double()
    trained(net, DashConfig(rank=4, dash_k=3, target=["linear", "conv"]))
    x, image = torch.randn(3, 12).double(), torch.randn(1, 3, 9, 9).double()
    by_hand = nn.functional.linear(x, net.linear.weight, net.linear.bias)
    torch.testing.assert_close(by_hand, net.linear(x))
    torch.testing.assert_close(nn.functional.conv2d(image, net.conv.weight, net.conv.bias, 2, 1), net.conv(image))
