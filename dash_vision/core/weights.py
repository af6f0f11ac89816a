"""DashWeights: what an adapter keeps for one frozen layer, and that layer's weight as a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .directions import Spectrum, projections, select_directions, singular_directions
from .sharding import whole


def is_conv1d(module: nn.Module) -> bool:
    """True for transformers' Conv1D, a linear layer that stores its weight transposed, [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def weight_matrix(module: nn.Module) -> Tensor:
    """The layer's weight as the matrix W [out, in] that its adapter updates (a view; conv: in = in * kh * kw)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if is_conv1d(module):
        return weight.T
    return weight.flatten(1)


def kind_of(module: nn.Module) -> str | list[int]:
    """Either "linear", "conv1d", or a convolution's kernel [height, width]: how its matrix lies in its weight."""
    if isinstance(module, nn.Conv2d):
        return [int(n) for n in module.kernel_size]
    return "conv1d" if is_conv1d(module) else "linear"


class DashWeights(nn.Module):
    """What one adapter keeps for one layer.

    Parameters: A [r, in], B [out, r], dsigma [k]. Buffers, zero until the launch: U [out, k], V [k, in], and the
    indices [k] of the chosen directions in the weight's spectrum (-1 until then). All in float32 at first,
    whatever the layer's dtype: they are what the optimizer updates. dsigma is a Parameter from step 0; while U
    and V are zero its gradient is zero, so optimizer, DDP and torch.compile see one graph through both phases.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        rank: int,
        scaling: float,
        k: int,
        dropout: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.rank, self.k, self.scaling = rank, k, scaling
        self.A = nn.Parameter(torch.empty(rank, in_features, device=device))
        self.B = nn.Parameter(torch.zeros(out_features, rank, device=device))
        self.dsigma = nn.Parameter(torch.zeros(k, device=device))
        self.U: Tensor
        self.V: Tensor
        self.indices: Tensor
        self.register_buffer("U", torch.zeros(out_features, k, device=device))
        self.register_buffer("V", torch.zeros(k, in_features, device=device))
        self.register_buffer("indices", torch.full((k,), -1, dtype=torch.int64, device=device))
        self.dropout = nn.Dropout(dropout) if dropout else None
        self._looked_at = (0, 0, False)
        if rank:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def down(self, dtype: torch.dtype) -> Tensor:
        """[A; V], [r + k, in]."""
        return torch.cat([self.A, self.V]).to(dtype)

    def up(self, dtype: torch.dtype) -> Tensor:
        """[B, U], [out, r + k]."""
        return torch.cat([self.B, self.U], dim=1).to(dtype)

    def scale(self, dtype: torch.dtype) -> Tensor:
        """[alpha / r, ..., alpha / r, dsigma_1, ..., dsigma_k], [r + k]."""
        return torch.cat([self.dsigma.new_full((self.rank,), self.scaling), self.dsigma]).to(dtype)

    @property
    def launched(self) -> bool:
        """Whether the directions are chosen: an index of -1 stands for none."""
        # Looked at again only when the tensor was written to or exchanged: on a GPU every look waits for it.
        now = (id(self.indices), self.indices._version)
        if self._looked_at[:2] != now:
            self._looked_at = (*now, bool((self.indices >= 0).any()))
        return self._looked_at[2]

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense update (alpha / r) B A + U diag(dsigma) V^T, [out, in]; for merging, not for a forward pass."""
        dtype = dtype or self.A.dtype
        return (self.up(dtype) * self.scale(dtype)) @ self.down(dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A [r, in], B [out, r]), detached; gathers them where the model is split, see sharding.py."""
        return whole(self.A), whole(self.B)

    def choose(
        self,
        W: Tensor,
        factors: tuple[Tensor, Tensor],
        spectrum: Spectrum,
        eps: float,
        selection: str,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(indices [k], U [out, k], V [k, in]) of the k directions of the frozen W [out, in] that `factors()` change
        most, or of the control that `selection` names (config.SELECTIONS).

        spectrum: `decompose(W)`. generator: what a random choice is drawn from. Nothing is stored: see
        `DashLinear.set_directions`. Raises ValueError for a non-finite update.
        """
        projected = projections(spectrum, *factors, self.scaling, W)
        indices = select_directions(projected, spectrum.sigma, self.k, eps, selection, generator)
        U, _, V = singular_directions(W, spectrum, indices)
        return indices, U, V
