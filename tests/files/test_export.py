"""Exports, by their arithmetic and in the eyes of diffusers and PEFT."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dash_vision import DashConfig, export_lora, inject
from tests.support.adapters import CONFIG, net
from tests.support.models import sd_unet, sdxl_unet, stock_pipeline, text_encoder, trained, unet_inputs

# -- export: shapes and arithmetic


def test_folded_factors_multiply_to_the_update(saved, tmp_path):
    adapter, _, _, _ = saved
    tensors = load_file(export_lora(adapter, tmp_path / "out"))
    for module, layer in adapter.layers.items():
        A, B = tensors[f"unet.{module}.lora_A.weight"], tensors[f"unet.{module}.lora_B.weight"]
        assert A.shape[0] == B.shape[1] == 7
        w = layer.weights("default")
        dense = 5 / 3 * w.B.double() @ w.A.double() + w.U.double() @ torch.diag(w.dsigma.double()) @ w.V.double()
        torch.testing.assert_close(B.double() @ A.double(), dense, atol=1e-6, rtol=0)


def test_clipped_layers_are_padded_to_one_rank(tmp_path):
    with pytest.warns(UserWarning, match="dash_k"):
        adapter = trained(net(width=4), DashConfig(rank=3, dash_k=6, target=["0", "2", "3.0"]))
    path = export_lora(adapter, tmp_path / "out")
    assert {t.shape[0] for k, t in load_file(path).items() if "lora_A" in k} == {9}
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["unet.r"] == metadata["unet.lora_alpha"] == 9
    assert metadata.keys() == {
        f"unet.{k}" for k in ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
    }


def test_before_the_launch_the_export_is_the_plain_lora(tmp_path):
    adapter = trained(net(), CONFIG, launch=False)
    assert {t.shape[0] for k, t in load_file(export_lora(adapter, tmp_path)).items() if "lora_A" in k} == {3}


def test_exports_that_cannot_be_are_refused(saved, tmp_path):
    adapter, _, _, _ = saved
    with pytest.raises(ValueError, match="diffusers, kohya, peft"):
        export_lora(adapter, tmp_path, format="ckpt")
    with pytest.raises(ValueError, match="modules_to_save"):
        export_lora(adapter, tmp_path, modules_to_save={"head": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="one model"):
        export_lora({"unet": adapter, "text_encoder": adapter}, tmp_path, format="peft")
    with pytest.raises(ValueError, match="nothing to export"):
        export_lora(inject(net(), DashConfig(rank=0, dash_k=2, target=["0"])), tmp_path)
    with torch.no_grad():
        adapter.layers["0"].weights("default").B.fill_(1e12)
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        export_lora(adapter, tmp_path, dtype=torch.float16)


# -- export: what stock libraries compute with it


@pytest.mark.parametrize("make", [sd_unet, sdxl_unet])
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float16, 2e-3)])
def test_stock_diffusers_computes_what_was_trained(make, format, dtype, tolerance, tmp_path):
    unet = make()
    inputs = unet_inputs(unet)
    with torch.no_grad():
        base = unet(**inputs).sample
        adapter = trained(unet, DashConfig(rank=3, alpha=5, dash_k=4), scale=0.08)
        expected = unet(**inputs).sample
        path = export_lora(adapter, tmp_path / "out", format=format, dtype=dtype)
        pipe = stock_pipeline(make())
        pipe.load_lora_weights(path.parent, weight_name=path.name)
        got = pipe.unet(**inputs).sample
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def test_merged_weights_compute_what_was_trained():
    for make in (sd_unet, sdxl_unet):
        unet = make()
        inputs = unet_inputs(unet)
        with torch.no_grad():
            adapter = trained(unet, DashConfig(rank=3, alpha=5, dash_k=4), scale=0.08)
            expected = unet(**inputs).sample
            adapter.merge()
            torch.testing.assert_close(unet(**inputs).sample, expected, atol=5e-6, rtol=0)


def test_a_folder_with_nothing_else_loads_without_a_file_name(tmp_path):
    unet = sd_unet()
    inputs = unet_inputs(unet)
    adapter = trained(unet, DashConfig(rank=2, dash_k=3), scale=0.08)
    adapter.save(tmp_path / "dash_adapter.safetensors")  # beside it, as a run leaves it
    export_lora(adapter, tmp_path)
    pipe = stock_pipeline(sd_unet())
    pipe.load_lora_weights(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(**inputs).sample, unet(**inputs).sample, atol=5e-6, rtol=0)


def test_diffusers_scales_fuses_and_hot_swaps_it(tmp_path):
    unet = sd_unet()
    inputs = unet_inputs(unet)
    with torch.no_grad():
        adapter = trained(unet, DashConfig(rank=2, dash_k=3), scale=0.08)
        full = unet(**inputs).sample
        export_lora(adapter, tmp_path / "a")
        with torch.no_grad():
            for _, w in adapter.weights():  # half the update: scale both branches
                w.B.mul_(0.5)
                w.dsigma.mul_(0.5)
        half = unet(**inputs).sample
        export_lora(adapter, tmp_path / "b")
        pipe = stock_pipeline(sd_unet())
        pipe.load_lora_weights(tmp_path / "a", adapter_name="dash")
        pipe.set_adapters("dash", 0.5)
        torch.testing.assert_close(pipe.unet(**inputs).sample, half, atol=5e-6, rtol=0)
        pipe.set_adapters("dash", 1.0)
        scaled = pipe.unet(**inputs, cross_attention_kwargs={"scale": 0.5}).sample
        torch.testing.assert_close(scaled, half, atol=5e-6, rtol=0)
        pipe.load_lora_weights(tmp_path / "b", adapter_name="dash", hotswap=True)
        torch.testing.assert_close(pipe.unet(**inputs).sample, half, atol=5e-6, rtol=0)
        pipe.load_lora_weights(tmp_path / "a", adapter_name="dash", hotswap=True)
        pipe.fuse_lora()
        torch.testing.assert_close(pipe.unet(**inputs).sample, full, atol=5e-6, rtol=0)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_text_encoders_travel_too(format, tmp_path):
    unet, encoder = sd_unet(), text_encoder()
    ids = torch.tensor([[1, 5, 7, 2, 2, 2, 2, 2]])
    with torch.no_grad():
        adapters = {
            "unet": trained(unet, DashConfig(rank=2, dash_k=3)),
            "text_encoder": trained(encoder, DashConfig(rank=2, dash_k=3, target="clip-text")),
        }
        expected = encoder(ids).last_hidden_state
        path = export_lora(adapters, tmp_path / "out", format=format)
        pipe = stock_pipeline(sd_unet(), text_encoder())
        assert not torch.allclose(pipe.text_encoder(ids).last_hidden_state, expected, atol=1e-2)
        pipe.load_lora_weights(path.parent, weight_name=path.name)
        torch.testing.assert_close(pipe.text_encoder(ids).last_hidden_state, expected, atol=5e-6, rtol=0)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.linear = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.linear(self.conv(x).mean((2, 3))).relu())


def test_peft_computes_what_was_trained_with_conv_and_head(tmp_path):
    from peft import PeftModel

    model, x = Mixed(), torch.randn(2, 3, 8, 8)
    adapter = trained(model, DashConfig(rank=2, alpha=3, dash_k=3, target=["conv", "linear"]))
    with torch.no_grad():
        model.head.weight.add_(0.5)
    export_lora(adapter, tmp_path, format="peft", modules_to_save={"head": model.head})
    stock = PeftModel.from_pretrained(Mixed(), tmp_path)
    torch.testing.assert_close(stock(x), model(x), atol=5e-6, rtol=0)


def test_peft_computes_what_was_trained_with_conv1d(tmp_path):
    from peft import PeftModel
    from transformers.pytorch_utils import Conv1D

    def model():
        torch.manual_seed(3)
        return nn.Sequential(Conv1D(10, 6), nn.GELU(), Conv1D(4, 10))

    ours, x = model(), torch.randn(5, 6)
    adapter = trained(ours, DashConfig(rank=2, alpha=3, dash_k=3, target=["0", "2"]))
    export_lora(adapter, tmp_path, format="peft")
    torch.testing.assert_close(PeftModel.from_pretrained(model(), tmp_path)(x), ours(x), atol=5e-6, rtol=0)


def test_peft_computes_what_was_trained_on_a_timm_vit(tmp_path):
    import timm
    from peft import PeftModel

    def vit():
        torch.manual_seed(5)
        return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3).eval()

    ours, x = vit(), torch.randn(2, 3, 32, 32)
    adapter = trained(ours, DashConfig(rank=2, dash_k=3, target="vit-blocks"))
    export_lora(adapter, tmp_path, format="peft", modules_to_save={"head": ours.head})
    with torch.no_grad():
        torch.testing.assert_close(PeftModel.from_pretrained(vit(), tmp_path)(x), ours(x), atol=1e-5, rtol=0)


def test_kohya_keys_are_what_comfyui_and_a1111_look_up(tmp_path):
    adapter = trained(sd_unet(), DashConfig(rank=2, dash_k=3))
    path = export_lora(adapter, tmp_path / "my-cat", format="kohya")
    assert path.name == "my-cat.safetensors"
    tensors = load_file(path)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert tensors[f"{key}.lora_down.weight"].shape == (5, 32)
    assert tensors[f"{key}.lora_up.weight"].shape == (32, 5)
    assert {t.item() for k, t in tensors.items() if k.endswith(".alpha")} == {5.0}
    assert len(tensors) == 3 * len(adapter.layers)
