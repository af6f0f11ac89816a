"""Singular directions of a frozen weight, change rates of a low-rank update, and the top-k choice.

Notation (arXiv 2409.01035): W = sum_i sigma_i u_i v_i^T is the frozen weight, dW = scaling * B A its low-rank
update. A core direction u_i v_i^T is task-specific when dW changes its singular value by a large fraction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Below this fraction of the largest singular value, W^T W has lost the direction to rounding (its eigenvalues
# are squares: 1e-5 squared is 1e-10, and float64 keeps 1e-16), so the full decomposition takes over.
_GRAM_FLOOR = 1e-5


# How a layer's k directions are chosen: the paper's way, and three controls that show what the choice is worth.
SELECTIONS = ("change_rate", "random", "top", "bottom")


class Directions(NamedTuple):
    """Singular value decomposition of a [out, in] weight, float64; p = min(out, in), sigma descending."""

    U: Tensor  # [out, p], orthonormal columns
    sigma: Tensor  # [p]
    V: Tensor  # [p, in], orthonormal rows: V[i] is v_i^T


def singular_directions(weight: Tensor) -> Directions:
    """Decompose `weight` ([out, in], any floating dtype) in float64, whatever autocast says.

    Uses the eigenvectors of the smaller Gram matrix, about twice as fast as a full SVD for the shapes of
    attention and MLP weights, and the full SVD where the spectrum falls too low for that. Deterministic: the
    sign of each pair is fixed by making the largest entry of v_i positive.

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
            U, sigma, V = torch.linalg.svd(W, full_matrices=False)
        else:
            left, sigma, right = result
            U, V = (left, right.T) if tall else (right, left.T)
        sign = torch.sign(V.gather(1, V.abs().argmax(dim=1, keepdim=True)))
        return Directions(U * sign.T, sigma, V * sign)


def _from_gram(W: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(left [m, p], sigma [p], right [p, p]) of a tall W [m, p] by eigh(W^T W), or None where that is inexact."""
    squares, right = torch.linalg.eigh(W.T @ W)
    squares, right = squares.flip(0), right.flip(1)
    if squares.numel() == 0 or squares[-1] <= squares[0] * _GRAM_FLOOR**2:
        return None
    sigma = squares.sqrt()
    return (W @ right) / sigma, sigma, right


def change_rates(directions: Directions, A: Tensor, B: Tensor, scaling: float = 1.0, eps: float = 1e-6) -> Tensor:
    """Change rate of every core direction: delta_i = |u_i^T dW v_i| / (sigma_i + eps), [p], float64.

    dW = scaling * B A with A [r, in] and B [out, r] is never formed: all u_i^T dW v_i at once are the sum over
    the rank axis of (U^T B) * (A V^T)^T, p * r * (out + in) multiplications. Rank 0 gives zeros.
    """
    U, sigma, V = directions
    with torch.no_grad(), torch.autocast(U.device.type, enabled=False):
        A, B = A.detach().to(U.device).double(), B.detach().to(U.device).double()
        projected = ((U.T @ B) * (V @ A.T)).sum(dim=1) * scaling
        return projected.abs() / (sigma + eps)


def top_directions(rates: Tensor, k: int) -> Tensor:
    """Indices [k] (int64) of the k largest change rates, largest first; equal rates go to the larger sigma.

    Raises ValueError when k exceeds the number of directions or a rate is NaN or infinite.
    """
    if k > rates.numel():
        raise ValueError(f"dash_k={k} directions asked of a layer that has {rates.numel()}")
    if not torch.isfinite(rates).all():
        raise ValueError("a change rate is NaN or infinite; use a positive eps and a finite update")
    return torch.sort(rates, descending=True, stable=True).indices[:k]


def select_directions(rates: Tensor, k: int, selection: str = "change_rate") -> Tensor:
    """Indices [k] (int64) of a layer's directions: those of `top_directions`, or of a control that ignores the rates.

    "random" draws from the global CPU generator, "top" takes the largest singular values, "bottom" the smallest.
    Raises as `top_directions`, whatever the selection.
    """
    chosen, p = top_directions(rates, k), rates.numel()
    if selection == "random":
        return torch.randperm(p)[:k].to(rates.device)
    if selection == "top":
        return torch.arange(k, device=rates.device)
    if selection == "bottom":
        return torch.arange(p - k, p, device=rates.device)
    return chosen
