"""Another VAE than the base's own: it has to make the latents that the base was trained on."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from dash_vision.bases.loading import load_base
from dash_vision.files.errors import InputError
from tests.support.single_file import save_single_file


@pytest.fixture(scope="module")
def xl(tiny):
    """SDXL with the scaling factor of the published one, which is not diffusers' default."""
    folder = tiny("sdxl-v")
    assert AutoencoderKL.load_config(folder / "vae")["scaling_factor"] == 0.13025
    return folder


def other(folder, **settings):
    """A VAE with the settings of the one in `folder`, and with others."""
    torch.manual_seed(5)
    return AutoencoderKL.from_config({**AutoencoderKL.load_config(folder / "vae"), **settings})


@pytest.mark.parametrize("names", ["first_stage_model.", "", "diffusers"])
def test_a_file_has_the_settings_of_the_bases_own_vae(xl, tmp_path, names):
    """It holds none itself; diffusers would take those of SD 1.5."""
    base, vae = load_base(str(xl)), other(xl)
    if names == "diffusers":
        tensors = vae.state_dict()
    else:
        base.pipeline.register_modules(vae=vae)
        whole = load_file(save_single_file(base.pipeline, tmp_path / "whole.safetensors"))
        tensors = {
            names + key.removeprefix("first_stage_model."): tensor
            for key, tensor in whole.items()
            if key.startswith("first_stage_model.")
        }
    save_file(tensors, tmp_path / "vae.safetensors")
    loaded = load_base(str(xl), vae=str(tmp_path / "vae.safetensors")).pipeline.vae
    assert loaded.config.scaling_factor == 0.13025
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scaling_factor": 0.18215}, "has scaling_factor 0.18215, the base's own has 0.13025"),
        ({"latent_channels": 16}, "has latent_channels 16, the base's own has 4"),
        ({"shift_factor": 0.1}, "has shift_factor 0.1, the base's own has"),
        (
            {
                "down_block_types": ["DownEncoderBlock2D"] * 3,
                "up_block_types": ["UpDecoderBlock2D"] * 3,
                "block_out_channels": [8, 8, 8],
                "norm_num_groups": 4,
            },
            "has down_block_types",
        ),
    ],
)
def test_a_vae_of_other_latents_is_refused(xl, tmp_path, settings, words):
    other(xl, **settings).save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match=words):
        load_base(str(xl), vae=str(tmp_path / "vae"))


def test_a_vae_of_another_class_or_with_lost_tensors_is_refused(xl, tmp_path):
    AutoencoderTiny().save_config(tmp_path / "t")
    with pytest.raises(InputError, match="is a AutoencoderTiny; this base takes a AutoencoderKL"):
        load_base(str(xl), vae=str(tmp_path / "t"))
    other(xl).save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({key: value for key, value in state.items() if key != "encoder.conv_in.weight"}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"of its VAE lack 1 of its tensors \(encoder\.conv_in\.weight\)"):
        load_base(str(xl), vae=str(tmp_path / "vae"))
    save_file(
        {key: value for key, value in state.items() if key != "encoder.conv_in.weight"}, tmp_path / "v.safetensors"
    )
    with pytest.raises(InputError, match="it lacks tensors of one"):
        load_base(str(xl), vae=str(tmp_path / "v.safetensors"))


def test_a_folder_with_one_variant_is_loaded(xl, tmp_path):
    vae = other(xl)
    vae.save_pretrained(tmp_path / "vae", variant="fp16")
    loaded = load_base(str(xl), vae=str(tmp_path / "vae")).pipeline.vae
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in loaded.state_dict().items())
