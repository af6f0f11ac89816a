"""Singular directions of a frozen weight, change rates of a low-rank update, and the top-k choice.

Notation (arXiv 2409.01035): W = sum_i sigma_i u_i v_i^T is the frozen weight, dW = scaling * B A its low-rank
update. A core direction u_i v_i^T is task-specific when dW changes its singular value by a large fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Below this fraction of the largest singular value, W^T W has lost the direction to rounding (its eigenvalues are
# squares, and float64 keeps 1e-16) however often it is looked at again, so the full decomposition takes over.
_GRAM_FLOOR = 1e-7
# Directions below this fraction of the largest singular value that a Gram matrix tells are told again by one of theirs.
_SPLIT = 1e-2
_BLOCK = 2**25  # bytes of a weight that are in float64 at once


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

    @property
    def in_full(self) -> bool:
        """Whether it took a full SVD."""
        return self.U is not None and self.V is not None

    def to(self, device: torch.device) -> Spectrum:
        """The same on a device, which need not have float64: then on the CPU."""
        place = torch.device("cpu") if device.type == "mps" else device
        return Spectrum(*(t if t is None else t.to(place) for t in self))  # type: ignore[arg-type]


def decompose(weight: Tensor) -> Spectrum:
    """Decompose `weight` ([out, in], any floating dtype) in float64, whatever autocast says.

    Uses the eigenvectors of the smaller Gram matrix, about twice as fast as a full SVD for the shapes of attention and
    MLP weights, and the full SVD where the spectrum falls too low for that. Of the weight a few rows or columns are in
    float64 at once, so that it takes `memory_of` bytes; the full SVD takes those of two or three copies of the weight.

    Raises ValueError if the weight is not a matrix or holds NaN or infinity.
    """
    if weight.ndim != 2:
        raise ValueError(f"a weight to decompose has 2 dimensions [out, in], got shape {tuple(weight.shape)}")
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        # MPS has no float64: decompose there on the CPU.
        W = weight.detach().to("cpu" if weight.device.type == "mps" else weight.device)
        tall = W.shape[0] >= W.shape[1]
        result = _from_gram(W if tall else W.T)
        if result is None:
            U, sigma, V = _in_full(W if tall else W.T)
            return Spectrum(U, sigma, V) if tall else Spectrum(V.T.contiguous(), sigma, U.T.contiguous())
        sigma, V = result
        return Spectrum(None, sigma, V) if tall else Spectrum(V.T.contiguous(), sigma, None)


def memory_of(out: int, in_: int) -> int:
    """Bytes that `decompose` takes at most for a weight [out, in] whose spectrum does not fall too low: five matrices
    [p, p] in float64, of which the eigenvectors alone take four, and blocks of the weight."""
    p = min(out, in_)
    return 40 * p * p + 2 * min(_BLOCK, 8 * out * in_)


def _blocks(W: Tensor) -> Iterator[Tensor]:
    """W [m, n] in float64, some rows at a time, all in the same memory."""
    number = max(1, _BLOCK // (8 * max(1, W.shape[1])))
    memory = W.new_empty(min(number, W.shape[0]), W.shape[1], dtype=torch.float64)
    for rows in W.split(number):
        yield memory[: len(rows)].copy_(rows)


def _times(W: Tensor, x: Tensor) -> Tensor:
    """W @ x in float64, of W [m, n] in any dtype and x [n, j] in float64."""
    return torch.cat([rows @ x for rows in _blocks(W)])


def _gram(W: Tensor, inside: Tensor | None = None) -> Tensor:
    """W^T W of W [m, n] in float64, or that of W @ inside [n, j]. Raises ValueError where W is not finite."""
    total = None
    for rows in _blocks(W):
        if rows.numel() and not torch.isfinite(torch.stack(torch.aminmax(rows))).all():
            raise ValueError("the weight holds NaN or infinity and has no singular directions")
        part = rows if inside is None else rows @ inside
        total = part.T @ part if total is None else total.addmm_(part.T, part)
    assert total is not None
    return total


def _from_gram(W: Tensor) -> tuple[Tensor, Tensor] | None:
    """(sigma [p], right singular vectors [p, p] in rows) of a tall W [m, p] by eigh(W^T W), or None where that is
    inexact.

    A Gram matrix says squares to 1e-16 of the largest one. Those below _SPLIT^2 of it are told again by the Gram matrix
    of W in the space of their vectors, where they are the largest, and so on.
    """
    squares, vectors = torch.linalg.eigh(_gram(W))
    floor = squares[-1:].sum() * _GRAM_FLOOR**2  # the sum: also where there are none
    low = int((squares < squares[-1:].sum() * _SPLIT**2).sum())
    while low and squares[low - 1] > floor:
        inside, turn = torch.linalg.eigh(_gram(W, vectors[:, :low]))
        vectors[:, :low] = vectors[:, :low] @ turn
        squares[:low] = inside
        low = int((inside[:-1] < inside[-1] * _SPLIT**2).sum())
    squares, order = squares.sort(descending=True, stable=True)
    if squares.numel() == 0 or squares[-1] <= floor:
        return None
    return squares.sqrt(), vectors.T[order]


def _in_full(W: Tensor) -> Directions:
    """The decomposition of a tall W [m, p], whatever its spectrum: that of R, where W = Q R."""
    Q, R = torch.linalg.qr(W.double())
    inner, sigma, V = torch.linalg.svd(R)
    for rows in Q.split(max(1, _BLOCK // (8 * max(1, Q.shape[1])))):
        rows.copy_(rows @ inner)
    return Directions(Q, sigma, V)


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
        W = weight.detach().to(sigma.device)
        if U is None:
            U = _times(W, _given(V).T) / sigma
        if V is None:
            V = _times(W.T, U).T / sigma[:, None]
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
        W = sigma.new_empty(0, 0) if weight is None else weight.detach().to(sigma.device)
        left = U.T @ B if U is not None else (_given(V) @ _times(W.T, B)) / sigma[:, None]
        right = V @ A.T if V is not None else (_given(U).T @ _times(W, A.T)) / sigma[:, None]
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
