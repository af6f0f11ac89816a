"""Whatever a library raises while a base is loaded ends in one sentence, derived from the files that are there."""

import json
import re
import shutil

import pytest
import torch
from diffusers.utils import is_scipy_available
from safetensors.torch import load_file, save_file

from dash_vision.bases.loading import load_base
from dash_vision.bases.reasons import variant_of
from dash_vision.files.errors import InputError
from tests.support.single_file import save_single_file

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n"


@pytest.fixture
def base(bases, tmp_path):
    """A copy of the base sd that a test may break."""
    return shutil.copytree(bases / "sd", tmp_path / "base")


def refusal(base, **options):
    with pytest.raises(InputError) as caught:
        load_base(str(base), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# -- folders


def rename(part, ending):
    return lambda base: (base / part / WEIGHTS[part]).rename(
        base / part / WEIGHTS[part].replace(".safetensors", ending)
    )


def shards(base):
    """The UNet in two parts, of which one did not arrive."""
    whole = base / "unet" / WEIGHTS["unet"]
    state, (first, second) = load_file(whole), (f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))
    names = {key: first if i < 9 else second for i, key in enumerate(state)}
    save_file({key: state[key] for key in names if names[key] == first}, base / "unet" / first)
    index = {"metadata": {}, "weight_map": names}
    (base / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()


def without_a_tensor(base, part):
    file = base / part / WEIGHTS[part]
    state = load_file(file)
    state.pop(next(key for key in state if key.endswith("weight")))
    save_file(state, file, {"format": "pt"})


def other_shape(base, part):
    file = base / part / WEIGHTS[part]
    state = load_file(file)
    key = next(key for key in state if key.endswith("weight"))
    save_file({**state, key: state[key][:1].clone()}, file, {"format": "pt"})


def sampler(name):
    def change(base):
        for file in (base / "model_index.json", base / "scheduler" / "scheduler_config.json"):
            file.write_text(file.read_text().replace("DDIMScheduler", name))

    return change


BROKEN = {
    "only fp16 files": (rename("unet", ".fp16.safetensors"), "unet/ holds only fp16 files; give --variant fp16"),
    "a pickle": (rename("vae", ".bin"), r"vae/ holds only diffusion_pytorch_model.bin, a pickle.*save_pretrained"),
    "a missing shard": (shards, "unet/ lacks diffusion_pytorch_model-00002-of-00002.safetensors"),
    "a missing folder": (lambda base: shutil.rmtree(base / "text_encoder"), "its folder text_encoder/ is missing"),
    "no weights": (lambda base: (base / "vae" / WEIGHTS["vae"]).unlink(), "vae/ holds no weights"),
    "no configuration": (lambda base: (base / "unet" / "config.json").unlink(), "unet/config.json is missing"),
    "no sampler": (lambda base: (base / "scheduler/scheduler_config.json").unlink(), "its folder scheduler/ is empty"),
    "no part": (lambda base: edit(base / "model_index.json", unet=[None, None]), "names no unet"),
    "no tokenizer": (lambda base: (base / "tokenizer/tokenizer.json").unlink(), "tokenizer of .* has 2 words"),
    "half a tokenizer": (lambda base: (base / "tokenizer/tokenizer_config.json").unlink(), r"up to 1e\+30 tokens"),
    "a lost tensor": (
        lambda base: without_a_tensor(base, "unet"),
        r"its unet lack 1 of its tensors \(conv_in.weight\)",
    ),
    "a lost word": (lambda base: without_a_tensor(base, "text_encoder"), "its text_encoder lack 1 of its tensors"),
    "another shape": (lambda base: other_shape(base, "vae"), r"the weights in vae/ do not fit its config\.json"),
    "a sampler that needs scipy": (
        sampler("LMSDiscreteScheduler"),
        "its LMSDiscreteScheduler needs scipy, which is not installed: pip install scipy",
    ),
    "an unknown sampler": (
        sampler("NewScheduler"),
        "its scheduler is a NewScheduler, which diffusers .* does not have",
    ),
    "a part with code of its own": (
        lambda base: edit(base / "model_index.json", unet=["my_unet", "MyUNet"]),
        "my_unet is not one of the libraries",
    ),
    "a flow": (sampler("FlowMatchEulerDiscreteScheduler"), "has a noise process of its own"),
    "an EDM": (sampler("EDMEulerScheduler"), "has a noise process of its own"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_says_what_is_wrong_with_it(base, case):
    if case.endswith("scipy") and is_scipy_available():
        pytest.skip("scipy is installed")
    change, words = BROKEN[case]
    change(base)
    assert re.search(words, refusal(base))


FILES = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"]
FILES += [f"{part}/{file}" for part, weights in WEIGHTS.items() for file in ("config.json", weights)]


@pytest.mark.parametrize("damage", ["cut", "empty", "pointer"])
def test_every_damaged_file_is_named(base, damage):
    for name in FILES:
        file = base / name
        content = file.read_bytes()
        file.write_bytes({"cut": content[:-7], "empty": b"", "pointer": POINTER.encode()}[damage])
        said = refusal(base)
        assert name in said, name
        assert damage != "pointer" or name == "model_index.json" or "git lfs pull" in said
        file.write_bytes(content)
    load_base(str(base))


def test_a_variant_is_asked_of_the_parts_that_have_it(base):
    assert "has no fp16 files; leave out --variant fp16" in refusal(base, variant="fp16")
    rename("unet", ".fp16.safetensors")(base)
    assert load_base(str(base), variant="fp16").specification["variant"] == "fp16"
    assert "give --variant fp16" in refusal(base, variant="bf16")


def test_parts_that_are_never_used_are_not_loaded(base):
    edit(
        base / "model_index.json",
        feature_extractor=["transformers", "CLIPImageProcessor"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        requires_safety_checker=True,
    )
    assert load_base(str(base)).pipeline.image_encoder is None


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model.safetensors", None),
        ("model.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", None),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "fp16"),
    ],
)
def test_a_variant_is_read_from_a_files_name(name, variant):
    assert variant_of(name) == variant


# -- single files


def test_a_single_file_says_what_it_lacks(bases, tmp_path):
    file = save_single_file(load_base(str(bases / "sdxl")).pipeline, tmp_path / "model.safetensors")
    whole = load_file(file)
    for lost, words in (
        ("first_stage_model.", "holds no weights of a AutoencoderKL"),
        ("first_stage_model.quant_conv.bias", "lacks some tensors"),
        ("model.diffusion_model.label_emb.0.0.bias", "lacks the tensor label_emb"),
        ("conditioner.embedders.1.model.ln_final.bias", "lacks some tensors"),
    ):
        save_file({key: tensor for key, tensor in whole.items() if not key.startswith(lost)}, file)
        assert words in refusal(file, single_file_config=str(bases / "sdxl")), lost


def test_a_single_file_without_configuration_says_where_one_is_looked_for(bases, tmp_path):
    file = save_single_file(load_base(str(bases / "sd")).pipeline, tmp_path / "model.safetensors")
    assert "give --single_file_config" in refusal(file)
    assert "has no model_index.json" in refusal(file, single_file_config=str(tmp_path))


# -- another VAE


def test_a_vae_that_cannot_be_loaded_is_named(bases, tmp_path):
    said = refusal(bases / "sd", vae=str(bases / "sd"))
    assert f"cannot load the VAE {bases / 'sd'}: it is the folder of a whole base; give {bases / 'sd' / 'vae'}" in said
    save_file({"a": torch.zeros(1)}, tmp_path / "vae.safetensors")
    assert "give a .safetensors file with a VAE" in refusal(bases / "sd", vae=str(tmp_path / "vae.safetensors"))
