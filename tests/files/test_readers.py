"""What exported files say of themselves, and what is said of readers that leave layers out."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dash_vision import DashConfig, export_lora, inject
from dash_vision.core.loading import adapter_state
from dash_vision.files.lora import export_states
from dash_vision.files.readers import SD1, SDXL, UNKNOWN, About, infer_about, remarks


def a1111_version(metadata):
    """The rule of A1111's Network.detect_version, restated."""
    if str(metadata.get("ss_base_model_version", "")).startswith("sdxl_"):
        return "SDXL"
    if str(metadata.get("ss_v2", "")) == "True":
        return "SD2"
    return "SD1" if metadata else "unknown"


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(16, 16), nn.Linear(width, 16)


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn2 = Attention(width)


def adapter_of(model, target):
    adapter = inject(model, DashConfig(rank=2, dash_k=2, target=target))
    adapter.launch()
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_()
    return adapter


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("width", "version", "architecture"),
    [
        (768, "SD1", "stable-diffusion-v1/lora"),
        (1024, "SD2", "stable-diffusion-v2-512/lora"),
        (2048, "SDXL", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_a1111_sorts_the_file_by_its_base(tmp_path, width, version, architecture):
    path = export_lora(adapter_of(Network(width), ["to_q", "to_k"]), tmp_path, "kohya")
    assert a1111_version(metadata_of(path)) == version
    assert metadata_of(path)["modelspec.architecture"] == architecture


def test_what_the_base_is_known_to_be_counts_more_than_what_its_size_tells(tmp_path):
    state = adapter_state(adapter_of(Network(40), ["to_q", "to_k"]))
    about = About(**{**SDXL.to_dict(), "prediction": "v", "resolution": 1024, "trigger": "sks dog", "title": "Rex"})
    path = export_states({"unet": state}, tmp_path, "kohya", about=about).path
    metadata = metadata_of(path)
    assert a1111_version(metadata) == "SDXL"
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["modelspec.resolution"] == "1024x1024"
    assert metadata["modelspec.trigger_phrase"] == "sks dog"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "Rex"
    assert json.loads(metadata["dash_vision"])["unet"]["launched"] is True


def test_a_base_that_nothing_is_known_of_is_not_called_one():
    state = adapter_state(adapter_of(Network(40), ["to_q", "to_k"]))
    assert infer_about({"model": state}) == UNKNOWN
    assert "ss_base_model_version" not in UNKNOWN.metadata(4, "x")


def test_the_first_text_encoder_of_sdxl_alone_is_called_the_first_of_two(tmp_path):
    state = adapter_state(adapter_of(nn.Sequential(nn.Linear(8, 8)), ["0"]))
    names = {SD1: "lora_te_0.lora_down.weight", SDXL: "lora_te1_0.lora_down.weight"}
    for i, (about, name) in enumerate(names.items()):
        path = export_states({"text_encoder": state}, tmp_path / str(i), "kohya", about=about).path
        assert name in load_file(path)


def test_layers_that_one_name_would_stand_for_are_refused(tmp_path):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a_b = nn.ModuleDict({"c": nn.Linear(8, 8)})
            self.a = nn.ModuleDict({"b_c": nn.Linear(8, 8)})

    adapter = adapter_of(Twins(), ["c", "b_c"])
    with pytest.raises(ValueError, match="6 tensors have 3 names"):
        export_lora(adapter, tmp_path, "kohya")
    assert not list(tmp_path.glob("*.safetensors"))
    assert len(load_file(export_lora(adapter, tmp_path, "diffusers"))) == 4


def test_peft_adapts_the_layers_that_were_adapted_and_no_others_of_that_ending(tmp_path):
    from peft import PeftModel

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))

    model = network()
    adapter = adapter_of(model, r"0")
    assert list(adapter.layers) == ["0"]
    export_lora(adapter, tmp_path, "peft")
    loaded = PeftModel.from_pretrained(network(), str(tmp_path))
    adapted = {name for name, module in loaded.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {"base_model.model.0"}
    x = torch.randn(3, 8)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)


def test_readers_that_leave_layers_out_are_named_and_the_default_targets_name_none():
    default = ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.attn1.to_q"]
    assert remarks({"unet": default}, "kohya", SDXL) == []
    wide = [*default, "conv_in", "time_embedding.linear_1", "add_embedding.linear_1", "up_blocks.0.upsamplers.0.conv"]
    scripts, a1111 = remarks({"unet": wide}, "kohya", SDXL)
    assert (
        "sd-scripts leaves out 3 adapted layers (conv_in, time_embedding.linear_1, add_embedding.linear_1)" in scripts
    )
    assert "A1111 leaves out 2 adapted layers" in a1111
    assert len(remarks({"unet": wide}, "kohya", SD1)) == 1
    assert "InvokeAI" in remarks({"unet": ["mid_block.attn1.to_q"]}, "kohya", SD1)[0]
    assert "kohya's format" in remarks({"unet": default}, "diffusers")[0]
    assert remarks({"transformer": ["x"]}, "diffusers") == []
