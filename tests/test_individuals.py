"""benchmarks.individuals: DreamBooth on individuals of which other pictures are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import individuals
from benchmarks.individuals import Arm, Case, main, to_pixels, way
from dash_vision.miniature.report import Judge


def test_an_arm_is_a_name_and_flags_and_nothing_else(capsys, tmp_path: Path) -> None:
    assert Arm.parse("LoRA=--dash_k 0 --rank 12") == Arm("LoRA", ("--dash_k", "0", "--rank", "12"))
    assert Arm.parse("LoRA-Dash=").flags == ()
    for wrong in ("LoRA", "=--dash_k 0", "a/b="):
        assert main([str(tmp_path), "--work", str(tmp_path), "--arm", wrong]) == 2
        assert capsys.readouterr().err.startswith("error: --arm takes NAME=FLAGS")


def test_held_out_places_are_new_and_the_other_render_differs_in_the_pose_alone(tmp_path: Path) -> None:
    case = Case.make(3, tmp_path, 12)
    assert len(case.seen) == 5
    assert not {scene.setting for scene in case.seen} & {scene.setting for scene in case.heldout}
    for one, other in zip(case.heldout, case.others, strict=True):
        assert (one.subject, one.setting) == (other.subject, other.setting)
        assert one.pose != other.pose
    for prompt, scene in zip(case.prompts(), case.heldout, strict=True):
        assert prompt == f"a photo of a sks {case.kind} {scene.setting}"


def test_pixels_are_scaled_to_minus_one_to_one() -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    expected = values.transpose(2, 0, 1).astype(np.float64) * 2 / 255 - 1
    np.testing.assert_allclose(to_pixels(Image.fromarray(values)).numpy(), expected, atol=1e-6)


def test_the_way_is_0_for_the_base_and_1_for_another_true_render() -> None:
    assert way(0.2, 0.2, 0.7) == 0
    assert way(0.2, 0.7, 0.7) == 1
    assert way(0.2, 0.6, 0.7) == pytest.approx(0.8)


def test_a_run_trains_draws_and_scores_once_and_goes_on_from_what_is_there(tmp_path: Path, monkeypatch, capsys) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(individuals, "train_judge", lambda work: Judge().eval())  # random: the numbers mean nothing
    quick = "--max_train_steps 3 --prelaunch_steps 1 --num_inference_steps 2 --train_batch_size 1"
    arguments = [str(tmp_path), "--work", str(tmp_path), "--seeds", "4", "--places", "2"]
    arguments += ["--arm", f"Dash={quick}", "--arm", f"LoRA={quick} --dash_k 0"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "| Dash |" in table
    assert "| LoRA |" in table
    assert "| another true render, through the VAE |" in table
    (row,) = json.loads((tmp_path / "scores.json").read_text())["individuals"]
    for name, method in (("Dash", "lora-dash"), ("LoRA", "lora")):
        assert json.loads((tmp_path / "4" / name / "run.json").read_text())["method"] == method
        for measure, share in row["arms"][name]["way"].items():
            low, high = row["arms"][name]["base"][measure], row["another render"][measure]
            assert low + share * (high - low) == pytest.approx(row["arms"][name]["likeness"][measure])
    assert row["arms"]["Dash"]["base"] == row["arms"]["LoRA"]["base"]
    assert Image.open(tmp_path / "sheet.png").width > 64
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "4").rglob("*") if file.is_file()}
    assert main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "4").rglob("*") if file.is_file()} == written
