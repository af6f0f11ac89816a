"""What is measured in a layer, each beside the same of random updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dash_vision.core.analysis import (
    PREDICTED,
    LowRank,
    Overlap,
    matches,
    null_pairs,
    null_rates,
    overlap,
    update_rates,
)
from dash_vision.core.directions import Directions, top_directions
from dash_vision.files.native import AdapterState

from .sources import Source
from .updates import learned, low_rank

TAIL = 0.1  # of the spectrum


@dataclass(frozen=True)
class Null:
    """The random updates of a layer: how many, from which seed, and how many rows of A a pair of them has in common."""

    draws: int
    seed: int
    shared: int = 0


@dataclass
class Layer:
    """The overlaps of a layer: by optimizer step, and those of random updates."""

    module: str
    at: dict[int, Overlap]
    null: list[Overlap]


@dataclass(frozen=True)
class Tail:
    """Which share of the most changed directions of a layer lies in the last tenth of its spectrum, and the same of
    each random update."""

    share: float
    null: list[float]


@dataclass(frozen=True)
class Grid:
    """Which of the most changed directions of two updates are the same, bool [n, n], and the share of random pairs by
    which each cell is filled, [n, n]; counts: how many directions each random pair shares."""

    found: Tensor
    chance: Tensor
    counts: list[float]


def layer_overlaps(
    module: str,
    W: Tensor,
    directions: Directions,
    pair: tuple[Source, Source],
    steps: Mapping[int, Mapping[str, Tensor]],
    null: Null,
) -> Layer:
    """How well the directions of the first of a pair predict those of the second, at every step."""
    source, truth = pair
    assert source.state is not None
    config = source.state
    update = learned(truth, module, W, directions)
    if update is None:
        return Layer(module, {}, [])
    true = update_rates(directions, update, config.eps)
    at = {
        step: overlap(update_rates(directions, low_rank(tensors, module, config.scaling), config.eps), true)
        for step, tensors in steps.items()
    }
    rank = update.A.shape[0] if isinstance(update, LowRank) else None
    pairs = null_pairs(directions, (config.rank, rank), null.draws, null.seed, config.eps, null.shared)
    return Layer(module, at, [overlap(first, second) for first, second in pairs])


def match_grid(module: str, W: Tensor, directions: Directions, pair: tuple[Source, Source], null: Null) -> Grid | None:
    """The paper's rank-match grid of a layer; None where the second of the pair has not trained it."""
    source, truth = pair
    assert source.state is not None
    config = source.state
    update = learned(truth, module, W, directions)
    if update is None:
        return None
    own = update_rates(directions, low_rank(config.tensors, module, config.scaling), config.eps)
    rank = update.A.shape[0] if isinstance(update, LowRank) else None
    pairs = null_pairs(directions, (config.rank, rank), null.draws, null.seed, config.eps, null.shared)
    drawn = torch.stack([matches(first, second) for first, second in pairs])
    found = matches(own, update_rates(directions, update, config.eps))
    return Grid(found, drawn.double().mean(dim=0), drawn.sum(dim=(1, 2)).tolist())


def tail_share(module: str, directions: Directions, state: AdapterState, null: Null) -> Tail:
    """Where the most changed directions of a layer lie."""
    update = low_rank(state.tensors, module, state.scaling)
    rates = update_rates(directions, update, state.eps)
    count, first = min(PREDICTED, len(rates)), len(rates) - max(1, round(TAIL * len(rates)))

    def share(rates: Tensor) -> float:
        return (top_directions(rates, count) >= first).double().mean().item()

    return Tail(share(rates), [share(r) for r in null_rates(directions, update, null.draws, null.seed, state.eps)])


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The values below which 5, 50 and 95 percent of these lie."""
    found = torch.quantile(torch.tensor(values, dtype=torch.float64), torch.tensor([0.05, 0.5, 0.95]).double())
    low, middle, high = found.tolist()
    return low, middle, high
