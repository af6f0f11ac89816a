"""Which checkpoint is recommended, on made values whose answer is known."""

import pytest

from dash_vision.measures.charts import progress_panels, trade_off_panel
from dash_vision.measures.choice import highest, recommend, rule, scores
from dash_vision.runs.evaluation import PREFERENCES, Evaluated, Evaluation

BASE = {"likeness": [0.2, 0.3, 0.1, 0.2], "drift": [0.0] * 4, "leak": [0.0] * 4, "loss": [0.3, 0.3]}


def evaluation(*steps):
    """Of (likeness, drift, leak) after every 100 steps; each picture is as far from the mean as the base's."""
    made = [Evaluated(0, None, BASE)]
    for number, (like, drift, leak) in enumerate(steps, 1):
        values = {
            "likeness": [like + d for d in (0.0, 0.1, -0.1, 0.0)],
            "drift": [drift + d for d in (0.0, 0.01, -0.01, 0.0)],
            "leak": [leak] * 4,
            "loss": [0.2, 0.2],
        }
        made.append(Evaluated(100 * number, f"adapters/out-{100 * number}", values))
    return Evaluation(["a.png"], ["sks cat"], "cat", 100, {"likeness": "an encoder"}, {}, {}, made)


# Likeness comes to its end while drift and leak go on.
SATURATING = evaluation((0.5, 0.02, 0.05), (0.7, 0.06, 0.1), (0.75, 0.2, 0.3), (0.76, 0.4, 0.5))


def test_a_checkpoint_that_is_best_in_everything_is_recommended_whatever_is_preferred():
    best = evaluation((0.5, 0.2, 0.2), (0.9, 0.1, 0.1), (0.6, 0.3, 0.3))
    for prefer in PREFERENCES:
        found = recommend(best, prefer)
        assert (found.step, found.alike) == (200, [])
        assert "tell it from every other step" in found.sentence


def test_preferences_go_from_the_most_alike_to_the_nearest_to_the_base():
    steps = [recommend(SATURATING, prefer).step for prefer in PREFERENCES]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 400
    assert steps[-1] < 400
    assert [highest(SATURATING, prefer) for prefer in PREFERENCES] == steps


def test_the_score_is_the_formula_that_the_rule_states():
    found = scores(SATURATING.trained, SATURATING.base, "balanced")
    expected = [
        (like - 0.2) / (0.76 - 0.2) - 0.5 * (drift / 0.4 + leak / 0.5) / 2
        for like, drift, leak in ((0.5, 0.02, 0.05), (0.7, 0.06, 0.1), (0.75, 0.2, 0.3), (0.76, 0.4, 0.5))
    ]
    assert found == pytest.approx(expected)
    assert "half of the forgetting" in rule("balanced")


def test_checkpoints_whose_pictures_differ_by_chance_alone_cannot_be_told_apart():
    found = chosen_by_likeness([0.5, 0.7, 0.5, 0.7], [0.7, 0.5, 0.71, 0.5])
    assert (found.step, found.alike) == (2, [1])
    assert "cannot tell it from step 1." in found.sentence


def test_the_last_checkpoint_is_kept_where_the_pictures_leave_a_higher_score_to_chance():
    # Differences 0.1, 0.5, 0.1, 0.1 of the first less the last: mean 0.2, standard error 0.1, t(3) = 3.182.
    first, last = [0.6, 0.9, 0.5, 0.6], [0.5, 0.4, 0.4, 0.5]
    found = chosen_by_likeness(first, last)
    assert (found.step, found.alike) == (2, [1])
    assert found.sentence.endswith("cannot tell it from step 1; 1 has the highest score, and the last one is kept.")


def test_an_earlier_checkpoint_is_recommended_where_the_pictures_tell_it_from_the_last():
    # Differences 0.2, 0.3, 0.1, 0.2: mean 0.2, standard error 0.041, and 3.182 times that is 0.130.
    found = chosen_by_likeness([0.7, 0.7, 0.5, 0.7], [0.5, 0.4, 0.4, 0.5])
    assert (found.step, found.alike) == (1, [])


def test_a_single_picture_tells_no_checkpoint_from_another():
    base = {**BASE, "likeness": [0.2]}
    made = [Evaluated(0, None, base)]
    made += [Evaluated(step, "a", {**base, "likeness": [like]}) for step, like in ((1, 0.9), (2, 0.3))]
    evaluated = Evaluation(["a"], ["a"], "a", 1, {}, {}, {}, made)
    found = recommend(evaluated, "likeness")
    assert (found.step, found.alike) == (2, [1])
    assert highest(evaluated, "likeness") == 1


def chosen_by_likeness(*values):
    made = [Evaluated(0, None, BASE)]
    made += [Evaluated(step, "a", {**BASE, "likeness": like}) for step, like in enumerate(values, 1)]
    return recommend(Evaluation(["a"], ["a"], "a", 1, {}, {}, {}, made), "likeness")


def test_a_run_that_learned_nothing_has_its_last_checkpoint_recommended():
    made = [Evaluated(step, None if step == 0 else "a", BASE) for step in (0, 1, 2)]
    found = recommend(Evaluation(["a"], ["a"], "a", 1, {}, {}, {}, made), "balanced")
    assert (found.step, found.alike) == (2, [1])


def test_without_likeness_nothing_is_recommended():
    made = [Evaluated(step, None if step == 0 else "a", {"loss": [0.3 - step / 10]}) for step in (0, 1, 2)]
    alone = Evaluation(["a"], ["a"], "a", 1, {}, {}, {}, made)
    assert recommend(alone, "balanced") is None
    assert trade_off_panel(alone) is None
    assert [panel.title for panel in progress_panels(alone, [0.5] * 4, None)] == ["Denoising loss"]


def test_the_chart_marks_the_checkpoints_that_no_other_one_beats():
    panel = trade_off_panel(evaluation((0.5, 0.1, 0), (0.4, 0.2, 0), (0.7, 0.3, 0), (0.7, 0.4, 0)))
    path, unbeaten, *_ = panel.series
    assert path.labels == ["0", "100", "200", "300", "400"]
    assert unbeaten.points == [path.points[0], path.points[1], path.points[3]]  # the base is nearest to itself
