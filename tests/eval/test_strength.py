"""An adapter at several strengths: what diffusers scales, and what is measured of it."""

import json

import pytest
import torch
from PIL import Image

from dash_vision.bases.recorded import load_lora
from dash_vision.core.loading import load_adapter
from dash_vision.miniature import clip_path
from eval.__main__ import main
from eval.bases import load_base
from eval.runs import read_run
from eval.sampling import generate
from eval.strength import make, page
from eval.strength.make import Strength

PROMPTS = ("a {} in the snow", "a red {}")


def strength(runs, out, *words, name="dash"):
    common = ["--eval_encoders", str(clip_path()), "--device", "cpu", "--prompts", *PROMPTS]
    return main(["strength", str(runs / name), *common, *words, "-o", str(out)])


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.25, -1.0])
def test_a_strength_multiplies_the_whole_update(runs, scale):
    """B and the shifts times the strength, in an adapter of ours."""
    run = read_run(runs / "dash")
    base, other = load_base(run), load_base(run)
    load_lora(base, run.folder)
    adapter = load_adapter(other.denoiser, run.folder / "dash_adapter.safetensors")
    for _, weights in adapter.weights():
        weights.B.mul_(scale)
        weights.dsigma.mul_(scale)
    x, told = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 24)
    expected = other.denoiser(x, 3, told).sample
    strength = Strength(base.pipeline)
    with strength.at(scale):
        torch.testing.assert_close(base.denoiser(x, 3, told).sample, expected, atol=5e-6, rtol=0)
        for other_scale in (0.0, 2.0):  # for a moment
            with strength.at(other_scale):
                assert not torch.allclose(base.denoiser(x, 3, told).sample, expected, atol=1e-3) or scale == other_scale
        torch.testing.assert_close(base.denoiser(x, 3, told).sample, expected, atol=5e-6, rtol=0)
    for _, weights in adapter.weights():
        weights.B.div_(scale or 1)
        weights.dsigma.div_(scale or 1)
    if scale:
        torch.testing.assert_close(
            base.denoiser(x, 3, told).sample, other.denoiser(x, 3, told).sample, atol=5e-6, rtol=0
        )


def test_at_0_nothing_has_moved(runs, tmp_path, capsys, monkeypatch):
    shown = {}

    def watched(about, inputs, columns, rows, how):
        shown.update(rows)
        return page.sheet(about, inputs, columns, rows, how)

    monkeypatch.setattr(make, "sheet", watched)
    assert strength(runs, tmp_path / "a", "--scales", "1", "-0.0", "1.0000001") == 0
    story = json.loads((tmp_path / "a/strength.json").read_text())
    assert story["scales"] == [0.0, 1.0]
    at = story["values"]
    assert at["0"]["drift"] + at["0"]["leak"] == pytest.approx([0.0] * 15, abs=1e-12)
    assert (len(at["1"]["likeness"]), len(at["1"]["drift"])) == (5, 10)
    assert all(drift > 0 for drift in at["1"]["drift"])
    table = (tmp_path / "a/strength.md").read_text()
    assert table.rstrip() in capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows == ["strength", "---", "0: the base", "1: as trained"]
    mean = sum(at["1"]["likeness"]) / 5
    assert f"| 1: as trained | {mean:.3f} (" in table
    for name in ("sheet.png", "curves.png"):
        assert Image.open(tmp_path / "a" / name).width > 500

    run = read_run(runs / "dash")
    base, settings = load_base(run), {"num_inference_steps": 2, "guidance_scale": run.argument("guidance_scale")}
    for scale in (0.0, 1.0):
        if scale:
            load_lora(base, run.folder)
        drawn = generate(base, ["a sks cat in the snow", "a red sks cat"], 0, [0, 1], 16, settings)
        assert [p.tobytes() for p in shown[scale]] == [p.tobytes() for p in drawn]


@pytest.mark.parametrize(("count", "words"), [(1, "1 picture"), (2, "2 pictures")])
def test_the_sheet_says_how_many_pictures_it_compares_with(monkeypatch, count, words):
    monkeypatch.setattr(page, "draw_sheet", lambda inputs, *others: inputs)
    shown = page.sheet("a cat", [Image.new("RGB", (16, 16))] * count, [], [], "")
    assert shown.note == words


def test_without_encoders_there_is_a_sheet_alone(runs, tmp_path, capsys):
    assert main(["strength", str(runs / "dash"), "--eval_encoders", "none", "--scales", "1", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "sheet.png").is_file()
    assert not (tmp_path / "curves.png").exists()
    assert "Nothing was measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scales", "nan"), "--scales has nan; it takes numbers from -10 to 10"),
        (("--scales", "1", "40"), "--scales has 40"),
        (("--holdout", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(runs, tmp_path, capsys, words, said):
    assert strength(runs, tmp_path / "a", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a").exists()
