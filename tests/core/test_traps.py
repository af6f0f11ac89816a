"""The ten traps of the method's reference implementation, one test each: ours does not have them.

The numbers are those of the list in docs/method.md.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dash_vision import DashConfig, DashSchedule, export_lora, inject, load_adapter
from tests.support.models import sd_unet, stock_pipeline, trained, unet_inputs


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))


CONFIG = DashConfig(rank=2, dash_k=3, target=["0", "2"])


@pytest.mark.parametrize("how", ["evaluation", "accumulation", "reentrant", "non-reentrant"])
def test_1_only_optimizer_steps_count(how):
    model = net()
    adapter = inject(model, CONFIG)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    schedule = DashSchedule(adapter, prelaunch_steps=5)
    for step in range(1, 8):
        x = torch.randn(4, 8, requires_grad=True)
        for _ in range(4 if how == "accumulation" else 1):
            recompute = "reentrant" in how
            y = checkpoint(model, x, use_reentrant=how == "reentrant") if recompute else model(x)
            y.square().mean().backward()
        if how == "evaluation":
            with torch.no_grad():
                for _ in range(10):
                    model(x)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        assert schedule.launched == (step >= 5)


def test_2_stock_diffusers_gets_the_dash_term(tmp_path):
    unet = sd_unet()
    inputs = unet_inputs(unet)
    adapter = trained(unet, DashConfig(rank=2, dash_k=4))
    with torch.no_grad():
        for _, w in adapter.weights():
            w.B.zero_()  # nothing but the dash term is left
        expected = unet(**inputs).sample
        export_lora(adapter, tmp_path)
        pipe = stock_pipeline(sd_unet())
        before = pipe.unet(**inputs).sample
        pipe.load_lora_weights(tmp_path)
        torch.testing.assert_close(pipe.unet(**inputs).sample, expected, atol=5e-6, rtol=0)
    assert (expected - before).abs().max() > 0.05


def test_3_a_reloaded_model_is_in_its_phase_with_its_directions(tmp_path):
    adapter = trained(net(), CONFIG)
    adapter.save(tmp_path / "a.safetensors")
    again = load_adapter(net(), tmp_path / "a.safetensors")
    schedule = DashSchedule(again, prelaunch_steps=2)
    before = copy.deepcopy(again.state_dict())
    for _ in range(5):
        assert schedule.step() is None
    assert again.launched
    assert all(torch.equal(t, before[k]) for k, t in again.state_dict().items())


def test_4_the_launch_makes_no_new_parameters_or_buffers():
    model = net()
    adapter = inject(model, CONFIG)
    tensors = {k: t.data_ptr() for k, t in adapter.state_dict().items()}
    adapter.launch()
    assert {k: t.data_ptr() for k, t in adapter.state_dict().items()} == tensors
    trainable = {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"A", "B", "dsigma"}


def test_5_a_forward_makes_no_dense_update_and_no_decomposition(monkeypatch):
    model = nn.Sequential(nn.Linear(64, 96, bias=False))
    frozen = model[0].weight.untyped_storage().data_ptr()
    inject(model, DashConfig(rank=2, dash_k=3, target=["0"])).launch()
    sizes = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            assert "svd" not in str(op)
            assert "eigh" not in str(op)
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != frozen:  # a view is no new matrix
                sizes.append(out.numel())
            return out

    with Spy():
        model(torch.randn(2, 64)).sum().backward()
    assert sizes
    assert max(sizes) < 64 * 96


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_6_half_precision_layers_launch_and_keep_their_dtype(dtype):
    model = net().to(dtype)
    x = torch.randn(2, 8, dtype=dtype)
    adapter = inject(model, CONFIG)
    assert model(x).dtype == dtype
    adapter.launch()
    assert model(x).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = inject(net(), CONFIG)
        other.launch()
    assert all(w.U.dtype == torch.float32 for _, w in adapter.weights())


def test_7_small_rank_deficient_and_transposed_layers(recwarn):
    from transformers.pytorch_utils import Conv1D

    model = nn.ModuleDict({"small": nn.Linear(5, 40), "flat": nn.Linear(12, 12), "gpt": Conv1D(20, 12)})
    with torch.no_grad():
        model["flat"].weight.copy_(torch.outer(torch.randn(12), torch.randn(12)))
    adapter = trained(model, DashConfig(rank=2, dash_k=8, target=["small", "flat", "gpt"]))
    assert [w.k for _, w in adapter.weights()] == [5, 8, 8]
    assert all(torch.isfinite(t.float()).all() for t in adapter.state_dict().values())
    w = adapter.layers["gpt"].weights("default")
    W = model["gpt"].base.weight.T  # [out, in]
    sigma = torch.linalg.svdvals(W.double())[w.indices].float()
    torch.testing.assert_close(W @ w.V.T, w.U * sigma, atol=1e-5, rtol=0)


def test_8_each_adapter_has_its_own_phase():
    model = net()
    first, second = inject(model, CONFIG, "first"), inject(model, CONFIG, "second")
    first.launch()
    assert first.launched
    assert not second.launched
    assert model[0].weights("first").U.any()
    assert not model[0].weights("second").U.any()
    x = torch.randn(2, 8)
    second.enable()
    with torch.no_grad():
        model[0].weights("second").B.normal_()
        with_second = model(x)
        first.enable()
        model[0].weights("first").dsigma.fill_(0.5)
        assert not torch.allclose(model(x), with_second)


def test_9_both_branches_see_one_dropout_mask():
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    nn.init.eye_(model[0].weight)
    adapter = inject(model, DashConfig(rank=32, dash_k=32, dropout=0.5, target=["0"]))
    adapter.launch()
    w = adapter.layers["0"].weights("default")
    with torch.no_grad():  # the LoRA branch computes -x, the dash branch +x: with one mask they cancel everywhere
        w.A.copy_(torch.eye(32))
        w.B.copy_(-torch.eye(32))
        w.dsigma.fill_(1.0)
    x = torch.randn(16, 32)
    torch.testing.assert_close(model.train()(x), x, atol=1e-5, rtol=0)
