"""The layer, the directions and injection, against the naive float64 reference and the paper's formulas."""

import copy
import warnings

import numpy as np
import pytest
import reference
import timm
import torch
from helpers import sd_unet, trained, unet_inputs
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers.pytorch_utils import Conv1D

from dash_vision import DashConfig, inject
from dash_vision.core.directions import change_rates, singular_directions, top_directions
from dash_vision.core.layer import DashConv2d, DashLinear
from dash_vision.core.targets import find_targets


class Net(nn.Module):
    """One layer of every kind, 12 in and 20 out for the linear ones."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 20)
        self.bare = nn.Linear(12, 20, bias=False)
        self.gpt = Conv1D(20, 12)
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.point = nn.Conv2d(3, 8, 1)
        nn.init.normal_(self.gpt.bias)


def arrays(adapter, module):
    w = adapter.layers[module].weights(adapter.name)
    return {key: t.detach().double().numpy() for key, t in w.state_dict().items()}


def frozen(module):
    weight = module.base.weight.detach().double().numpy()
    return weight.T if isinstance(module.base, Conv1D) else weight.reshape(weight.shape[0], -1)


# -- forward and gradients


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


# -- directions


@pytest.mark.parametrize("shape", [(30, 30), (50, 20), (20, 50), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_directions_are_numpys_svd(shape, dtype):
    W = torch.randn(shape).to(dtype)
    U, sigma, V = singular_directions(W)
    _, expected, _ = np.linalg.svd(W.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(((U * sigma) @ V).numpy(), W.double().numpy(), atol=1e-9)
    identity = np.eye(min(shape))
    np.testing.assert_allclose((U.T @ U).numpy(), identity, atol=1e-7)
    np.testing.assert_allclose((V @ V.T).numpy(), identity, atol=1e-7)


@pytest.mark.parametrize("spectrum", [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1e-3, 1e-9, 1e-12], [1, 1, 1, 1]])
def test_poor_spectra_still_have_orthonormal_directions(spectrum):
    Q = torch.linalg.qr(torch.randn(9, 4).double()).Q
    R = torch.linalg.qr(torch.randn(4, 4).double()).Q
    W = (Q * torch.tensor(spectrum, dtype=torch.float64)) @ R
    U, sigma, V = singular_directions(W)
    np.testing.assert_allclose(sigma.numpy(), spectrum, atol=1e-14)
    np.testing.assert_allclose((U.T @ U).numpy(), np.eye(4), atol=1e-9)
    np.testing.assert_allclose((V @ V.T).numpy(), np.eye(4), atol=1e-9)


def test_directions_do_not_depend_on_autocast():
    W = torch.randn(16, 16)
    plain = singular_directions(W)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, singular_directions(W), strict=True))


@pytest.mark.parametrize("shape", [(30, 30), (24, 10), (10, 24)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_change_rates_and_choice_are_the_dense_formula(shape, eps):
    W, A, B = torch.randn(shape), torch.randn(4, shape[1]), torch.randn(shape[0], 4)
    rates = change_rates(singular_directions(W), A, B, 0.7, eps)
    dW = 0.7 * B.double().numpy() @ A.double().numpy()
    expected = reference.dense_rates(W.double().numpy(), dW, eps)
    np.testing.assert_allclose(rates.numpy(), expected, rtol=1e-6)
    assert top_directions(rates, 5).tolist() == np.argsort(-expected)[:5].tolist()


@pytest.mark.parametrize("selection", ["change_rate", "projection", "top", "bottom"])
def test_every_selection_takes_what_the_dense_formula_takes(selection):
    net = nn.Sequential(nn.Linear(40, 24))
    adapter = inject(net, DashConfig(rank=3, alpha=6, dash_k=5, target=["0"], selection=selection))
    with torch.no_grad():
        adapter.layers["0"].weights("default").B.normal_()
    adapter.launch()
    w, W = arrays(adapter, "0"), frozen(net[0])
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    moved = np.abs(np.diag(U.T @ reference.dense_update(w["A"], w["B"], 6, 3) @ Vh.T))
    order = {"change_rate": -moved / (S + 1e-6), "projection": -moved, "top": -S, "bottom": np.arange(24) < 19}
    expected = np.argsort(order[selection], kind="stable")[:5]
    assert w["indices"].astype(int).tolist() == expected.tolist()


def test_a_planted_direction_is_found():
    W = torch.randn(40, 40)
    U, sigma, V = singular_directions(W)
    A, B = V[[7, 21]].float(), (U[:, [7, 21]] * torch.tensor([3.0, 2.0]) * sigma[[7, 21]]).float()
    rates = change_rates((U, sigma, V), A, B, 1.0, 1e-6)
    assert top_directions(rates, 2).tolist() == [7, 21]
    np.testing.assert_allclose(rates[[7, 21]].numpy(), [3.0, 2.0], rtol=1e-5)


def test_equal_rates_go_to_the_larger_singular_values():
    assert top_directions(torch.zeros(6), 3).tolist() == [0, 1, 2]


def test_too_many_directions_or_nan_rates_are_refused():
    with pytest.raises(ValueError, match="dash_k=4"):
        top_directions(torch.zeros(3), 4)
    with pytest.raises(ValueError, match="eps"):
        top_directions(torch.tensor([1.0, float("inf")]), 1)


def test_a_half_precision_weight_is_decomposed_like_its_float_copy():
    net = nn.Sequential(nn.Linear(24, 24)).to(torch.bfloat16)
    twin = copy.deepcopy(net).float()
    a = trained(net, DashConfig(rank=3, dash_k=4, target=["0"]), launch=False)
    b = trained(twin, DashConfig(rank=3, dash_k=4, target=["0"]), launch=False)
    b.load_state_dict(a.state_dict())
    a.launch()
    b.launch()
    for key, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[key])


def test_launch_stores_what_the_dense_formula_chooses():
    net = Net()
    adapter = inject(net, DashConfig(rank=4, alpha=2, dash_k=3, target=["linear", "gpt", "conv"]))
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_()
        for _, w in adapter.weights():
            w.dsigma.zero_()
    report = adapter.launch()
    assert report.layers == 3
    for module, layer in adapter.layers.items():
        w, W = arrays(adapter, module), frozen(layer)
        rates = reference.dense_rates(W, reference.dense_update(w["A"], w["B"], 2, 4), 1e-6)
        chosen = np.argsort(-rates)[:3]
        assert w["indices"].astype(int).tolist() == chosen.tolist()
        _, S, _ = np.linalg.svd(W, full_matrices=False)
        for i, index in enumerate(chosen):
            np.testing.assert_allclose(W @ w["V"][i], S[index] * w["U"][:, i], atol=1e-5)


# -- configuration and targets


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"rank": -1}, "rank"),
        ({"rank": 2.0}, "rank"),
        ({"dash_k": -3}, "dash_k"),
        ({"rank": 0, "dash_k": 0}, "both 0"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"eps": -1e-3}, "eps"),
        ({"target": []}, "target"),
    ],
)
def test_senseless_configurations_are_refused(bad, word):
    with pytest.raises(ValueError, match=word):
        DashConfig(**bad)


def test_targets_by_suffix_regex_and_preset():
    vit = timm.create_model("vit_tiny_patch16_224", depth=2)
    assert len(find_targets(vit, "vit-blocks")) == 8
    assert list(find_targets(vit, "vit-qkv")) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert list(find_targets(vit, ["1.mlp.fc2"])) == ["blocks.1.mlp.fc2"]
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert list(find_targets(vit, r"blocks\.0\..*")) == [f"blocks.0.{layer}" for layer in layers]
    assert list(find_targets(vit, ["head"])) == ["head"]
    assert list(find_targets(vit, "qkv")) == list(find_targets(vit, ["qkv"])) == list(find_targets(vit, "vit-qkv"))


def test_a_target_without_a_match_lists_near_names():
    net = nn.ModuleDict({"attn": nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4)})})
    with pytest.raises(ValueError, match=r"'attn.quary' matches no layer of 2; near names: attn.query"):
        inject(net, DashConfig(target=["attn.quary"]))
    with pytest.raises(ValueError, match=r"unet-attention.*names in this model look like: attn.query"):
        inject(net, DashConfig())
    with pytest.raises(ValueError, match="matches no layer"):
        inject(net, DashConfig(target=["query", "value"]))
    with pytest.raises(ValueError, match="regular expression"):
        inject(net, DashConfig(target="attn(("))
    assert not any(isinstance(m, DashLinear) for m in net.modules())


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.Linear(4, 4, device="meta"), "meta"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_by_name(layer, word):
    net = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"odd": layer}))
    with pytest.raises(ValueError, match=rf"cannot adapt 1\.odd.*{word}"):
        inject(net, DashConfig(target=["0", "odd"]))
    assert type(net[0]) is nn.Linear


def test_attention_that_never_calls_its_projection_is_refused():
    net = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="MultiheadAttention"):
        inject(net, DashConfig(target=["out_proj"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(value):
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].weight.data[1, 2] = value
    with pytest.raises(ValueError, match="cannot adapt 0: its weight holds NaN"):
        inject(net, DashConfig(target=["0"]))


def test_zero_and_rank_deficient_weights_launch():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    nn.init.zeros_(net[0].weight)
    with torch.no_grad():
        net[1].weight.copy_(torch.outer(torch.randn(6), torch.randn(6)))
    adapter = trained(net, DashConfig(rank=2, dash_k=3, target=["0", "1"]))
    assert all(torch.isfinite(t.float()).all() for t in adapter.state_dict().values())
    assert torch.isfinite(net(torch.randn(2, 6))).all()


def test_k_larger_than_a_layer_is_clipped_with_one_warning():
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=r"dash_k=6 is more than 2 of 3 layers") as caught:
        adapter = trained(net, DashConfig(rank=2, dash_k=6, target=r"\d"))
    assert len(caught) == 1
    assert [w.k for _, w in adapter.weights()] == [3, 6, 2]


def test_nothing_of_the_adapter_is_warned_about_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(Net(), DashConfig(rank=2, dash_k=3, target=["linear", "conv"]))


# -- several adapters, merge, remove


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


def test_directions_come_from_the_weight_before_a_cast():
    torch.manual_seed(2)
    exact = nn.Linear(24, 16)
    model = nn.Sequential(nn.Linear(24, 16))
    model.load_state_dict({f"0.{k}": v for k, v in exact.state_dict().items()})
    model.to(torch.bfloat16)
    adapter = inject(model, DashConfig(rank=2, dash_k=3, target=["0"]))
    adapter.layers["0"].precise_weight = exact.weight.detach()
    with torch.no_grad():
        adapter.layers["0"].weights("default").B.normal_()
    adapter.launch()
    w = adapter.layers["0"].weights("default")
    U, _, Vh = torch.linalg.svd(exact.weight.detach().double(), full_matrices=False)
    for j, i in enumerate(w.indices.tolist()):  # up to the sign that both vectors share
        assert abs((U[:, i] @ w.U[:, j].double()).item()) == pytest.approx(1, abs=1e-6)
        assert abs((Vh[i] @ w.V[j].double()).item()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("network", ["unet", "vit"])
def test_a_compiled_model_has_no_graph_break_and_the_launch_recompiles_nothing(network):
    torch._dynamo.reset()
    if network == "unet":
        model, inputs = sd_unet(), unet_inputs(sd_unet())
    else:
        model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=4)
        inputs = {"x": torch.randn(2, 3, 32, 32)}
    adapter = inject(
        model, DashConfig(rank=2, dash_k=3, target={"unet": "unet-attention", "vit": "vit-blocks"}[network])
    )
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    graphs = CompileCounter()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)  # fullgraph: a graph break is an error
    compiled_graphs = []
    for step in range(4):
        out = compiled(**inputs)
        (out.sample if network == "unet" else out).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            adapter.prepare()
        if step == 1:
            adapter.launch()
        compiled_graphs.append(graphs.frame_count)
    assert compiled_graphs == [1, 1, 1, 1]
    assert all(w.dsigma.abs().min() > 0 for _, w in adapter.weights())  # the graph has the dash in it
    plain = model(**inputs)
    difference = compiled(**inputs)[0] - plain[0]
    assert difference.abs().max() < 1e-5
