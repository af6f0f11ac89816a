"""Bases that cannot be used are refused in one sentence."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import T5Config, T5EncoderModel

from dash_vision.bases.loading import load_base
from dash_vision.files.errors import InputError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/folder/here", "there is no such folder; check the path"),
        ("someone/some-model", "not in the hub cache while HF_HUB_OFFLINE"),
        ("EMPTY", "model_index.json"),
        ("FLUX", "is a FluxPipeline; dash-vision trains Stable Diffusion"),
        ("PICKLE", "not a .safetensors file"),
        ("LORA", "holds no checkpoint of Stable Diffusion"),
        ("CUT", "no complete .safetensors file"),
    ],
)
def test_bases_that_cannot_be_used(tmp_path, name, words):
    from safetensors.torch import save_file

    if name == "EMPTY":
        (tmp_path / "empty").mkdir()
        name = str(tmp_path / "empty")
    elif name == "FLUX":
        (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        name = str(tmp_path)
    elif name == "PICKLE":
        name = str(tmp_path / "model.ckpt")
        torch.save({}, name)
    elif name == "LORA":
        name = str(tmp_path / "lora.safetensors")
        save_file({"unet.x.lora_A.weight": torch.zeros(2, 2)}, name)
    elif name == "CUT":
        name = str(tmp_path / "model.safetensors")
        Path(name).write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match=words) as caught:
        load_base(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "settings", "words"),
    [
        ("sd", {"time_cond_proj_dim": 8}, r"asks for the scale of the guidance, .* \(time_cond_proj_dim 8\)"),
        (
            "sd",
            {"class_embed_type": "timestep"},
            r"asks for a label beside the prompt, .* \(class_embed_type timestep\)",
        ),
        ("sd", {"num_class_embeds": 3}, r"asks for a label beside the prompt, .* \(num_class_embeds 3\)"),
        (
            "sd",
            {"addition_embed_type": "text"},
            r"asks for other features beside the prompt \(addition_embed_type text\)",
        ),
        (
            "sd",
            {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 24},
            r"asks for features of a picture \(encoder_hid_dim_type image_proj\)",
        ),
        ("sd", {"out_channels": 8}, "answers with 8 channels where its VAE has 4"),
        ("sd", {"in_channels": 9}, "takes 9 input channels"),
        ("sd", {"cross_attention_dim": 32}, "reads text of width 32, its text encoders give 24"),
        ("sdxl", {"addition_embed_type": None}, r"asks for other features .*\(addition_embed_type None\)"),
        ("sdxl", {"projection_class_embeddings_input_dim": 72}, "as SDXL's refiner does"),
    ],
)
def test_a_unet_is_refused_by_what_its_settings_ask_for(bases, tmp_path, base, settings, words):
    """By them alone, whatever the model is called: its UNet is saved with the very inputs."""
    folder = shutil.copytree(bases / base, tmp_path / "base")
    config = {**UNet2DConditionModel.load_config(folder / "unet"), **settings}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    with pytest.raises(InputError, match=words):
        load_base(str(folder))


def test_another_text_encoder_than_clip_is_named(bases, tmp_path):
    folder = shutil.copytree(bases / "sd", tmp_path / "base")
    words = T5Config(vocab_size=1051, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    shutil.rmtree(folder / "text_encoder")
    T5EncoderModel(words).save_pretrained(folder / "text_encoder")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("CLIPTextModel", "T5EncoderModel"))
    with pytest.raises(InputError, match="has a T5EncoderModel as its text encoder"):
        load_base(str(folder))
