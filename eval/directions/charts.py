"""The charts of directions. Each shows beside the trained numbers what random updates give."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dash_vision.core.analysis import FEW, MANY, PREDICTED, null_rates, update_rates
from dash_vision.core.directions import Directions
from dash_vision.drawing.numbers import fixed, percent
from dash_vision.drawing.plot import Panel, Point, Series
from dash_vision.files.errors import InputError
from dash_vision.files.native import AdapterState

from .measures import Layer, Null, match_grid, quantiles
from .sources import Source
from .updates import low_rank

_TAIL = 0.1  # of the spectrum
_LEAST_TAIL = 24  # directions
_SORTED = 48
RANDOM = "random updates"
_MEANING = {
    "recall": f"recall: share of its {FEW} most changed directions among the run's {PREDICTED}",
    "accuracy": f"accuracy: share of the run's {PREDICTED} most changed among its {MANY}",
}


def rate_panels(module: str, directions: Directions, source: Source, null: Null) -> Iterator[Panel]:
    """Change rate against index: all of it, its tail, and sorted, each with that of random updates."""
    state, colour = source.state, source.colour
    assert state is not None
    update = low_rank(state.tensors, module, state.scaling)
    rates = update_rates(directions, update, state.eps)
    drawn = null_rates(directions, update, null.draws, null.seed, state.eps)
    p = len(rates)
    tail = min(p, max(_LEAST_TAIL, round(_TAIL * p)))
    chosen: list[int] = state.tensors[f"{module}.indices"].tolist() if state.launched else []
    dots = [(float(i), float(rates[i])) for i in chosen]
    for title, first in (("Change rates, whole spectrum", 0), (f"Change rates, last {tail}", p - tail)):
        series = [*_random(drawn[:, first:], first), Series("trained", _points(rates[first:], first), colour)]
        if dots:
            series.append(Series("chosen at launch", [d for d in dots if d[0] >= first], 4, "dots"))
        yield Panel(title, "index, 0: largest singular value", "change rate", series, log=True, note=module)
    falling, drawn_falling = rates.sort(descending=True).values, drawn.sort(dim=1, descending=True).values
    n = min(p, _SORTED)
    series = [*_random(drawn_falling[:, :n], 0), Series("trained", _points(falling[:n], 0), colour)]
    title = f"Change rates, largest {n}, sorted"
    yield Panel(title, "rank of the change rate", "change rate", series, log=True, note=module)


def _points(values: Tensor, first: int) -> list[Point]:
    return [(float(first + i), v) for i, v in enumerate(values.tolist())]


def _random(draws: Tensor, first: int) -> list[Series]:
    low, middle, high = torch.quantile(draws, torch.tensor([0.05, 0.5, 0.95], dtype=draws.dtype), dim=0)
    return [
        Series(RANDOM, _points(low, first), 7, "band", _points(high, first)),
        Series("", _points(middle, first), 7, "faint"),
    ]


def overlap_panels(layers: Sequence[Layer], truth: Source, state: AdapterState) -> list[Panel]:
    """Recall and accuracy over layers at the last step; where more steps were kept, their means over these."""
    layers = compared(layers, truth.name)
    steps = list(layers[0].at)
    panels = [
        _over_layers(layers, steps[-1], measure, colour, f"LoRA of rank {state.rank} against {truth.name}")
        for colour, measure in ((0, "recall"), (2, "accuracy"))
    ]
    return [*panels, over_steps(layers, steps)] if len(steps) > 1 else panels


def compared(layers: Sequence[Layer], name: str) -> list[Layer]:
    """The layers that both have. Raises InputError where there are none."""
    both = [layer for layer in layers if layer.at]
    if not both:
        raise InputError(f"{name} has none of the run's layers; give a model of the same kind")
    return both


def _over_layers(layers: Sequence[Layer], step: int, measure: str, colour: int, what: str) -> Panel:
    numbers = range(1, len(layers) + 1)
    low, middle, high = zip(*(quantiles([getattr(o, measure) for o in x.null]) for x in layers), strict=True)
    last = [(float(n), getattr(x.at[step], measure)) for n, x in zip(numbers, layers, strict=True)]
    series = [
        Series(RANDOM, _at(numbers, low), 7, "band", _at(numbers, high)),
        Series("", _at(numbers, middle), 7, "faint"),
        Series(measure, last, colour, "dots"),
    ]
    title, x = f"{measure.capitalize()} of {what}, step {step}", f"layer, of {len(layers)} in the model's order"
    return Panel(title, x, _MEANING[measure], series, bounds=(-0.04, 1.04))


def match_panels(
    module: str, W: Tensor, directions: Directions, pair: tuple[Source, Source], null: Null
) -> list[Panel]:
    """The rank-match grid of a layer, and how often random updates fill each cell."""
    grid = match_grid(module, W, directions, pair, null)
    if grid is None:
        return []
    n = len(grid.found)
    cells = [(float(j + 1), float(i + 1)) for i in range(n) for j in range(n)]
    axes = f"rank in {pair[1].name}", f"rank in {pair[0].name}"

    def panel(title: str, shares: Tensor, colour: int) -> Panel:
        series = Series("", cells, colour, "cells", shades=shares.flatten().tolist())
        return Panel(title, *axes, [series], bounds=(0.5, n + 0.5), note=module)

    low, middle, high = (fixed(count, 0) for count in quantiles(grid.counts))
    darkest = grid.chance.max().item()
    words = f"{RANDOM.capitalize()} share {middle} ({low} to {high}); darkest: {percent(darkest)}"
    return [
        panel(f"{int(grid.found.sum())} of the {n} most changed are shared", grid.found.double(), 0),
        panel(words, grid.chance / max(darkest, 1e-9), 7),
    ]


def over_steps(layers: Sequence[Layer], steps: Sequence[int]) -> Panel:
    """Means over layers at every step that was kept."""
    series = []
    # A dot fits into a square: equal ones both show.
    for colour, measure, marker in ((0, "recall", "square"), (2, "accuracy", "dot")):
        means = [statistics.fmean(getattr(x.at[step], measure) for x in layers) for step in steps]
        low, _, high = quantiles(random_means(layers, measure))
        band = _at((0, steps[-1]), (low, low)), _at((0, steps[-1]), (high, high))
        series += [
            Series(f"{RANDOM}, {measure}", band[0], colour, "band", band[1]),
            Series(measure, _at(steps, means), colour, marker=marker),
        ]
    return Panel("Mean over layers", "optimizer step", "recall, accuracy", series, bounds=(-0.04, 1.04))


def random_means(layers: Sequence[Layer], measure: str) -> list[float]:
    """A measure's mean over layers for every draw: one draw is one random update in every layer."""
    drawn = zip(*([getattr(o, measure) for o in layer.null] for layer in layers), strict=True)
    return [statistics.fmean(values) for values in drawn]


def _at(places: Sequence[int] | range, values: Sequence[float]) -> list[Point]:
    return [(float(x), v) for x, v in zip(places, values, strict=True)]
