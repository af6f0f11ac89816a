"""DashWeights: what an adapter keeps for one frozen layer, and that layer's weight as a matrix."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .directions import Spectrum, projections, select_directions, singular_directions
from .quantized import dequantized, is_quantized
from .sharding import is_sharded, whole


def is_conv1d(module: nn.Module) -> bool:
    """True for transformers' Conv1D, a linear layer that stores its weight transposed, [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def weight_matrix(module: nn.Module) -> Tensor:
    """The layer's weight as the matrix W [out, in] that its adapter updates (conv: in = in * kh * kw): a view of it, or
    of a quantized layer what it stands for, a new tensor each time."""
    if is_quantized(module):
        return dequantized(module)
    weight = module.weight
    assert isinstance(weight, Tensor)
    if is_conv1d(module):
        return weight.T
    return weight.flatten(1)


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of `weight_matrix`, without making it."""
    if is_quantized(module):
        layer = cast(nn.Linear, module)
        return layer.out_features, layer.in_features
    out, in_ = weight_matrix(module).shape
    return out, in_


def device_of(module: nn.Module) -> torch.device:
    """Where the layer's weight is."""
    return cast(Tensor, module.weight).device


def kind_of(module: nn.Module) -> str | list[int]:
    """Either "linear", "conv1d", or a convolution's kernel [height, width]: how its matrix lies in its weight."""
    if isinstance(module, nn.Conv2d):
        return [int(n) for n in module.kernel_size]
    return "conv1d" if is_conv1d(module) else "linear"


ENABLED, MERGED = 0, 1  # places in DashWeights.switches
_UNIT = 4e-3  # how far a direction's length may be from 1: bfloat16 rounds by that much
_ON = 127  # averaging a buffer with itself may round it down by one, so that 1 would become 0
_BLENDED = range(16, _ON - 15)  # what averaging a switch that is on with one that is off gives


class Phase(NamedTuple):
    """What a layer's tensors say of an adapter: whether its directions are chosen, whether it adds to the output, and
    whether it is in the frozen weight already."""

    launched: bool
    enabled: bool
    merged: bool


@torch.no_grad()
def check_directions(launched: bool, V: Tensor, dsigma: Tensor) -> None:
    """Raises RuntimeError where the directions V [k, in] and their shifts [k] are no trained ones: averaged directions,
    and shifts without any."""
    lengths = V.float().norm(dim=1)
    if launched and bool(((lengths - 1).abs() > _UNIT).any()):
        raise RuntimeError(
            f"an adapter's directions V have lengths of {lengths.min().item():.3g} to {lengths.max().item():.3g} "
            "instead of 1: they were averaged over time, or scaled; average the parameters A, B and dsigma alone and "
            "copy the buffers (torch's AveragedModel: use_buffers=False; timm's ModelEmaV3: exclude_buffers=True)"
        )
    # Shifts that are no numbers come of a training that diverged, which is said elsewhere.
    if not launched and not is_sharded(dsigma) and bool(dsigma[torch.isfinite(dsigma)].any()):
        raise RuntimeError(
            "an adapter has shifts of singular values and no directions for them: its parameters were loaded without "
            "its buffers U, V and indices; save and load the whole state dict, or the adapter's own (adapter.save)"
        )


def has_numbers(tensor: Tensor) -> bool:
    """Whether it has numbers of its own: not on the meta device, nor as a fake tensor that stands for a real one, nor
    as one of many models under torch.func.vmap."""
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
        return False
    return not torch._C._functorch.is_batchedtensor(tensor)


class DashWeights(nn.Module):
    """What one adapter keeps for one layer.

    Parameters: A [r, in], B [out, r], dsigma [k]. Buffers, zero until the launch: U [out, k], V [k, in], and the
    indices [k] of the chosen directions in the weight's spectrum (-1 until then). All in float32 at first,
    whatever the layer's dtype: they are what the optimizer updates. dsigma is a Parameter from step 0; while U
    and V are zero its gradient is zero, so optimizer, DDP and torch.compile see one graph through both phases.

    A fourth buffer, switches [2], says whether the adapter is enabled and merged. The tensors thus say everything: a
    state dict that is saved here and loaded elsewhere carries the phase with it.
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
        first = torch.empty(rank, in_features, device="cpu")  # drawn there: on every device the same
        if rank:
            nn.init.kaiming_uniform_(first, a=math.sqrt(5))
        self.A = nn.Parameter(first.to(device))
        self.B = nn.Parameter(torch.zeros(out_features, rank, device=device))
        self.dsigma = nn.Parameter(torch.zeros(k, device=device))
        self.U: Tensor
        self.V: Tensor
        self.indices: Tensor
        self.switches: Tensor
        self.register_buffer("U", torch.zeros(out_features, k, device=device))
        self.register_buffer("V", torch.zeros(k, in_features, device=device))
        self.register_buffer("indices", torch.full((k,), -1, dtype=torch.int64, device=device))
        self.register_buffer("switches", torch.tensor([_ON, 0], dtype=torch.int8, device=device))
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.left_out = False  # for a moment: see Adapter.left_out
        self._seen: tuple[Any, ...] = ()
        self._held: tuple[Tensor, ...] = ()  # so that no other tensor comes to have the id of one that was seen
        self._phase = Phase(False, True, False)

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """([A; V] [r + k, in], scales [r + k], [B, U] [out, r + k]): what the update multiplies by, in turn.

        It is called as a module, so that accelerate's offloading has the tensors on the device while they are read.
        """
        return self.down(dtype), self.scale(dtype), self.up(dtype)

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
    def phase(self) -> Phase:
        """What the tensors say. Raises RuntimeError for tensors that contradict each other: averaged ones, or shifts
        without their directions."""
        if not torch.compiler.is_compiling() and self._stamp() != self._seen:
            self.look()
        return self._phase

    @property
    def launched(self) -> bool:
        """Whether the directions are chosen: an index of -1 stands for none."""
        return self.phase.launched

    @torch.no_grad()
    def switch(self, which: int, on: bool) -> None:
        """Write one of `switches`: ENABLED or MERGED."""
        self.switches[which] = _ON if on else 0
        self.look()

    def _stamp(self) -> tuple[Any, ...]:
        """By which it is noticed that somebody wrote to what the phase is read from, or exchanged it.

        On a CPU the few numbers themselves are in it, since writing to `tensor.data` leaves no other trace. Elsewhere
        each look at numbers would wait for the device.
        """
        stamp: list[Any] = []
        for name in ("indices", "V", "switches"):
            tensor = self._buffers[name]
            assert tensor is not None
            stamp += [id(tensor), None if tensor.is_inference() else tensor._version]
            if name != "V" and tensor.device.type == "cpu" and has_numbers(tensor):
                stamp.append(tensor.tolist())
        return tuple(stamp)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._seen = ()  # the shifts may have come without their directions

    @torch.no_grad()
    def look(self) -> None:
        """Read the phase anew; raises as `phase`."""
        self._seen, self._held = self._stamp(), (self.indices, self.V, self.switches)
        if not has_numbers(self.switches):
            return
        enabled, merged = (int(switch) for switch in self.switches)
        if merged in _BLENDED:
            raise RuntimeError(
                "the weights are an average of ones with the adapter merged into them and others without; unmerge it "
                "before averaging"
            )
        # While V is zero there is no direction, whatever averaging made of the indices.
        launched = bool((self.indices >= 0).any()) and bool(self.V.any())
        self._phase = Phase(launched, 2 * enabled > _ON, 2 * merged > _ON)
        check_directions(launched, self.V, self.dsigma)

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
