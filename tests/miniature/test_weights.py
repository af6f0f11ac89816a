"""The shipped weights, in the eyes of stock diffusers and transformers."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from dash_vision import miniature
from dash_vision.miniature.train.report import retrieval
from dash_vision.miniature.world import scenes, vocabulary
from tests.support.miniature import load_weights

# ---------------------------------------------------------------------------------------------- the shipped weights


def test_missing_weights_are_an_error_that_says_how_to_make_them(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(miniature, "WEIGHTS", tmp_path)
    finders = (miniature.pipeline_path, lambda: miniature.pipeline_path(miniature.FLOW), miniature.clip_path)
    loaders = (miniature.load_pipeline, miniature.load_flow_pipeline, miniature.load_clip)
    for find in finders + loaders:
        with pytest.raises(FileNotFoundError, match=r"dash_vision\.miniature build"):
            find()


@pytest.mark.parametrize(
    ("find", "megabytes"),
    [
        (miniature.pipeline_path, 24),
        (lambda: miniature.pipeline_path(miniature.FLOW), 24),
        (miniature.clip_path, 4),
    ],
)
def test_the_shipped_folders_are_small_and_hold_no_pickle(find, megabytes: int) -> None:
    files = [path for path in find().rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".jinja"}
    assert sum(path.stat().st_size for path in files) <= megabytes * 1e6


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(str(miniature.pipeline_path()))
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def flow_pipeline():
    from diffusers import ZImagePipeline

    loaded = ZImagePipeline.from_pretrained(str(miniature.pipeline_path(miniature.FLOW)))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def sample(pipeline, prompts: list[str], steps: int = 12) -> np.ndarray:
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    options = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "np", "height": 64, "width": 64}
    return pipeline(prompts, generator=generators, **options).images


@pytest.mark.parametrize("name", ["pipeline", "flow_pipeline"])
def test_the_shipped_pipelines_load_by_stock_diffusers_and_follow_the_prompt(name: str, request) -> None:
    pipeline = request.getfixturevalue(name)
    places = ("in the jungle", "in the snow", "floating on top of water", "on top of pink fabric")
    pictures = sample(pipeline, [f"a photo of a black clock {place}" for place in places])
    assert pictures.shape == (4, 64, 64, 3)
    assert np.isfinite(pictures).all()
    jungle, snow, water, pink = pictures.reshape(4, -1, 3).mean(1)
    assert snow.min() > jungle.max()  # bright against dark
    assert jungle.argmax() == 1
    assert water.argmax() == 2
    assert pink.argmax() == 0


def test_loading_in_half_precision_gives_the_same_model(pipeline) -> None:
    other = miniature.load_pipeline()
    assert all(torch.equal(a, b) for a, b in zip(other.unet.parameters(), pipeline.unet.parameters(), strict=True))
    half = miniature.load_pipeline(torch_dtype=torch.float16)
    assert next(half.unet.parameters()).dtype == torch.float16


def test_the_shipped_tokenizers_have_one_token_for_every_word(pipeline, flow_pipeline) -> None:
    for word in vocabulary.world_words():
        for tokenizer in (pipeline.tokenizer, flow_pipeline.tokenizer):
            assert len(tokenizer(word).input_ids) == (5 if word == "two-tone" else 3), word


def test_both_shipped_bases_have_one_vae(pipeline, flow_pipeline) -> None:
    other = dict(flow_pipeline.vae.named_parameters())
    assert all(torch.equal(value, other[name]) for name, value in pipeline.vae.named_parameters())
    assert pipeline.vae.config.scaling_factor == flow_pipeline.vae.config.scaling_factor


def test_the_shipped_clip_shares_the_pipelines_text_encoder_and_knows_pictures_from_captions(pipeline) -> None:
    from transformers import CLIPProcessor

    clip, processor = miniature.load_clip(), CLIPProcessor.from_pretrained(miniature.clip_path())
    text = dict(clip.text_model.named_parameters())
    for name, parameter in pipeline.text_encoder.named_parameters():
        assert torch.equal(parameter, text[name.removeprefix("text_model.")])
    shown = [scenes.random_scene(Random(f"fresh {i}")) for i in range(50)]  # none of them is a training scene
    inputs = processor(
        text=[scenes.describe(scene, two=True, pattern=True, mark=True) for scene in shown],
        images=[scenes.render(scene) for scene in shown],
        padding="max_length",
        return_tensors="pt",
    )
    assert inputs["pixel_values"].shape == (50, 3, 64, 64)
    with torch.no_grad():
        found = clip(**inputs)
    right = retrieval(found.image_embeds, found.text_embeds, ways=50)
    assert min(right) > 40 / 50  # docs/miniature.md: about nine in ten of twice as many


def test_the_shipped_text_encoder_has_the_names_that_every_version_of_transformers_reads() -> None:
    names = [name for name in load_weights(miniature.pipeline_path()) if name.startswith("text_encoder.")]
    assert names
    assert all(name.startswith("text_encoder.text_model.") for name in names)
