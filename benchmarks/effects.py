"""Arms of benchmarks.individuals compared in pairs: the same individual, the same training seed, the same noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from eval.plot import Estimate, draw_forest

# Student's t at 97.5% for 1 to 30 degrees of freedom, as tabulated; beyond, 1.96 + 2.46 / n.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


@dataclass(frozen=True)
class Comparison:
    """Arms less others: pairs of (arm, the arm that it is set against), one or several that are taken together."""

    name: str
    against: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Effect:
    """What a comparison gave, by each measure of the way and by the share of right places, in percentage points."""

    arm: str
    against: str
    pairs: int
    outcomes: dict[str, Estimate]


def student(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the values' mean, by Student's t.

    With a handful of values a percentile bootstrap is too narrow. One value has no interval: infinite ends.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return -math.inf, math.inf
    freedom = len(values) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.46 / freedom
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def effects(rows: Sequence[dict[str, Any]], comparisons: Sequence[Comparison]) -> list[Effect]:
    """The differences over the individuals in `rows` and the training seeds that both arms of a pair have.

    Seeds and pairs of one individual are averaged first: individuals are what a finding should carry over to, and the
    interval is over them. Raises ValueError when two arms share no seed.
    """
    found = []
    names = [*(f"way by {name}" for name in rows[0]["another render"]), "place right"]
    for comparison in comparisons:
        outcomes, count = {}, 0
        for outcome in names:
            points = []
            for row in rows:
                means = []
                for arm, against in comparison.pairs:
                    gaps = _gaps(row["arms"], arm, against, outcome)
                    means.append(statistics.fmean(gaps))
                    count += len(gaps)
                points.append(statistics.fmean(means))
            outcomes[outcome] = Estimate(statistics.fmean(points), *student(points), points)
        found.append(Effect(comparison.name, comparison.against, count // len(names), outcomes))
    return found


def _gaps(arms: dict[str, Any], arm: str, against: str, outcome: str) -> list[float]:
    """One individual's differences in points, a number for each seed that both arms have."""
    shared = arms[arm].keys() & arms[against].keys()
    if not shared:
        raise ValueError(f"{arm} and {against} have no training seed in common; give both one in the plan")
    return [100 * (_outcome(arms[arm][s], outcome) - _outcome(arms[against][s], outcome)) for s in sorted(shared)]


def _outcome(score: dict[str, Any], name: str) -> float:
    return float(score["place"] if name == "place right" else score["way"][name.removeprefix("way by ")])


def markdown(found: Sequence[Effect]) -> str:
    """The differences as a table."""
    titles = list(found[0].outcomes)
    lines = [f"| arm | less | pairs | {' | '.join(titles)} |", f"| --- | --- | ---: |{' ---: |' * len(titles)}"]
    for effect in found:
        cells = [f"{e.mean:+.1f} ({e.low:+.1f} to {e.high:+.1f})" for e in effect.outcomes.values()]
        lines.append(f"| {effect.arm} | {effect.against} | {effect.pairs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def forest_picture(found: Sequence[Effect], individuals: int) -> Image.Image:
    """The differences as a forest plot, grouped by what the arms are set against."""
    groups: dict[str, list[tuple[str, list[Estimate]]]] = {}
    for effect in found:
        groups.setdefault(f"against {effect.against}", []).append((effect.arm, list(effect.outcomes.values())))
    note = (
        f"Small dots: the {individuals} individuals, each one's training seeds averaged. Large dots and bars: mean "
        "and 95% interval (Student's t over individuals). Right of the line the arm is better than what it is set "
        "against."
    )
    return draw_forest([f"{name}, points" for name in found[0].outcomes], groups, note)
