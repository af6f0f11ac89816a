"""Families of bases, against diffusers: prompts, pictures, revisions and single files."""

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline

from dash_vision.bases.families import load_base
from dash_vision.pictures.crops import CropInfo
from tests.support.single_file import save_single_file


@pytest.mark.parametrize("base", ["sd", "sdxl"])
def test_prompts_and_pictures_are_encoded_as_diffusers_does(bases, base):
    ours = load_base(str(bases / base))
    prompts = ["a photo of sks cat", "a red dog on the beach"]
    ids = ours.family.tokenize(ours.pipeline, prompts)
    states = ours.family.encode_tokens(ours.text_encoders(), ids)
    stock = ours.pipeline.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(states["prompt_embeds"], stock[0])
    if base == "sdxl":
        assert torch.equal(states["text_embeds"], stock[2])
        infos = [CropInfo((100, 80), (3, 5))]
        expected = ours.pipeline._get_add_time_ids((100, 80), (3, 5), (32, 16), torch.float32, 32)
        assert torch.equal(ours.family.picture_conditions(infos, (16, 32))["time_ids"], expected)


def test_revisions_pin_what_is_fetched_from_the_hub(bases, monkeypatch):
    """Of the index, of the pipeline, and of a VAE of its own."""
    asked = {}

    def recording(owner, name):
        original = getattr(owner, name)

        def call(where, *more, **options):
            asked.setdefault((owner.__name__, name), []).append(options.pop("revision", None))
            return original(where, *more, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        (DiffusionPipeline, "load_config"),
        (StableDiffusionPipeline, "from_pretrained"),
        (AutoencoderKL, "from_pretrained"),
    ):
        recording(owner, name)
    load_base(str(bases / "sd"), revision="abc", vae=str(bases / "sd" / "vae"), vae_revision="def")
    # The first calls are ours, later ones diffusers' own for the parts; the VAE of its own comes last.
    assert asked["DiffusionPipeline", "load_config"][0] == "abc"
    assert asked["StableDiffusionPipeline", "from_pretrained"] == ["abc"]
    assert asked["AutoencoderKL", "from_pretrained"][-1] == "def"


@pytest.mark.parametrize("base", ["sd", "sdxl"])
def test_a_single_file_is_the_same_base(bases, tmp_path, base):
    whole = load_base(str(bases / base))
    path = save_single_file(whole.pipeline, tmp_path / "model.safetensors")
    single = load_base(str(path), single_file_config=str(bases / base))
    assert single.family is whole.family
    for name, network in whole.components().items():
        state = single.components()[name].state_dict()
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items()), name
