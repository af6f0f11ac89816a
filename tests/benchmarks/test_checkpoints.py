"""How good a recommended checkpoint is: the arithmetic of its regret."""

from dataclasses import asdict

import pytest

from benchmarks.checkpoints import choices, regrets, table
from dash_vision.runs.evaluation import Evaluated, Evaluation


def row(truth):
    """An individual whose likeness, as the run measured it, is highest at step 20, and whose drift grows."""
    made = [
        Evaluated(
            step,
            None if step == 0 else "a",
            {"likeness": [like, like], "drift": [drift, drift], "leak": [0.0, 0.0], "loss": [loss, loss]},
        )
        for step, like, drift, loss in (
            (0, 0.2, 0.0, 0.4),
            (10, 0.5, 0.1, 0.1),
            (20, 0.8, 0.2, 0.2),
            (30, 0.7, 0.3, 0.3),
        )
    ]
    evaluation = Evaluation(["a", "b"], ["a", "a"], "a", 10, {}, {}, {}, made)
    values = {str(step): {"ViT": like, "CLIP-I": like} for step, like in zip((0, 10, 20, 30), truth, strict=True)}
    return {"seed": 0, "kind": "cat", "evaluation": asdict(evaluation), "truth": values}


def test_a_regret_is_what_the_best_checkpoint_is_ahead():
    made = row((0.1, 0.6, 0.7, 0.9))
    by_name = choices()
    assert regrets(made, by_name["--prefer likeness"], "ViT") == (pytest.approx(0.2), 20)
    assert regrets(made, by_name["lowest held-out loss"], "ViT") == (pytest.approx(0.3), 10)
    assert regrets(made, by_name["the last"], "ViT") == (0.0, 30)


def test_the_base_is_no_choice():
    assert regrets(row((0.95, 0.6, 0.7, 0.9)), choices()["the last"], "ViT") == (0.0, 30)


def test_the_table_has_a_row_for_every_choice():
    lines = table([row((0.1, 0.6, 0.7, 0.9)), row((0.1, 0.6, 0.8, 0.7))]).splitlines()
    assert len(lines) == 2 + len(choices())
    # Regrets of the last: 0 and 0.1; Student's t with one degree of freedom is 12.706.
    half = 12.706 * 0.05
    assert f"| the last | 0.050 ({0.05 - half:.3f} to {0.05 + half:.3f})" in "\n".join(lines)
