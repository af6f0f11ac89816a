"""What directions say in one sentence and one chart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dash_vision.core.analysis import FEW, PREDICTED
from dash_vision.drawing.numbers import percent
from dash_vision.drawing.plot import Bar, Panel

from .charts import compared, random_means
from .measures import Layer, Tail, quantiles
from .sources import Source

_CHANCE = "random updates: what chance gives"


def of_overlaps(layers: Sequence[Layer], source: Source, truth: str) -> tuple[str, Panel]:
    """How much of the directions of `truth` a run finds, against chance: the headline and the chart. Raises
    InputError where they have no layer in common."""
    layers, name = compared(layers, truth), source.name
    step = max(layers[0].at)
    share = statistics.fmean(layer.at[step].recall for layer in layers)
    chance = random_means(layers, "recall")
    title = f"How many of the {FEW} directions that {truth} changed most are among the {PREDICTED} of {name}"
    headline = (
        f"{name} finds {percent(share)} of the directions that {truth} changed most, {verdict(share, chance)}: random "
        f"updates find {percent(statistics.fmean(chance))}."
    )
    return headline, _panel(title, f"Mean over {len(layers)} layers, step {step}.", source, share, chance)


def of_rates(tails: Sequence[Tail], source: Source) -> tuple[str, Panel]:
    """How many of the most changed directions of a run lie at the end of the spectrum, against chance."""
    share, name = statistics.fmean(tail.share for tail in tails), source.name
    chance = [statistics.fmean(shares) for shares in zip(*(tail.null for tail in tails), strict=True)]
    layers = "1 layer" if len(tails) == 1 else f"the {len(tails)} layers shown"
    headline = (
        f"{percent(share)} of the {PREDICTED} directions that {name} changed most lie in the last tenth of the "
        f"spectrum, {verdict(share, chance)}: with random updates {percent(statistics.fmean(chance))} do."
    )
    title = f"How many of the {PREDICTED} most changed directions have the smallest singular values (the last tenth)"
    return headline, _panel(title, f"Mean over {layers}.", source, share, chance)


def verdict(share: float, chance: Sequence[float]) -> str:
    """Whether a share is what 90 of 100 random updates give."""
    low, _, high = quantiles(chance)
    if share > high:
        return "more than chance"
    return "less than chance" if share < low else "no more than chance"


def _panel(title: str, note: str, source: Source, share: float, chance: Sequence[float]) -> Panel:
    low, _, high = quantiles(chance)
    mean = statistics.fmean(chance)
    bars = [
        Bar(source.name, share, percent(share), source.colour),
        Bar(_CHANCE, mean, f"{percent(mean)} (90 of 100 draws: {percent(low)} to {percent(high)})", 7, low, high),
    ]
    return Panel(title, "", "", [], note=note, bars=bars, wide=True)
