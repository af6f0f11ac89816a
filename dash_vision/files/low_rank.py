"""What a plain LoRA file keeps of an update B A: its best approximation of a lower rank, and what rounding leaves.

Everything is computed from the factors, A [rank, in] and B [out, rank]; the product is never formed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]
"""(A [rank, in], B [out, rank]) of an update B A."""
_LOST = 0.1  # of a layer's update, by rounding: a file that loses more is not written


@dataclass(frozen=True)
class Layer:
    """What a file has of one layer. energy: the squared Frobenius norm of its update; kept: the share of it in the
    file's rank; rounded: how far rounding moved the update, relative to its Frobenius norm."""

    component: str
    name: str
    energy: float
    kept: float = 1.0
    rounded: float = 0.0


@dataclass(frozen=True)
class Export:
    """A plain LoRA that was written.

    path: of its weights. rank: of its layers; a layer that kohya's layout makes of several has the ranks of all of them
    unless a rank was asked for. layers: what is left of each; none of a file in float32 that was asked for no rank,
    which holds everything.
    """

    path: Path
    rank: int
    layers: tuple[Layer, ...]

    def kept(self) -> dict[str, tuple[float, Layer]]:
        """By component, the share of the update's energy that the file holds, and the layer of which it holds least."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(layer.component, []).append(layer)
        return {name: (_share(layers), min(layers, key=lambda one: one.kept)) for name, layers in found.items()}

    def most_rounded(self) -> Layer:
        """The layer whose update was moved furthest by rounding."""
        return max(self.layers, key=lambda one: one.rounded)


def _share(layers: Iterable[Layer]) -> float:
    energies = [(layer.energy, layer.energy * layer.kept) for layer in layers]
    total = sum(whole for whole, _ in energies)
    return sum(part for _, part in energies) / total if total else 1.0


def best_of_rank(factors: Factors, rank: int) -> tuple[Factors, float]:
    """The factors of the matrix of at most that rank which is nearest to B A, and the share of the energy (squared
    Frobenius norm) that it keeps.

    That is the truncated singular value decomposition, here of the small product of both factors' triangles. Each
    factor gets the roots of the singular values. The rank of the result is lower where that of B A is.
    """
    down, up = factors
    (down_q, down_r), (up_q, up_r) = torch.linalg.qr(down.T), torch.linalg.qr(up)
    core = up_r @ down_r.T
    left, sigma, right = torch.linalg.svd(core, full_matrices=False)
    energy = float(sigma.square().sum())
    largest = float(sigma.max()) if sigma.numel() else 0.0
    real = int((sigma > largest * max(core.shape) * torch.finfo(sigma.dtype).eps).sum())
    count = min(rank, real)
    root = sigma[:count].sqrt()
    kept = float(sigma[:count].square().sum()) / energy if energy else 1.0
    return (root[:, None] * (right[:count] @ down_q.T), (up_q @ left[:, :count]) * root), kept


def padded(factors: Factors, rank: int) -> Factors:
    """The same update in factors of that rank."""
    down, up = factors
    more = rank - down.shape[0]
    return torch.cat([down, down.new_zeros(more, down.shape[1])]), torch.cat([up, up.new_zeros(len(up), more)], dim=1)


def energy_of(factors: Factors) -> float:
    """The squared Frobenius norm of B A."""
    down, up = factors
    return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0))


def in_format(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A tensor of floating-point numbers in `dtype`. Raises ValueError for values that it does not hold."""
    small = tensor.to(dtype)
    if not torch.isfinite(small).all():
        raise ValueError(f"{name} holds NaN, infinity or values too large for {dtype}; export in float32 or retrain")
    return small


def rounded(factors: Factors, dtype: torch.dtype, name: str) -> tuple[Factors, float]:
    """The factors in `dtype`, and how far that moves B A, relative to its Frobenius norm.

    float16 has few exponents: for it, both factors are brought to one size first, by powers of two, so that nothing is
    too small. Raises ValueError naming the layer for values that `dtype` does not hold.
    """
    down, up = _balanced(factors) if dtype == torch.float16 else factors
    small = in_format(down, dtype, name), in_format(up, dtype, name)
    if dtype in (torch.float32, torch.float64):
        return small, 0.0
    energy = energy_of((down, up))
    if not energy:
        return small, 0.0
    difference = torch.cat([small[0].double(), down]), torch.cat([small[1].double(), -up], dim=1)
    moved = (energy_of(difference) / energy) ** 0.5
    if moved > _LOST:
        raise ValueError(
            f"{name} holds values too small for {dtype}, which would lose {moved:.0%} of its update; export in float32 "
            "or bfloat16"
        )
    return small, moved


def _balanced(factors: Factors) -> Factors:
    """Each row of A and column of B times and by a power of two, so that their largest numbers are of one size."""
    down, up = factors
    sizes = down.abs().amax(1), up.abs().amax(0)
    used = (sizes[0] > 0) & (sizes[1] > 0) & torch.isfinite(sizes[0]) & torch.isfinite(sizes[1])
    ratio = torch.where(used, sizes[1] / sizes[0], torch.ones_like(sizes[0]))
    power = torch.exp2((ratio.log2() / 2).round())
    return down * power[:, None], up / power
