"""Numbers as pages and charts show them, and the numbers of charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]


def fixed(value: float, digits: int, sign: bool = False) -> str:
    """A number with so many digits after the point, with its sign where `sign` asks for it. What rounds to zero has no
    sign: "0.000", never "-0.000" or "+0.000"."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.lstrip("+-") if math.isfinite(value) and float(text) == 0 else text


def shortest(value: float) -> str:
    """A number in as few characters as six digits take: "0.25", "3", "1e-5"."""
    text = f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e")
    return "0" if text == "-0" else text


def percent(share: float) -> str:
    """A share of 0 to 1 in whole percent: "61 %"."""
    return f"{fixed(100 * share, 0)} %"


def ticks(low: float, high: float, count: int = 5, least: float = 0.0) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten. least: the smallest
    distance between two, such as 1 where only whole numbers mean something."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(least, next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9)))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """At every place the mean of the last `window` values, of fewer at the beginning."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def thinned(points: Sequence[Point], most: int = 500) -> list[Point]:
    """At most about `most` of the points, evenly taken, the last one always among them."""
    stride = max(1, -(-len(points) // most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
