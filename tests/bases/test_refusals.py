"""Bases that cannot be used are refused in one sentence."""

from pathlib import Path

import pytest
import torch

from dash_vision.bases.families import load_base
from dash_vision.files.errors import InputError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/folder/here", "there is no such folder; check the path"),
        ("someone/some-model", "not in the hub cache while HF_HUB_OFFLINE"),
        ("EMPTY", "model_index.json"),
        ("FLUX", "is a FluxPipeline; dash-vision trains Stable Diffusion"),
        ("PICKLE", "not a .safetensors file"),
        ("LORA", "holds no Stable Diffusion"),
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
