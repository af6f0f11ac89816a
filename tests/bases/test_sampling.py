"""Sampling, against the stock pipelines."""

import pytest
import torch
from PIL import Image

from dash_vision.bases.loading import load_base
from dash_vision.bases.sampling import Sampling, decode_latents, encode_inputs, sample, starting_noise
from dash_vision.runs.seeds import stream
from tests.support.dreambooth import settings, train


@pytest.mark.parametrize("base", ["sd", "sd-v", "sdxl"])
def test_samples_are_those_of_the_stock_pipeline(bases, base):
    ours = load_base(str(bases / base))
    how = Sampling(steps=3, guidance=4.0, size=(16, 16), batch_size=2)
    prompts = ["a cat", "a dog", "a clock"]
    pictures = sample(ours, prompts, 0, [0, 1, 2], how, torch.device("cpu"))
    noise = starting_noise(ours, 0, [0, 1, 2], (16, 16))
    for i, prompt in enumerate(prompts):
        stock = ours.pipeline(
            prompt, width=16, height=16, num_inference_steps=3, guidance_scale=4.0, latents=noise[i : i + 1]
        ).images[0]
        worst = max(abs(a - b) for a, b in zip(stock.tobytes(), pictures[i].tobytes(), strict=True))
        assert worst <= 1  # rounding


@pytest.mark.parametrize("name", ["flux2-klein", "sd3"])
def test_prompts_that_were_kept_are_drawn_without_the_text_encoders(tiny, name):
    base, how, cpu = load_base(str(tiny(name))), Sampling(2, 3.0, (16, 16)), torch.device("cpu")
    prompts = ["a cat", "a dog"]
    before = sample(base, prompts, 0, [0, 1], how, cpu)
    assert before[0].tobytes() != before[1].tobytes()
    base.inputs |= encode_inputs(base, prompts, cpu)
    base.drop_text_encoders()
    assert base.text_encoders() == []
    assert [one.tobytes() for one in sample(base, prompts, 0, [0, 1], how, cpu)] == [one.tobytes() for one in before]


def test_a_picture_too_large_to_decode_at_once_is_decoded_in_tiles(bases, monkeypatch, caplog):
    base = load_base(str(bases / "sd"))
    vae = base.pipeline.vae
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    whole, decode = decode_latents(base, latents), vae.decode

    def scarce(z):
        if not vae.use_tiling:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(z)

    monkeypatch.setattr(vae, "decode", scarce)
    # Latents of one tile's size are one tile: the same picture.
    assert torch.equal(decode_latents(base, latents), whole)
    assert "in tiles" in caplog.text
    assert not vae.use_tiling


def test_trap_10_seed_zero_is_a_seed_and_methods_share_their_noise(bases, tmp_path):
    base = load_base(str(bases / "sd"))
    a, b, c = (starting_noise(base, seed, [0], (16, 16)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    # With learning rate 0 nothing is learned, so base and trained rows are equal only if their noise is.
    config = settings(
        bases, tmp_path / "out", learning_rate=0.0, validation_prompt=["a photo of sks cat", "a sks cat in the snow"]
    )
    train(config)
    with Image.open(tmp_path / "out/samples.png") as sheet:
        tile, gap, left, margin = 192, 12, 28 + 132, 28
        bottom = sheet.height - margin - 17 - 8 - gap  # one line of footnote
        rows = [sheet.crop((left, y - tile, left + 2 * tile + gap, y)) for y in (bottom, bottom - tile - gap)]
    assert len(rows[0].getcolors(1 << 20)) > 50
    assert rows[0].tobytes() == rows[1].tobytes()


def test_noise_follows_from_seed_and_number_alone(bases):
    base = load_base(str(bases / "sd"))
    many = starting_noise(base, 3, [0, 1, 7], (16, 24))
    assert many.shape == (3, 4, 12, 8)
    expected = torch.randn(4, 12, 8, generator=stream(3, "sample", 7))
    assert torch.equal(starting_noise(base, 3, [7], (16, 24))[0], expected)
    assert torch.equal(many[2], expected)
