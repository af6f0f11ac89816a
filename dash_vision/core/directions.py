"""Singular directions of a frozen weight, change rates of a low-rank update, and the top-k choice.

Notation (arXiv 2409.01035): W = sum_i sigma_i u_i v_i^T is the frozen weight, dW = scaling * B A its low-rank
update. A core direction u_i v_i^T is task-specific when dW changes its singular value by a large fraction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Below this fraction of the largest singular value, W^T W has lost the direction to rounding (its eigenvalues
# are squares: 1e-5 squared is 1e-10, and float64 keeps 1e-16), so the full decomposition takes over.
_GRAM_FLOOR = 1e-5


class Directions(NamedTuple):
    """Singular value decomposition of a [out, in] weight, float64; p = min(out, in), sigma descending."""

    U: Tensor  # [out, p], orthonormal columns
    sigma: Tensor  # [p]
    V: Tensor  # [p, in], orthonormal rows: V[i] is v_i^T


class Spectrum(NamedTuple):
    """The decomposition of a [out, in] weight W without what follows from it, float64; p = min(out, in).

    The vectors of the longer side are None: U = W V^T / sigma, V = U^T W / sigma. Both are there when the spectrum
    falls too low for that division. It takes 8 p^2 bytes, a half to a fifth of `Directions`.
    """

    U: Tensor | None  # [out, p]
    sigma: Tensor  # [p], descending
    V: Tensor | None  # [p, in]


def decompose(weight: Tensor) -> Spectrum:
    """Decompose `weight` ([out, in], any floating dtype) in float64, whatever autocast says.

    Uses the eigenvectors of the smaller Gram matrix, about twice as fast as a full SVD for the shapes of
    attention and MLP weights, and the full SVD where the spectrum falls too low for that.

    Raises ValueError if the weight is not a matrix or holds NaN or infinity.
    """
    if weight.ndim != 2:
        raise ValueError(f"a weight to decompose has 2 dimensions [out, in], got shape {tuple(weight.shape)}")
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        # MPS has no float64: decompose there on the CPU.
        W = weight.detach().to("cpu" if weight.device.type == "mps" else weight.device).double()
        if not torch.isfinite(W).all():
            raise ValueError("the weight holds NaN or infinity and has no singular directions")
        tall = W.shape[0] >= W.shape[1]
        result = _from_gram(W if tall else W.T)
        if result is None:
            return Spectrum(*torch.linalg.svd(W, full_matrices=False))
        sigma, vectors = result
        return Spectrum(None, sigma, vectors.T.contiguous()) if tall else Spectrum(vectors, sigma, None)


def _from_gram(W: Tensor) -> tuple[Tensor, Tensor] | None:
    """(sigma [p], right singular vectors [p, p] in columns) of a tall W [m, p] by eigh(W^T W), or None where that is
    inexact."""
    squares, vectors = torch.linalg.eigh(W.T @ W)
    squares, vectors = squares.flip(0), vectors.flip(1)
    if squares.numel() == 0 or squares[-1] <= squares[0] * _GRAM_FLOOR**2:
        return None
    return squares.sqrt(), vectors.contiguous()


def singular_directions(
    weight: Tensor, spectrum: Spectrum | None = None, indices: Tensor | slice = slice(None)
) -> Directions:
    """The singular directions of `weight` ([out, in], any floating dtype), or those at `indices`, float64.

    spectrum: `decompose(weight)`, where it is at hand. Deterministic: the sign of each pair is fixed by making the
    largest entry of v_i positive. Raises as `decompose`.
    """
    U, sigma, V = spectrum or decompose(weight)
    with torch.no_grad(), torch.autocast(sigma.device.type, enabled=False):
        U, sigma, V = U if U is None else U[:, indices], sigma[indices], V if V is None else V[indices]
        W = weight.detach().to(sigma.device).double()
        if U is None:
            U = (W @ _given(V).T) / sigma
        if V is None:
            V = (U.T @ W) / sigma[:, None]
        sign = torch.sign(V.gather(1, V.abs().argmax(dim=1, keepdim=True)))
        return Directions(U * sign.T, sigma, V * sign)


def _given(vectors: Tensor | None) -> Tensor:
    """A spectrum has the vectors of one side at least."""
    assert vectors is not None
    return vectors


def projections(
    directions: Directions | Spectrum, A: Tensor, B: Tensor, scaling: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """How far dW = scaling * B A moves every singular value: |u_i^T dW v_i|, [p], float64.

    dW with A [r, in] and B [out, r] is never formed: all u_i^T dW v_i at once are the sum over the rank axis of
    (U^T B) * (A V^T)^T, some p * r * (out + in) multiplications. Rank 0 gives zeros. A Spectrum goes with its
    `weight`, by which U^T B = V (W^T B) / sigma.
    """
    U, sigma, V = directions
    with torch.no_grad(), torch.autocast(sigma.device.type, enabled=False):
        A, B = A.detach().to(sigma.device).double(), B.detach().to(sigma.device).double()
        W = sigma.new_empty(0) if weight is None else weight.detach().to(sigma.device).double()
        left = U.T @ B if U is not None else (_given(V) @ (W.T @ B)) / sigma[:, None]
        right = V @ A.T if V is not None else (_given(U).T @ (W @ A.T)) / sigma[:, None]
        return ((left * right).sum(dim=1) * scaling).abs()


def change_rates(directions: Directions, A: Tensor, B: Tensor, scaling: float = 1.0, eps: float = 1e-6) -> Tensor:
    """Change rate of every core direction: delta_i = |u_i^T dW v_i| / (sigma_i + eps), [p], float64."""
    _, sigma, _ = directions
    return projections(directions, A, B, scaling) / (sigma + eps)


def top_directions(rates: Tensor, k: int) -> Tensor:
    """Indices [k] (int64) of the k largest change rates, largest first; equal rates go to the larger sigma.

    Raises ValueError when k exceeds the number of directions or a rate is NaN or infinite.
    """
    if k > rates.numel():
        raise ValueError(f"dash_k={k} directions asked of a layer that has {rates.numel()}")
    if not torch.isfinite(rates).all():
        raise ValueError("a change rate is NaN or infinite; use a positive eps and a finite update")
    return torch.sort(rates, descending=True, stable=True).indices[:k]


def select_directions(
    projected: Tensor, sigma: Tensor, k: int, eps: float, selection: str, generator: torch.Generator
) -> Tensor:
    """Indices [k] (int64) of a layer's directions, from |u_i^T dW v_i| [p] and the singular values sigma [p].

    "change_rate" takes those of largest change rate, "projection" of largest |u_i^T dW v_i|, not divided by sigma_i.
    The other controls ignore dW: "random" draws from `generator` (on the CPU), "top" takes the largest singular values,
    "bottom" the smallest. Raises as `top_directions`, whatever the selection.
    """
    by_rate = top_directions(projected / (sigma + eps), k)
    return by_rate if selection == "change_rate" else RULES[selection](projected, k, generator).to(sigma.device)


# The controls: (|u_i^T dW v_i| [p], k, generator) -> indices [k].
RULES: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "projection": lambda projected, k, generator: top_directions(projected, k),
    "random": lambda projected, k, generator: torch.randperm(len(projected), generator=generator)[:k],
    "top": lambda projected, k, generator: torch.arange(k),
    "bottom": lambda projected, k, generator: torch.arange(len(projected) - k, len(projected)),
}
