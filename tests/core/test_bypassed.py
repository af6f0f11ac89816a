"""Layers that a model does not simply call: adapted so that the output is that of the merged weights, or refused."""

import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import load_file
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.nn.utils import parametrizations

from dash_vision import DashConfig, export_lora, inject, load_adapter
from dash_vision.core.loading import read_adapters
from dash_vision.files.lora import export_states
from tests.support.models import trained

SIZES = {"eva02_tiny_patch14_224": 28, "beit_base_patch16_224": 32}


def model_of(name):
    torch.manual_seed(0)
    shape = {"img_size": SIZES.get(name, 32), "depth": 1, "embed_dim": 96, "num_heads": 3}
    model = timm.create_model(name, num_classes=3, **shape)
    nn.init.normal_(model.head.weight, std=0.3)
    return model.eval()


def pictures(name):
    side = SIZES.get(name, 32)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*SIZES, "vit_tiny_patch16_224"])
@pytest.mark.parametrize("target", ["vit-qkv", "vit-blocks"])
def test_the_output_is_that_of_the_merged_weights_however_a_layer_is_used(name, target):
    model, x = model_of(name), pictures(name)
    with torch.no_grad():
        plain = model(x)
        adapter = trained(model, DashConfig(rank=2, dash_k=2, target=target), scale=0.2)
        found = model(x)
        adapter.merge()
        merged = model(x)
    assert (found - plain).abs().max() > 0.01
    torch.testing.assert_close(found, merged, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_of_a_layer_that_is_only_read_has_a_gradient(name):
    model = model_of(name)
    adapter = trained(model, DashConfig(rank=2, dash_k=2, target="vit-qkv"), scale=0.2)
    model(pictures(name)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_an_export_that_peft_would_not_apply_is_refused(name, tmp_path):
    """Stock PEFT adds to what a layer gives when it is called: its own adapter there leaves the output as it was."""
    model, x = model_of(name), pictures(name)
    adapter = trained(model, DashConfig(rank=2, dash_k=2, target="vit-qkv"), scale=0.2)
    export_lora(adapter, tmp_path / "before", "peft")  # the model has not been run: nothing is known of it
    with torch.no_grad():
        found, stock = model(x), PeftModel.from_pretrained(model_of(name), str(tmp_path / "before")).eval()(x)
        torch.testing.assert_close(stock, model_of(name)(x))
    assert (found - stock).abs().max() > 0.01
    for format in ("peft", "diffusers"):
        with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv: .*merge the adapter"):
            export_lora(adapter, tmp_path / "after", format)
    assert not (tmp_path / "after").exists()


def test_a_file_remembers_which_layers_are_only_read(tmp_path):
    name = "eva02_tiny_patch14_224"
    model = model_of(name)
    adapter = trained(model, DashConfig(rank=2, dash_k=2, target="vit-blocks"), scale=0.2)
    with torch.no_grad():
        model(pictures(name))
    adapter.save(tmp_path / "a.safetensors")
    states = read_adapters(tmp_path / "a.safetensors")
    assert states["model"].bypassed == ["blocks.0.attn.qkv"]  # and none of proj, fc1, fc2
    with pytest.raises(ValueError, match="peft would not apply"):
        export_states(states, tmp_path / "out", "peft")
    assert load_adapter(model_of(name), tmp_path / "a.safetensors").state().bypassed == ["blocks.0.attn.qkv"]


def test_layers_that_are_read_and_called_are_exported(tmp_path):
    """Some models look at a layer's weight, for its dtype say, before they call the layer."""

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return self.fc(x.to(self.fc.weight.dtype))

    model = Looks()
    adapter = trained(model, DashConfig(rank=1, dash_k=1, target=["fc"]), scale=0.2)
    model(torch.randn(2, 6))
    assert load_file(export_lora(adapter, tmp_path, "peft"))


def test_torchs_fast_path_of_an_encoder_layer_computes_with_the_adapter():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    adapter = trained(layer, DashConfig(rank=2, dash_k=2, target=["linear1", "linear2"]), scale=0.2)
    slow = layer(x).detach()  # with gradients there is no fast path
    with torch.no_grad():
        torch.testing.assert_close(layer(x), slow, atol=1e-5, rtol=1e-4)
        adapter.merge()
        torch.testing.assert_close(layer(x), slow, atol=1e-5, rtol=1e-4)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(6, 4)), "computed from other tensors"),
        (lambda: parametrizations.spectral_norm(nn.Linear(6, 4)), "computed from other tensors"),
        (lambda: Doubled(6, 4), "Doubled does more than a plain layer"),
        (lambda: Conv2dSame(3, 8, 3, stride=2), "Conv2dSame does more than a plain layer"),
        (lambda: StdConv2d(3, 8, 3), "StdConv2d does more than a plain layer"),
    ],
)
def test_layers_whose_output_is_not_their_weight_times_the_input_are_refused(make, sentence):
    state = torch.get_rng_state()
    model = nn.Sequential(make())
    torch.set_rng_state(state)
    with pytest.raises(ValueError, match=sentence):
        inject(model, DashConfig(rank=1, dash_k=1, target=["0"]))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_with_a_forward_of_its_own_that_is_a_plain_layer_is_taken(dtype):
    model = nn.Sequential(Renamed(6, 4)).to(dtype)
    x = torch.randn(3, 6, dtype=dtype)
    adapter = trained(model, DashConfig(rank=1, dash_k=1, target=["0"]), scale=0.2)
    found = model(x)
    adapter.merge()
    torch.testing.assert_close(model(x), found, atol=3e-2, rtol=3e-2)
