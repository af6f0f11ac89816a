"""Which checkpoint to take: a rule in one line, and what the measured pictures cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..drawing.numbers import fixed
from ..runs.evaluation import Evaluated, Evaluation, Recommendation

WEIGHTS = {"likeness": 0.0, "balanced": 0.5, "faithful": 1.0}  # of forgetting against likeness
DRAWS = 2_000  # of the bootstrap over pictures and prompts
LEVEL = 0.95
_FORGETTING = ("drift", "leak")
_TINY = 1e-9


def rule(prefer: str) -> str:
    """The rule in words."""
    weight = WEIGHTS[prefer]
    if weight == 0:
        return "the checkpoint whose pictures are most like the held-out ones"
    part = {0.5: "half of the forgetting", 1.0: "the forgetting"}[weight]
    return (
        f"the highest likeness less {part}, where likeness is 0 at the base and 1 at the run's most alike checkpoint, "
        "and forgetting is drift and leak on average, each 0 at the base and 1 at the run's largest"
    )


def scores(trained: Sequence[Evaluated], base: Evaluated, prefer: str) -> list[float]:
    """What the rule compares, for every checkpoint."""
    total = _total(_parts(trained, base, prefer))
    return [float(value) for value in total]


def recommend(evaluation: Evaluation, prefer: str) -> Recommendation | None:
    """The recommended checkpoint of a run; None where there is nothing to tell them by.

    The rule is `rule(prefer)`. Its uncertainty is that of the pictures: they are drawn again with replacement, the same
    ones for every checkpoint; one whose score less the highest has an interval that includes 0 cannot be told from it.
    """
    base = evaluation.base
    trained = [one for one in evaluation.trained if one.values.get("likeness")]
    if base is None or not base.values.get("likeness") or not trained:
        return None
    parts = _parts(trained, base, prefer)
    best = int(np.argmax(_total(parts)))
    generator = np.random.default_rng(0)
    behind = np.zeros((DRAWS, len(trained)))
    for share, rows in parts:
        drawn = generator.integers(rows.shape[1], size=(DRAWS, rows.shape[1]))
        means = rows[:, drawn].mean(axis=2).T
        behind += share * (means - means[:, best : best + 1])
    tail = 100 * (1 - LEVEL) / 2
    high = np.percentile(behind, 100 - tail, axis=0)
    alike = [one.step for i, one in enumerate(trained) if i != best and high[i] >= -_TINY]
    sentence = _sentence(trained[best], base, alike, len(trained))
    return Recommendation(trained[best].step, prefer, alike, rule(prefer), sentence)


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


def _sentence(best: Evaluated, base: Evaluated, alike: Sequence[int], count: int) -> str:
    parts = [f"a likeness of {_mean(best, 'likeness')} (the base has {_mean(base, 'likeness')})"]
    parts += [f"a {name} of {_mean(best, name)}" for name in _FORGETTING if best.values.get(name)]
    measured = (
        f"Step {best.step} is recommended, with {', '.join(parts[:-1])}{' and ' if parts[:-1] else ''}{parts[-1]}"
    )
    if count == 1:
        return f"{measured}; no other one was measured."
    if not alike:
        return f"{measured}. The pictures that were measured tell it from every other step."
    steps = ", ".join(map(str, alike[:-1])) + (" and " if alike[:-1] else "") + str(alike[-1])
    return f"{measured}. The pictures that were measured cannot tell it from step{'s' if alike[:-1] else ''} {steps}."


def _mean(one: Evaluated, name: str) -> str:
    mean = one.mean(name)
    return "?" if mean is None else fixed(mean, 3)
