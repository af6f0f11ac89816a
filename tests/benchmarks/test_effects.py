"""benchmarks.effects: paired comparisons of arms, pooled over individuals."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from benchmarks.effects import Comparison, effects, markdown
from dash_vision.drawing.forest import Estimate, draw_forest
from eval.intervals import student


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
    leak = way / 2
    return {"way": {"CLIP-I": way, "ViT": way}, "leak": {"CLIP-I": leak, "ViT": leak}, "place": place}


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
    assert found.outcomes["less leak by ViT"].values == pytest.approx([-7.5, 2.5, -5])  # less of it is better
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
