"""benchmarks.individuals: DreamBooth on individuals of which other pictures exist."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import individuals
from benchmarks.individuals import Arm, Case, Eyes, main, read_plan, to_pixels, way
from dash_vision.miniature.world.scenes import render
from tests.support.tiny.z_image import save_z_image


def test_an_arm_is_a_name_and_flags_and_nothing_else(capsys, tmp_path: Path) -> None:
    assert Arm.parse("LoRA=--dash_k 0 --rank 12") == Arm("LoRA", ("--dash_k", "0", "--rank", "12"))
    assert Arm.parse("LoRA-Dash=").flags == ()
    for wrong in ("LoRA", "=--dash_k 0", "a/b="):
        assert main([str(tmp_path), "--arm", wrong]) == 2
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
    assert case.class_prompts() == [prompt.replace("sks ", "") for prompt in case.prompts()]


def test_true_renders_are_recognised_and_more_alike_than_others(tmp_path: Path) -> None:
    """The measures see what they are meant to see: place and individual, on pictures that need no model."""
    case, other = Case.make(3, tmp_path, 12), Case.make(5, tmp_path, 12)
    eyes = Eyes()
    truth, again, stranger = (
        torch.stack([to_pixels(render(scene)) for scene in scenes])
        for scenes in (case.heldout, case.others, other.heldout)
    )
    assert eyes.place_kept(truth, case.heldout) >= 0.9
    assert eyes.place_kept(truth, case.heldout[1:] + case.heldout[:1]) <= 0.1  # places that they do not show
    same, different = eyes.likeness(again, truth), eyes.likeness(stranger, truth)
    for name in ("CLIP-I", "ViT"):
        assert eyes.likeness(truth, truth)[name] == pytest.approx(1, abs=1e-5)
        assert same[name] > different[name]


def test_pixels_are_scaled_to_minus_one_to_one() -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    expected = values.transpose(2, 0, 1).astype(np.float64) * 2 / 255 - 1
    np.testing.assert_allclose(to_pixels(Image.fromarray(values)).numpy(), expected, atol=1e-6)


def test_the_way_is_0_for_the_base_and_1_for_another_true_render() -> None:
    assert way(0.2, 0.2, 0.7) == 0
    assert way(0.2, 0.7, 0.7) == 1
    assert way(0.2, 0.6, 0.7) == pytest.approx(0.8)


QUICK = "--max_train_steps 3 --prelaunch_steps 1 --num_inference_steps 2 --train_batch_size 1"


def test_a_run_trains_draws_and_scores_once_and_goes_on_from_what_is_there(tmp_path: Path, capsys) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"common: {QUICK}\narms:\n- {{name: LoRA, flags: --dash_k 0}}\n"
        "- {name: Dash, seeds: [0, 1], against: LoRA, flags: --train_text_encoder}\n"
    )
    out = tmp_path / "out"
    arguments = [str(out), "--individuals", "4", "--places", "2", "--plan", str(plan)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "| Dash | LoRA | 1 |" in table  # one pair: seed 1 has no other
    assert "| a true render |" in table
    (row,) = json.loads((out / "scores.json").read_text())["individuals"]
    for name, seeds, method in (("Dash", "01", "dash"), ("LoRA", "0", "lora")):
        assert list(row["arms"][name]) == list(seeds)
        for seed in seeds:
            run = json.loads((out / "4" / name / f"seed-{seed}" / "run.json").read_text())
            assert (run["method"], run["seed"]) == (method, int(seed))
            score = row["arms"][name][seed]
            assert score["trainable"] == run["trainable_parameters"]
            for measure, share in score["way"].items():
                low, high = score["base"][measure], row["another render"][measure]
                assert low + share * (high - low) == pytest.approx(score["likeness"][measure])
            pictures = out / "4" / name / f"seed-{seed}" / "class"
            assert sorted(file.name for file in pictures.iterdir()) == ["00.png", "01.png"]
            assert score["leak"].keys() == score["way"].keys()
    assert row["arms"]["Dash"]["0"]["base"] == row["arms"]["LoRA"]["0"]["base"]
    assert Image.open(out / "sheet.png").width > 64
    assert Image.open(out / "effects.png").width > 64
    written = {file: file.stat().st_mtime_ns for file in (out / "4").rglob("*") if file.is_file()}
    assert main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in (out / "4").rglob("*") if file.is_file()} == written
    plan.write_text(plan.read_text().replace("--dash_k 0", "--dash_k 0 --rank 2"))
    assert main(arguments) == 2
    assert "is a run of other flags than arm LoRA has now" in capsys.readouterr().err


def test_a_flag_that_the_trainer_does_not_have_is_one_sentence(tmp_path: Path, capsys) -> None:
    arguments = [str(tmp_path), "--individuals", "4", "--arm", "A=--dash_kk 3"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: individual 4, arm A: the trainer failed")
    assert "--dash_kk" in said


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("arms: 3", "is no plan"),
        ("arms: [{flags: --rank 4}]", "is no plan"),
        ("arms: [{name: a, flags: 3}]", "is no plan"),
        ("arms: [{name: a}, {name: a, flags: --rank 3}]", "two arms of one name; the arms are a, a"),
        ("arms: [{name: ..}]", "an arm's name is a folder's name"),
        ("arms: [{name: a/b}]", "an arm's name is a folder's name"),
        ("arms: [{name: a, against: b}]", "compares 'b' in a; the arms are a"),
        ("arms: [{name: a}]\npools: [{name: p, against: q, pairs: [[a, b]]}]", "compares 'b' in p; the arms are a"),
        ("arms: [{name: a}]\npools: [{name: p, against: q, pairs: []}]", "is no plan (a pool has no pairs)"),
        ("arms: [{name: a}]\npools: [{name: p, against: q, pairs: [a]}]", "is no plan"),
        ("a: [", "is no plan"),
    ],
)
def test_a_broken_plan_is_one_sentence(text: str, what: str, tmp_path: Path, capsys) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(text)
    assert main([str(tmp_path), "--plan", str(plan)]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["individuals.yaml", "preservation.yaml", "short.yaml"])
def test_the_plans_of_the_repository_are_plans(name: str) -> None:
    arms, comparisons = read_plan(Path(individuals.__file__).with_name(name))
    assert {c.name for c in comparisons} >= {arm.name for arm in arms if arm.against}
    for arm in arms:
        assert "--max_train_steps" in arm.flags


def test_a_base_of_other_pictures_is_refused(tmp_path: Path, capsys) -> None:
    save_z_image(tmp_path / "z-image")
    words = [str(tmp_path / "out"), "--individuals", "0", "--base", str(tmp_path / "z-image")]
    assert main(words) == 2
    assert "individuals are rendered with 64; give a base of 64 pixels" in capsys.readouterr().err
