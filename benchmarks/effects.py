"""Arms of benchmarks.individuals compared in pairs: the same individual, the same training seed, the same noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dash_vision.drawing.forest import Estimate, draw_forest
from eval.intervals import student


@dataclass(frozen=True)
class Comparison:
    """Arms less others: pairs of (arm, the arm that it is set against), one or several that are taken together."""

    name: str
    against: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Effect:
    """What a comparison gave by each of its measures. pairs: how many runs were set against each other."""

    arm: str
    against: str
    pairs: int
    outcomes: dict[str, Estimate]


def effects(rows: Sequence[dict[str, Any]], comparisons: Sequence[Comparison]) -> list[Effect]:
    """The differences over the individuals in `rows` and the training seeds that both arms of a pair have, by each
    measure of the way and of the leak and by the share of right places, in percentage points; more is better.

    Seeds and pairs of one individual are averaged first: individuals are what a finding should carry over to, and the
    interval is over them. Raises ValueError when two arms share no seed.
    """
    found = []
    measures = list(rows[0]["another render"])
    names = [*(f"way by {name}" for name in measures), *(f"less leak by {name}" for name in measures), "place right"]
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
    if name == "place right":
        return float(score["place"])
    outcome, _, measure = name.partition(" by ")
    return float(score["way"][measure] if outcome == "way" else -score["leak"][measure])


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
