"""benchmarks.individuals: DreamBooth on individuals of which other pictures are known."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import individuals
from benchmarks.effects import Comparison, effects, markdown
from benchmarks.individuals import Arm, Case, Eyes, main, read_plan, to_pixels, way
from dash_vision.drawing.plot import Estimate, draw_forest
from dash_vision.miniature.world.scenes import render
from eval.scores import student


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
        f"common: {QUICK}\narms:\n- {{name: LoRA, flags: --dash_k 0}}\n- {{name: Dash, seeds: [0, 1], against: LoRA}}\n"
    )
    out = tmp_path / "out"
    arguments = [str(out), "--individuals", "4", "--places", "2", "--plan", str(plan)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "| Dash | LoRA | 1 |" in table  # one pair: seed 1 has no other
    assert "| a true render |" in table
    (row,) = json.loads((out / "scores.json").read_text())["individuals"]
    for name, seeds, method in (("Dash", "01", "lora-dash"), ("LoRA", "0", "lora")):
        assert list(row["arms"][name]) == list(seeds)
        for seed in seeds:
            run = json.loads((out / "4" / name / f"seed-{seed}" / "run.json").read_text())
            assert (run["method"], run["seed"]) == (method, int(seed))
            score = row["arms"][name][seed]
            assert score["trainable"] == run["trainable_parameters"]
            for measure, share in score["way"].items():
                low, high = score["base"][measure], row["another render"][measure]
                assert low + share * (high - low) == pytest.approx(score["likeness"][measure])
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


def test_the_plan_of_the_repository_is_one() -> None:
    arms, comparisons = read_plan(Path(individuals.__file__).with_name("individuals.yaml"))
    assert {c.name for c in comparisons} >= {arm.name for arm in arms if arm.against}
    for arm in arms:
        assert "--max_train_steps" in arm.flags


def test_a_forest_plot_puts_estimates_where_their_values_lie() -> None:
    """The blue dots of -10, 0 and +10 stand in this order at equal distances, the middle one on the line of zero."""
    estimates = [Estimate(v, v, v) for v in (-10.0, 0.0, 10.0)]
    pixels = np.asarray(draw_forest(["points"], {"all": [("row", [e]) for e in estimates]}).convert("RGB")).astype(int)
    blue = (pixels[..., 2] > 180) & (pixels[..., 0] < 90)
    rows = np.flatnonzero(blue.any(axis=1))
    dots = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    left, middle, right = (np.flatnonzero(blue[dot].any(axis=0)).mean() for dot in dots)
    assert left < middle < right
    assert middle - left == pytest.approx(right - middle, abs=2)


def score(way: float, place: float = 1.0) -> dict:
    return {"way": {"CLIP-I": way, "ViT": way}, "place": place}


def test_arms_are_compared_in_pairs_and_seeds_of_one_individual_count_once() -> None:
    rows: list = [
        {"arms": {"a": {"0": score(0.50), "1": score(0.70)}, "b": {"0": score(0.40), "1": score(0.50)}}},  # 10, 20
        {"arms": {"a": {"0": score(0.30), "2": score(0.9)}, "b": {"0": score(0.35)}}},  # -5; seed 2 has no pair
        {"arms": {"a": {"0": score(0.60, 0.5)}, "b": {"0": score(0.50)}}},  # 10
    ]
    rows[0]["another render"] = {"CLIP-I": 1.0, "ViT": 1.0}
    (found,) = effects(rows, [Comparison("a", "b", (("a", "b"),))])
    assert (found.arm, found.against, found.pairs) == ("a", "b", 4)
    estimate = found.outcomes["way by CLIP-I"]
    assert estimate.values == pytest.approx([15, -5, 10])
    assert estimate.mean == pytest.approx(20 / 3)
    # Student's t by hand: standard deviation of 15, -5, 10 is sqrt((8.33^2 + 11.67^2 + 3.33^2) / 2), t(2) is 4.303.
    half = 4.303 * (((25 / 3) ** 2 + (35 / 3) ** 2 + (10 / 3) ** 2) / 2) ** 0.5 / 3**0.5
    assert (estimate.low, estimate.high) == pytest.approx((20 / 3 - half, 20 / 3 + half))
    assert found.outcomes["place right"].values == pytest.approx([0, 0, -50])
    assert "| a | b | 4 | +6.7 (" in markdown([found])
    with pytest.raises(ValueError, match="no training seed in common"):
        effects(
            [{**rows[0], "arms": {"a": {"0": score(1)}, "b": {"1": score(1)}}}], [Comparison("a", "b", (("a", "b"),))]
        )


def test_pooled_pairs_weigh_alike_within_an_individual() -> None:
    rows: list = [
        {
            "another render": {"CLIP-I": 1.0, "ViT": 1.0},
            "arms": {"a": {"0": score(0.5), "1": score(0.7)}, "b": {"0": score(0.4), "1": score(0.5)}}
            | {"c": {"0": score(0.2)}, "d": {"0": score(0.3)}},
        },  # a - b: 10 and 20; c - d: -10
        {"arms": {"a": {"0": score(0.5)}, "b": {"0": score(0.5)}, "c": {"0": score(0.9)}, "d": {"0": score(0.5)}}},
    ]
    (found,) = effects(rows, [Comparison("both", "others", (("a", "b"), ("c", "d")))])
    assert (found.arm, found.against, found.pairs) == ("both", "others", 5)
    assert found.outcomes["way by CLIP-I"].values == pytest.approx([2.5, 20])


def test_the_quantiles_are_students() -> None:
    """By integrating the density: 97.5% lie below the quantile."""
    for freedom in (1, 3, 10, 30, 31, 60):
        values = [0.0] * freedom + [(freedom + 1) ** 0.5]  # mean m, standard error m: the interval's half is t * m
        low, high = student(values)
        mean = sum(values) / len(values)
        t = (high - low) / 2 / (statistics.stdev(values) / len(values) ** 0.5)
        x = torch.linspace(-t, t, 400_001, dtype=torch.float64)
        density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
        assert float(constant * torch.trapezoid(density, x)) == pytest.approx(0.95, abs=2e-4)
        assert (low + high) / 2 == pytest.approx(mean)
    assert student([3.0]) == (-math.inf, math.inf)
