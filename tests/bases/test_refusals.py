"""Bases that cannot be used are refused in one sentence."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from transformers import T5Config, T5EncoderModel

from dash_vision.bases.loading import load_base
from dash_vision.files.errors import InputError
from tests.support.tiny import save_flux, save_flux2_klein, save_krea2, save_z_image


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/folder/here", "there is no such folder; check the path"),
        ("someone/some-model", "not in the hub cache while HF_HUB_OFFLINE"),
        ("EMPTY", "model_index.json"),
        (
            "FluxKontextPipeline",
            r"is a FluxKontextPipeline; dash-vision trains Stable Diffusion .*, Krea 2 \(Krea2Pipe",
        ),
        ("QwenImageEditPipeline", "is a QwenImageEditPipeline; dash-vision trains Stable Diffusion"),
        ("StableDiffusion3ControlNetPipeline", "is a StableDiffusion3ControlNetPipeline; dash-vision trains"),
        ("PICKLE", "not a .safetensors file"),
        ("LORA", "holds no whole base of Stable Diffusion"),
        ("CUT", "no complete .safetensors file"),
    ],
)
def test_bases_that_cannot_be_used(tmp_path, name, words):
    from safetensors.torch import save_file

    if name == "EMPTY":
        (tmp_path / "empty").mkdir()
        name = str(tmp_path / "empty")
    elif name.endswith("Pipeline"):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
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


def test_a_base_without_its_text_encoder_is_refused_but_sd3_does_without_t5(tiny, tmp_path):
    assert load_base(str(tiny("sd3-without-t5"))).pipeline.text_encoder_3 is None
    folder = tmp_path / "klein"
    shutil.copytree(tiny("flux2-klein"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    with pytest.raises(InputError, match=r"was saved without its text_encoder, which FLUX\.2 klein needs"):
        load_base(str(folder))


def test_a_family_that_the_installed_diffusers_does_not_have_asks_for_a_newer_one(tiny, monkeypatch):
    monkeypatch.setattr(diffusers, "Krea2Pipeline", None)
    monkeypatch.setattr(diffusers, "__version__", "0.39.1")
    asked = "Krea 2 needs diffusers >= 0.40, and 0.39.1 is installed, which has no Krea2Pipeline: pip install --upgrade"
    with pytest.raises(InputError, match=asked):
        load_base(str(tiny("krea2")))


def test_a_transformer_that_takes_more_than_latents_is_refused(tiny, tmp_path):
    """As those of FLUX.1-Fill and of the depth models do, which have the picture beside the noise."""
    folder = tmp_path / "fill"
    shutil.copytree(tiny("flux"), folder)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    model = FluxTransformer2DModel.from_config(config | {"in_channels": 96, "out_channels": 64})
    shutil.rmtree(folder / "transformer")
    model.save_pretrained(folder / "transformer")
    with pytest.raises(InputError, match="takes 96 channels, its VAE makes 16: a model for inpainting"):
        load_base(str(folder))


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda folder: save_flux2_klein(folder, is_distilled=True), "train its base, black-forest-labs/FLUX.2-klein"),
        (lambda folder: save_krea2(folder, is_distilled=True), "train Krea 2 Raw"),
        (lambda folder: save_flux(folder, guidance_embeds=False), "train black-forest-labs/FLUX.1-dev"),
        (lambda folder: save_z_image(folder / "Z-Image-Turbo"), "train Tongyi-MAI/Z-Image"),
    ],
)
def test_a_distilled_base_gets_a_note_and_draws_in_few_steps(tmp_path, save, words):
    base = load_base(str(save(tmp_path)))
    assert words in base.note
    assert base.defaults.num_inference_steps <= 9
    assert base.defaults.guidance_scale <= 1


@pytest.mark.parametrize("name", ["flux2-klein", "flux", "z-image", "krea2"])
def test_a_base_that_is_not_distilled_gets_no_note(tiny, name):
    assert load_base(str(tiny(name))).note is None


def test_another_text_encoder_than_clip_is_named(bases, tmp_path):
    folder = shutil.copytree(bases / "sd", tmp_path / "base")
    words = T5Config(vocab_size=1051, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    shutil.rmtree(folder / "text_encoder")
    T5EncoderModel(words).save_pretrained(folder / "text_encoder")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("CLIPTextModel", "T5EncoderModel"))
    with pytest.raises(InputError, match="has a T5EncoderModel as its text encoder"):
        load_base(str(folder))


def test_a_choice_among_files_that_are_not_there_is_refused(bases, tmp_path):
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"")
    folder = str(bases / "sd")
    for name, options, words in (
        (folder, {"revision": "main"}, "--revision main does nothing here: .* only the hub has revisions"),
        (str(single), {"variant": "fp16"}, "--variant fp16 does nothing here: .* is a single file"),
        (folder, {"single_file_config": folder}, "--single_file_config .* does nothing here"),
        (folder, {"vae_revision": "main"}, "--vae_revision main does nothing here: no other VAE"),
    ):
        with pytest.raises(InputError, match=words):
            load_base(name, **options)


def with_part(base, folder, name, part):
    """A copy of a base with another part of that name."""
    shutil.copytree(base, folder)
    shutil.rmtree(folder / name)
    part.save_pretrained(folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    index[name] = ["diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


def test_a_sampler_of_noise_levels_instead_of_times_is_refused(bases, tmp_path):
    """As CosXL's, which is trained by EDM with the prediction that is called v as well."""
    sampler = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    with pytest.raises(InputError, match="noise levels instead of DDPM's times"):
        load_base(with_part(bases / "sd", tmp_path / "base", "scheduler", sampler))


def test_a_sampler_of_consistency_models_gets_the_note_of_distilled_bases(bases, tmp_path):
    base = load_base(with_part(bases / "sd", tmp_path / "base", "scheduler", diffusers.LCMScheduler()))
    assert "distilled to a few steps" in base.note


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_vae_of_another_class_than_the_pipelines_is_refused(bases, tiny, tmp_path, name):
    """Small ones for previews are put into bases, and fail in training or give latents of another kind."""
    small = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    base = bases / "sd" if name == "sd" else tiny("flux")
    with pytest.raises(InputError, match=r"has a AutoencoderTiny as its vae; .* takes a AutoencoderKL"):
        load_base(with_part(base, tmp_path / "base", "vae", small))
