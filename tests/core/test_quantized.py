"""The adapter on quantized layers, compared with the dequantized layer in float32 or float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dash_vision import DashConfig, DashSchedule, InputError, inject, load_adapter
from dash_vision.core.adapter import fold_in
from dash_vision.core.quantized import dequantized, is_quantized
from tests.support import reference
from tests.support.models import trained
from tests.support.quantized import BACKENDS, Pair, quantize_layer

CONFIG = DashConfig(rank=3, alpha=6, dash_k=4, target=["first", "second"])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# Largest share of the weight's norm that quantizing may take.
ROUNDING = {"bnb-nf4": 0.11, "torchao-fp8": 0.04, "quanto-fp8": 0.04}
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def plain_pair(model):
    """The same two layers with plain float32 weights, the dequantized ones."""
    plain = nn.Module()
    for name in ("first", "second"):
        layer = getattr(model, name)
        layer = getattr(layer, "base", layer)
        twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        twin.weight.data = dequantized(layer).float()
        if layer.bias is not None:
            twin.bias.data = layer.bias.detach().float()
        setattr(plain, name, twin)
    plain.forward = lambda x: plain.second(torch.tanh(plain.first(x)))
    return plain


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_output_and_gradients_are_those_of_the_dequantized_layer(backend, dtype):
    model = Pair(backend, dtype)
    plain = plain_pair(model)
    ours, theirs = trained(model, CONFIG), trained(plain, CONFIG)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 64)
    results = []
    for adapter, net, input in ((ours, model, x.to(dtype)), (theirs, plain, x.clone())):
        input.requires_grad_(True)
        y = net.forward(input)
        assert y.dtype == input.dtype
        y.float().square().sum().backward()
        results.append([y.detach().float(), input.grad.float(), *(p.grad for p in adapter.parameters())])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if not name.startswith("gguf")])
def test_no_unpacked_weight_is_kept_for_the_backward_pass(backend):
    """Else the training would hold all weights in full after all."""
    model = quantize_layer(nn.Linear(256, 192), backend)
    layer = nn.ModuleDict({"first": model})
    inject(layer, DashConfig(rank=2, dash_k=2, target=["first"]))
    kept = []

    def keep(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer["first"](torch.randn(2, 256, requires_grad=True))
    assert max(kept) < 256 * 192  # a byte for each weight would be less than unpacked ones take


@each_backend
def test_dequantizing_gives_the_weight_up_to_its_rounding(backend):
    model = Pair(backend)
    for name, original in model.original.items():
        layer = getattr(model, name)
        assert is_quantized(layer)
        W = dequantized(layer)
        assert type(W) is torch.Tensor
        assert 0 < (W - original).norm() <= ROUNDING.get(backend, 0.01) * original.norm()
        units = torch.eye(layer.in_features)  # what the layer itself answers to them
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close((layer(units) - bias).T, W, atol=1e-6, rtol=1e-5)


@each_backend
def test_a_layer_under_autocast_gives_the_dtype_of_its_frozen_layer(backend):
    model = Pair(backend)
    trained(model, CONFIG)
    x = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y, frozen = model.first(x), model.first.base(x)
    assert y.dtype == frozen.dtype
    torch.testing.assert_close(y.float(), model.first(x), atol=0.1, rtol=0.05)


@each_backend
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("precise", [False, True])
def test_the_launch_chooses_by_the_precise_weight_where_it_is_to_be_had(backend, prepared, precise):
    model = Pair(backend)
    original = model.original
    adapter = trained(model, CONFIG, launch=False)
    if precise:
        for name, layer in adapter.layers.items():
            layer.precise_weight = original[name].clone
    if prepared:
        adapter.prepare()
        adapter.decompositions.wait()
    adapter.launch()
    for name, layer in adapter.layers.items():
        W = (original[name] if precise else dequantized(layer.base)).double().numpy()
        w = layer.weights("default")
        A, B, U, V = (getattr(w, part).detach().double().numpy() for part in ("A", "B", "U", "V"))
        chosen = np.argsort(-reference.dense_rates(W, reference.dense_update(A, B, 6, 3), CONFIG.eps))[:4]
        assert w.indices.tolist() == chosen.tolist()
        S = np.linalg.svd(W, compute_uv=False)
        for i, index in enumerate(chosen):
            np.testing.assert_allclose(W @ V[i], S[index] * U[:, i], atol=1e-5)


@each_backend
def test_merging_is_refused_with_the_next_step(backend):
    model = Pair(backend)
    adapter = trained(model, CONFIG)
    before = model(torch.ones(64))
    for merge in (adapter.merge, lambda: fold_in(model)):
        with pytest.raises(
            RuntimeError, match=r"quantized weight.*; export the adapter as a LoRA, or merge it into the"
        ):
            merge()
    assert torch.equal(model(torch.ones(64)), before)


@each_backend
def test_no_layer_is_merged_where_one_is_quantized(backend):
    model = Pair(backend)
    model.first = nn.Linear(64, 128)
    adapter = trained(model, CONFIG)
    before = model.first.base.weight.clone()
    with pytest.raises(RuntimeError, match=r"quantized"):
        adapter.merge()
    assert torch.equal(model.first.base.weight, before)


@each_backend
def test_removing_the_adapter_gives_the_quantized_model_back(backend):
    model = Pair(backend)
    layers, x = [model.first, model.second], torch.randn(2, 64)
    before = model(x)
    trained(model, CONFIG).remove()
    assert [model.first, model.second] == layers
    assert torch.equal(model(x), before)


@each_backend
def test_an_adapter_is_saved_and_loaded_on_the_same_quantized_base_and_on_no_other(backend, tmp_path):
    model, x = Pair(backend), torch.randn(2, 64)
    path = tmp_path / "adapter.safetensors"
    trained(model, CONFIG).save(path)
    again = Pair(backend)
    load_adapter(again, path)
    assert torch.equal(again(x), model(x))
    other = Pair(backend)
    other.first = quantize_layer(nn.Linear(64, 128), backend)
    with pytest.raises(InputError, match=r"trained on another base"):
        load_adapter(other, path)


@each_backend
def test_an_adapter_of_the_unquantized_base_loads_on_the_quantized_one(backend, tmp_path):
    plain = Pair(backend)
    original = plain.original
    plain.first, plain.second = nn.Linear(64, 128), nn.Linear(128, 64, bias=False)
    for name, weight in original.items():
        getattr(plain, name).weight.data = weight
    path = tmp_path / "adapter.safetensors"
    trained(plain, CONFIG).save(path)
    load_adapter(Pair(backend), path)


@pytest.mark.parametrize("backend", ["bnb-nf4", "bnb-int8", "torchao-int8", "torchao-fp8"])  # others cannot be copied
def test_a_copy_of_the_model_computes_the_same(backend):
    model, x = Pair(backend), torch.randn(2, 64)
    trained(model, CONFIG)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@each_backend
def test_the_weight_that_others_read_has_the_update_in_it(backend):
    model = Pair(backend)
    trained(model, CONFIG)
    layer, x = model.second, torch.randn(7, 128)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight), layer(x), atol=1e-4, rtol=1e-4)


@each_backend
def test_training_on_quantized_layers_launches_and_lowers_the_loss(backend):
    model, x, goal = Pair(backend), torch.randn(16, 64), torch.randn(16, 64)
    adapter = inject(model, CONFIG)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    schedule = DashSchedule(adapter, prelaunch_steps=10, optimizer=optimizer)
    losses = []
    for _ in range(30):
        loss = (model(x) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert schedule.launched
    assert losses[-1] < 0.7 * losses[0]


def test_a_plain_layer_of_whole_numbers_is_no_quantized_one():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    assert not is_quantized(layer)
    with pytest.raises(ValueError, match=r"stored as torch.int8"):
        inject(nn.Sequential(layer), DashConfig(target=["0"]))


def test_a_layer_that_bitsandbytes_has_repacked_for_inference_is_refused_and_none_is_once_it_has_an_adapter(
    monkeypatch,
):
    model, x = Pair("bnb-nf4").eval(), torch.randn(2, 64)
    layer = model.first
    layer.support_avx512bf16_for_cpu = True  # whatever this CPU has
    repacked = []
    monkeypatch.setattr("bitsandbytes.nn.modules._convert_weight_packed_for_cpu", lambda *args: repacked.append(args))
    trained(model, CONFIG)
    model(x)
    assert not repacked
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"cannot adapt first: bitsandbytes has repacked .* load the model again"):
        inject(model, CONFIG, "another")
