"""Families of bases, against diffusers: prompts, pictures, revisions and single files."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from dash_vision.bases.loading import load_again, load_base
from dash_vision.files.errors import InputError
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
    """Of the index, of the files, and of a VAE of its own."""
    asked = []

    def load_config(where, **options):
        asked.append(("index", options.get("revision")))
        return original(str(bases / "sd"))

    def download(where, **options):
        asked.append(("files", options["revision"]))
        return str(bases / "sd")

    def load_vae(where, **options):
        asked.append(("vae", options.pop("revision", None)))
        return own(where, **options)

    original, own = DiffusionPipeline.load_config, AutoencoderKL.from_pretrained
    monkeypatch.setattr(DiffusionPipeline, "load_config", load_config)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", load_vae)
    load_base("someone/base", revision="abc", vae=str(bases / "sd" / "vae"), vae_revision="def")
    # Others are of what has arrived by then.
    assert asked[:2] == [("index", "abc"), ("files", "abc")]
    assert asked[-1] == ("vae", "def")


def test_what_is_loaded_again_is_looked_for_in_the_same_cache(bases, tmp_path, monkeypatch):
    asked = []

    def load_config(where, **options):
        asked.append(options.get("cache_dir"))
        return original(str(bases / "sd"))

    def download(where, **options):
        asked.append(options["cache_dir"])
        return str(bases / "sd")

    original = DiffusionPipeline.load_config
    monkeypatch.setattr(DiffusionPipeline, "load_config", load_config)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    monkeypatch.chdir(tmp_path)
    base = load_base("someone/base", cache_dir="models")
    assert asked[:2] == [str(tmp_path / "models")] * 2
    asked.clear()
    monkeypatch.chdir(bases)
    load_again(base.specification)
    assert asked[:2] == [str(tmp_path / "models")] * 2


@pytest.mark.parametrize(("size", "resolution"), [([8, 8], 16), ([8, 16], None), (None, None), ("8", None)])
def test_a_unet_states_the_side_of_a_square(bases, tmp_path, size, resolution):
    folder = shutil.copytree(bases / "sd", tmp_path / "base")
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": size}))
    if resolution:
        assert load_base(str(folder)).resolution == resolution
        return
    with pytest.raises(InputError, match="does not say at which size it was trained"):
        load_base(str(folder))


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
