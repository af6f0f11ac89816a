"""Means with intervals over prompts or tasks, paired between methods."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dash_vision.measures.student import t_quantile

DRAWS = 10_000
LEVEL = 0.95
FEW = 10  # values; with fewer a percentile bootstrap is too narrow


class Interval(NamedTuple):
    """A mean with its interval of LEVEL, by the method of `interval_method`; None where one value has none."""

    mean: float
    low: float | None
    high: float | None


def interval_method(count: int) -> str | None:
    """How the interval of the mean of `count` values is found; None for a single value, which has no interval."""
    if count < 2:
        return None
    return "Student's t" if count < FEW else "percentile bootstrap"


def student(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the values' mean, by Student's t.

    With a handful of values a percentile bootstrap is too narrow. One value has no interval: infinite ends.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return -math.inf, math.inf
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def intervals(values: Mapping[str, Sequence[float]], seed: int = 0) -> dict[str, Interval]:
    """Mean and interval of every method's values, one per prompt in the same order for all.

    The prompt is the unit, not the picture, since pictures of one prompt resemble each other.
    """
    return {name: _interval(np.asarray(v, float), seed) for name, v in values.items()}


def differences(values: Mapping[str, Sequence[float]], seed: int = 0) -> dict[tuple[str, str], Interval]:
    """(second, first) -> second minus first for every pair of methods, paired prompt by prompt."""
    names = list(values)
    return {
        (second, first): _interval(np.asarray(values[second], float) - np.asarray(values[first], float), seed)
        for i, second in enumerate(names)
        for first in names[:i]
    }


def _interval(values: np.ndarray, seed: int) -> Interval:
    method = interval_method(len(values))
    mean = float(values.mean())
    if method is None:
        return Interval(mean, None, None)
    if method == "Student's t":
        return Interval(mean, *student(values.tolist()))
    draws = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values[draws].mean(axis=1), [tail, 100 - tail])
    return Interval(mean, float(low), float(high))
