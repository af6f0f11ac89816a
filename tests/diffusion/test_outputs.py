"""Whole DreamBooth runs on tiny local bases of the real classes, and what they leave behind."""

import json
import os

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dash_vision import load_adapter
from dash_vision.bases.loading import load_base
from dash_vision.files.errors import InputError
from tests.support.dreambooth import prepare, settings, train
from tests.support.models import unet_inputs


def unet_output(unet):
    with torch.no_grad():
        return unet(**unet_inputs(unet)).sample


@pytest.mark.parametrize("base", ["sd", "sd-v", "sdxl"])
def test_stock_diffusers_loads_what_was_trained(bases, tmp_path, base):
    lines = []
    run = train(settings(bases, tmp_path / "out", base, train_text_encoder=base != "sd-v"), lines)
    assert run.training.schedule.launched
    assert run.training.step == 8
    out = tmp_path / "out"
    kind = StableDiffusionXLPipeline if base == "sdxl" else StableDiffusionPipeline
    trained = unet_output(run.base.pipeline.unet)
    ids = run.base.family.tokenize(run.base.pipeline, ["a sks cat in the snow"])
    states = run.base.family.encode_tokens(run.base.text_encoders(), ids)

    for weights in ({}, {"weight_name": "out.safetensors", "subfolder": "kohya"}):
        stock = kind.from_pretrained(bases / base)
        untouched = unet_output(stock.unet)
        stock.load_lora_weights(str(out), **weights)
        assert (unet_output(stock.unet) - trained).abs().max() < 1e-5
        assert (untouched - trained).abs().max() > 1e-2  # there was something to be lost
        embeds = stock.encode_prompt(
            "a sks cat in the snow", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        assert torch.allclose(embeds[0], states["prompt_embeds"], atol=1e-5)
        if base == "sdxl":
            assert torch.allclose(embeds[2], states["text_embeds"], atol=1e-5)

    native = load_base(str(bases / base)).pipeline.unet
    load_adapter(native, out / "dash_adapter.safetensors", component="unet")
    assert (unet_output(native) - trained).abs().max() < 1e-5
    assert any(line.startswith(f"base: {bases / base}") for line in lines)
    assert 'prompt: "a photo of sks cat"' in "\n".join(lines)


def test_everything_a_run_leaves(bases, tmp_path):
    out = tmp_path / "my cat"
    run = train(settings(bases, out, seed=0, checkpointing_steps=3, checkpoints_total_limit=1))
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "README.md",
        "checkpoint-8.safetensors",
        "dash_adapter.safetensors",
        "journal.jsonl",
        "kohya/my cat.safetensors",
        "pytorch_lora_weights.safetensors",
        "run.json",
        "samples.png",
    ]
    story = json.loads((out / "run.json").read_text())
    assert story["launch"]["step"] == 4
    assert story["launch"]["layers"] == len(run.adapters["unet"].layers)
    assert story["seed"] == story["arguments"]["seed"] == 0
    assert story["arguments"]["learning_rate"] == 1e-2
    assert len(story["losses"]) == story["steps"] == 8
    assert {"torch", "diffusers", "dash-vision"} <= story["versions"].keys()
    layers = run.adapters["unet"].layers.values()
    expected = sum(2 * (x.in_features + x.out_features) + 3 for x in layers)  # r (in + out) + k
    assert story["trainable_parameters"] == expected
    card = (out / "README.md").read_text()
    assert "samples.png" in card
    assert "load_lora_weights" in card
    with Image.open(out / "samples.png") as sheet:
        assert sheet.format == "PNG"


def test_the_card_s_code_runs(bases, tmp_path):
    out = tmp_path / "out"
    train(settings(bases, out, validation_prompt=['a "quoted" cat, it\'s fine']))
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert code.count("\n") == 4
    here = os.getcwd()
    os.chdir(out)
    try:
        exec(compile(code, "card", "exec"), {})
    finally:
        os.chdir(here)
    assert (out / "out.png").is_file()


def test_k_zero_is_plain_lora(bases, tmp_path):
    run = train(settings(bases, tmp_path / "out", dash_k=0))
    assert not run.training.schedule.launched
    assert run.training.launch is None
    assert json.loads((tmp_path / "out/run.json").read_text())["method"] == "lora"
    weights = load_file(tmp_path / "out/pytorch_lora_weights.safetensors")
    assert {t.shape[0] for k, t in weights.items() if k.endswith("lora_A.weight")} == {2}


def test_the_same_seed_gives_the_same_files(bases, tmp_path):
    for name in "ab":
        train(settings(bases, tmp_path / name / "out", lora_dropout=0.2, random_flip=True))
    for file in (
        "dash_adapter.safetensors",
        "pytorch_lora_weights.safetensors",
        "kohya/out.safetensors",
        "samples.png",
    ):
        assert (tmp_path / "a/out" / file).read_bytes() == (tmp_path / "b/out" / file).read_bytes()
    other = train(settings(bases, tmp_path / "c", seed=1))
    first = load_file(tmp_path / "a/out/dash_adapter.safetensors")
    second = load_file(tmp_path / "c/dash_adapter.safetensors")
    assert any(not torch.equal(first[k], second[k]) for k in first)
    assert other.plan.settings.seed == 1


def test_two_runs_do_not_share_a_folder(bases, tmp_path):
    first = prepare(settings(bases, tmp_path / "out"))
    with pytest.raises(InputError, match="another run is writing"):
        prepare(settings(bases, tmp_path / "out"))
    first.close()
    assert prepare(settings(bases, tmp_path / "out")).training.step == 0


def test_an_output_folder_that_cannot_be_written(bases, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to --output_dir"):
        prepare(settings(bases, tmp_path / "file" / "out"))


@pytest.mark.parametrize(("base", "prediction"), [("sd", "epsilon"), ("sd-v", "v")])
def test_files_say_what_their_base_predicts_and_which_words_call_the_subject(bases, tmp_path, base, prediction):
    train(settings(bases, tmp_path / "out", base, max_train_steps=5))
    for file in ("pytorch_lora_weights.safetensors", "kohya/out.safetensors"):
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            metadata = opened.metadata()
        assert metadata["modelspec.prediction_type"] == prediction
        assert metadata["modelspec.resolution"] == "16x16"
        assert metadata["modelspec.trigger_phrase"] == "sks cat"
