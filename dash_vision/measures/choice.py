"""Which checkpoint to take: a rule in one line, and what the measured pictures cannot tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..drawing.numbers import fixed
from ..files.errors import enumerated
from ..runs.evaluation import Evaluated, Evaluation, Recommendation
from .student import t_quantile

WEIGHTS = {"likeness": 0.0, "balanced": 0.5, "faithful": 1.0}  # of forgetting against likeness
_FORGETTING = ("drift", "leak")
_TINY = 1e-9


def rule(prefer: str, which: str = "held-out") -> str:
    """The rule in words. which: the pictures that it goes by, see Evaluation."""
    weight = WEIGHTS[prefer]
    if weight == 0:
        score = f"the checkpoint whose drawings are most like the {which} pictures"
    else:
        part = {0.5: "half of the forgetting", 1.0: "the forgetting"}[weight]
        score = (
            f"the highest likeness less {part}, where likeness is 0 at the base and 1 at the run's most alike "
            "checkpoint, and forgetting is drift and leak on average, each 0 at the base and 1 at the run's largest"
        )
    return f"{score}; where the measured pictures cannot tell that checkpoint from the last one, the last one"


def scores(trained: Sequence[Evaluated], base: Evaluated, prefer: str) -> list[float]:
    """What the rule compares, for every checkpoint."""
    total = _total(_parts(trained, base, prefer))
    return [float(value) for value in total]


def highest(evaluation: Evaluation, prefer: str) -> int | None:
    """The step with the highest score, by chance or not; None where there is nothing to tell checkpoints by."""
    base, trained = evaluation.base, _comparable(evaluation)
    if base is None or not trained:
        return None
    return trained[int(np.argmax(scores(trained, base, prefer)))].step


def recommend(evaluation: Evaluation, prefer: str) -> Recommendation | None:
    """The recommended checkpoint of a run; None where there is nothing to tell them by.

    The rule is `rule(prefer)`. Two checkpoints cannot be told apart where the 95% interval of the difference of their
    scores includes 0. The interval is Student's, over pictures and prompts paired between the checkpoints, with the
    degrees of freedom of Welch and Satterthwaite, since likeness and forgetting are measured on different pictures.
    """
    base, trained = evaluation.base, _comparable(evaluation)
    if base is None or not trained:
        return None
    parts = _parts(trained, base, prefer)
    last, best = len(trained) - 1, int(np.argmax(_total(parts)))
    chosen = last if _within_chance(parts, best, last) else best
    alike = [one.step for i, one in enumerate(trained) if i != chosen and _within_chance(parts, chosen, i)]
    higher = trained[best].step if best != chosen else None
    sentence = _sentence(trained[chosen], base, alike, higher, len(trained))
    return Recommendation(trained[chosen].step, prefer, alike, rule(prefer, evaluation.which), sentence)


def _comparable(evaluation: Evaluation) -> list[Evaluated]:
    base = evaluation.base
    if base is None or not base.values.get("likeness"):
        return []
    return [one for one in evaluation.trained if one.values.get("likeness")]


def _within_chance(parts: Sequence[tuple[float, np.ndarray]], first: int, second: int) -> bool:
    """Whether the score of `first` is above that of `second` by no more than chance explains."""
    difference, variances, freedoms = 0.0, [], []
    for share, rows in parts:
        paired = share * (rows[first] - rows[second])
        difference += float(paired.mean())
        if len(paired) < 2:
            return True  # a single picture says nothing of what chance does
        variances.append(float(paired.var(ddof=1)) / len(paired))
        freedoms.append(len(paired) - 1)
    variance = sum(variances)
    if variance <= _TINY**2:
        return difference <= _TINY
    freedom = variance**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return difference <= t_quantile(freedom) * math.sqrt(variance)


def _parts(trained: Sequence[Evaluated], base: Evaluated, prefer: str) -> list[tuple[float, np.ndarray]]:
    """(factor, values [checkpoints, pictures]) of each part of the score; they are added."""
    gain = _rows(trained, "likeness") - np.asarray(base.values["likeness"])
    parts = [(1 / max(_TINY, _means(gain).max()), gain)]
    costs = [_rows(trained, name) for name in _FORGETTING if all(one.values.get(name) for one in trained)]
    for cost in costs if WEIGHTS[prefer] else ():
        largest = _means(cost).max()
        if largest > _TINY:
            parts.append((-WEIGHTS[prefer] / len(costs) / largest, cost))
    return parts


def _total(parts: Sequence[tuple[float, np.ndarray]]) -> np.ndarray:
    found: np.ndarray = np.sum([share * _means(rows) for share, rows in parts], axis=0)
    return found


def _rows(trained: Sequence[Evaluated], name: str) -> np.ndarray:
    return np.asarray([one.values[name] for one in trained], float)


def _means(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows.mean(axis=1)
    return found


def _sentence(chosen: Evaluated, base: Evaluated, alike: Sequence[int], higher: int | None, count: int) -> str:
    parts = [f"a likeness of {_mean(chosen, 'likeness')} (the base has {_mean(base, 'likeness')})"]
    parts += [f"a {name} of {_mean(chosen, name)}" for name in _FORGETTING if chosen.values.get(name)]
    measured = f"Step {chosen.step} is recommended, with {enumerated(parts)}"
    if count == 1:
        return f"{measured}; no other one was measured."
    if not alike:
        return f"{measured}. The pictures that were measured tell it from every other step."
    steps = enumerated([*map(str, alike)])
    kept = f"; {higher} has the highest score, and the last one is kept" if higher is not None else ""
    plural = "s" if alike[:-1] else ""
    return f"{measured}. The pictures that were measured cannot tell it from step{plural} {steps}{kept}."


def _mean(one: Evaluated, name: str) -> str:
    mean = one.mean(name)
    return "?" if mean is None else fixed(mean, 3)
