"""What the paper shows about task-specific directions, each beside what chance gives (arXiv 2409.01035).

For a frozen weight W = sum_i sigma_i u_i v_i^T and an update dW, the change rate of a direction is delta_i =
|u_i^T dW v_i| / (sigma_i + eps). The division favours small sigma_i whatever dW is: two independent random updates of
one W agree on many of their top directions. So every overlap here has a null: the same number from random updates of
the same rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .adapter import Adapter
from .directions import Directions, change_rates, top_directions

FEW, PREDICTED, MANY = 4, 8, 16  # the paper's numbers of true and predicted directions


class LowRank(NamedTuple):
    """dW = B A with A [r, in] and B [out, r], any floating dtype; a scaling is within B."""

    A: Tensor
    B: Tensor


Update = LowRank | Tensor  # or a dense dW [out, in]


class Overlap(NamedTuple):
    """How well predicted directions meet the true ones, both in 0..1.

    recall: |top-8 predicted and top-4 true| / 4. accuracy: |top-8 predicted and top-16 true| / 8.
    """

    recall: float
    accuracy: float


def update_rates(directions: Directions, update: Update, eps: float = 1e-6) -> Tensor:
    """Change rate of every direction under `update`, [p], float64. Raises ValueError where shapes do not fit."""
    U, sigma, V = directions
    out, in_ = U.shape[0], V.shape[1]
    if isinstance(update, LowRank):
        if update.A.shape[1] != in_ or update.B.shape != (out, update.A.shape[0]):
            raise ValueError(
                f"an update of B {tuple(update.B.shape)} and A {tuple(update.A.shape)} does not fit a weight of "
                f"{out} x {in_}"
            )
        return change_rates(directions, update.A, update.B, eps=eps)
    if update.shape != (out, in_):
        raise ValueError(f"an update of {tuple(update.shape)} does not fit a weight of {out} x {in_}")
    projected = ((U.T @ update.detach().to(U)) * V).sum(dim=1)
    return projected.abs() / (sigma + eps)


def overlap(predicted: Tensor, true: Tensor) -> Overlap:
    """Recall and accuracy of predicted against true change rates, both [p].

    With fewer directions than the paper's numbers all there are count. Raises ValueError for lengths that differ.
    """
    if predicted.shape != true.shape or predicted.ndim != 1:
        raise ValueError(
            f"change rates of one layer have one length, got {tuple(predicted.shape)}, {tuple(true.shape)}"
        )
    p = len(true)
    few, chosen, many = (
        set(top_directions(rates, min(n, p)).tolist())
        for rates, n in ((true, FEW), (predicted, PREDICTED), (true, MANY))
    )
    return Overlap(len(chosen & few) / len(few), len(chosen & many) / len(chosen))


def matches(first: Tensor, second: Tensor, count: int = PREDICTED) -> Tensor:
    """Which of the top directions under two updates are the same, bool [count, count].

    first, second: change rates [p] of one layer. Row i, column j: the direction of rank i + 1 in the first is that of
    rank j + 1 in the second. With fewer directions than `count` all there are.
    """
    count = min(count, len(first))
    return top_directions(first, count)[:, None] == top_directions(second, count)[None]


def random_update(directions: Directions, rank: int | None, generator: torch.Generator) -> Update:
    """An update of standard normal factors of `rank`, or a dense standard normal one for None, float64 on the CPU.

    Its scale does not matter to the order of change rates, nor hence to an overlap.
    """
    out, in_ = directions.U.shape[0], directions.V.shape[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return normal(out, in_) if rank is None else LowRank(normal(rank, in_), normal(out, rank))


def null_pairs(
    directions: Directions,
    ranks: tuple[int | None, int | None],
    draws: int,
    seed: int,
    eps: float = 1e-6,
    shared: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Change rates [p] under `draws` pairs of random updates of these ranks (None: dense), independent but for the
    first `shared` rows of A, which low-rank updates can have in common."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        first, second = (random_update(directions, rank, generator) for rank in ranks)
        if shared:
            assert isinstance(first, LowRank)
            assert isinstance(second, LowRank)
            second.A[:shared] = first.A[:shared]
        yield update_rates(directions, first, eps), update_rates(directions, second, eps)


def null_rates(directions: Directions, update: Update, draws: int, seed: int, eps: float = 1e-6) -> Tensor:
    """Change rates [draws, p] under random updates of the rank and the Frobenius norm of `update`."""
    generator = torch.Generator().manual_seed(seed)
    rank = update.A.shape[0] if isinstance(update, LowRank) else None
    size = norm(update)
    drawn = (random_update(directions, rank, generator) for _ in range(draws))
    return torch.stack([update_rates(directions, random, eps) * (size / max(norm(random), 1e-300)) for random in drawn])


def largest_share(adapter: Adapter, probes: Mapping[str, Sequence[float]]) -> float:
    """The largest |dW| / |W| of an adapter's layers, by Frobenius norms; an adapter that learned nothing has 0.

    probes: of the frozen weights by module, as core.loading.probe_weight makes them; the first of each is |W|.

    The low-rank part and the shifts count as if they stood at right angles, which decides no order of magnitude.
    """
    shares = [0.0]
    for module, weights in adapter.weights():
        low = norm(LowRank(weights.A.flatten(1), weights.B.flatten(1) * weights.scaling))
        shift = weights.dsigma.detach().double().norm().item()
        shares.append(math.hypot(low, shift) / max(probes[module][0], 1e-300))
    return max(shares)


def norm(update: Update) -> float:
    """Frobenius norm; of a low-rank update without forming it: tr((B^T B) (A A^T))^(1/2)."""
    if isinstance(update, LowRank):
        A, B = update.A.detach().double(), update.B.detach().double()
        return ((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt().item()
    return update.detach().double().norm().item()
