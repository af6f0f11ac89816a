"""DashLinear: a frozen layer, its low-rank update, and the shifts of k of its singular values.

    y = W x + (alpha / r) B A x + sum_i dsigma_i u_i (v_i^T x)          (arXiv 2409.01035)

The update is one low-rank product of rank r + k: h = [A; V] x is thin, h is scaled while it is thin, and
[B, U] h is added into the frozen layer's output by one matrix product. Neither B A nor U diag(dsigma) V^T is
ever formed in a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files.fingerprints import probe_matrix
from . import fused
from .quantized import frozen_product, is_quantized, is_repacked
from .sharding import is_sharded, whole
from .weights import MERGED, DashWeights, has_numbers, is_conv1d, matrix_shape, weight_matrix

_REPACKED = (
    "bitsandbytes has repacked its weight for inference on this CPU, where it passes no gradients; load the model "
    "again, and put the adapter in before the model computes"
)


class DashLinear(nn.Module):
    """A frozen linear layer (nn.Linear, a quantized one, or transformers' Conv1D) under any number of named adapters.

    Enabled adapters add to the output; merged ones are in the weight already. The output has the frozen layer's
    output dtype, under autocast and without. `weight` is the effective weight, so that code which reads it instead
    of calling the layer (timm's EVA and BEiT attention) computes with the adapter too.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.kept_weight: Tensor | None = None  # W before the first merge, bit for bit
        self.quantized = is_quantized(base)
        # Reads W [out, in] as it was before it was quantized or cast, where that is to be had.
        self.precise_weight: Callable[[], Tensor] | None = None
        self._probes: list[float] | None = None
        self._called, self._read = False, False  # what the model does with the layer, see `bypassed`

    # -- what the layer looks like from outside

    @property
    def weight(self) -> Tensor:
        """The frozen weight plus every enabled update, in the frozen weight's shape and dtype; a quantized one as what
        it stands for."""
        if not torch.compiler.is_compiling():
            self._read = True
        weight = weight_matrix(self.base) if self.quantized else self.base.weight
        assert isinstance(weight, Tensor)
        active = self._adding()
        if not active:
            return weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        delta = torch.stack([w.delta(wide) for w in active]).sum(0)
        return (weight.to(wide) + self._shaped(delta)).to(weight.dtype)

    @property
    def bypassed(self) -> bool:
        """Whether the model has read the layer's weight and never called the layer, as far as this was seen: not
        inside torch.compile. The adapter counts there too, except for its dropout; one of another library would not."""
        return self._read and not self._called

    def mark_bypassed(self) -> None:
        """Note what a file says of the layer: that the model it was trained in bypasses it."""
        self._read = True

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    @property
    def in_features(self) -> int:
        return matrix_shape(self.base)[1]

    @property
    def out_features(self) -> int:
        return matrix_shape(self.base)[0]

    def weights(self, name: str) -> DashWeights:
        """The adapter called `name` of this layer; KeyError if there is none."""
        found = self.adapters[name]
        assert isinstance(found, DashWeights)
        return found

    def extra_repr(self) -> str:
        return ", ".join(f"{n}: rank {self.weights(n).rank} + {self.weights(n).k}" for n in self.adapters)

    # -- forward

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._called = True
        active = self._adding()
        if len(active) == 1 and fused.applies(self.base, active[0], x):
            assert isinstance(self.base, nn.Linear)
            return fused.linear(self.base, active[0], x)
        if len(active) == 1 and self.quantized and fused.applies_to_quantized(active[0], x):
            return fused.quantized(self.base, active[0], x)
        y = frozen_product(self.base, x) if self.quantized else self.base(x)
        for w in active:
            y = self._add_update(x, y, w)
        return y

    def _add_update(self, x: Tensor, y: Tensor, w: DashWeights) -> Tensor:
        if w.dropout is not None:
            x = w.dropout(x)  # one draw for both branches
        # Thin factors follow the input's dtype: a bf16 layer multiplies in bf16, and no wide tensor is cast.
        down, scale, up = w(x.dtype)
        h = F.linear(x, down)
        # Quantized layers do not follow autocast: the dtype of their output need not be that of the thin product.
        h, up = (h * scale.to(h.dtype)).to(y.dtype), up.to(y.dtype)
        if y.ndim == 1:
            return y + up @ h
        if self.quantized:  # autograd forbids changing what the functions of some of their libraries give
            y = y.clone()
        # In place: a plain frozen layer keeps nothing of its output for its backward pass, and no copy of it is made.
        return y.flatten(0, -2).addmm_(h.flatten(0, -2), up.T).view(y.shape)

    def _adding(self) -> list[DashWeights]:
        """The adapters that are added to the output: enabled ones that are neither in the weight already nor left out
        for a moment."""
        active = []
        for w in cast("Iterable[DashWeights]", self.adapters.values()):
            phase = w.phase  # read once; an assignment inside a comprehension would break torch.compile's graph
            if phase.enabled and not phase.merged and not w.left_out:
                active.append(w)
        return active

    @property
    def enabled(self) -> list[str]:
        """Names of the adapters that count: they are added to the output, or in the weight already."""
        return [name for name in self.adapters if self.weights(name).phase.enabled]

    @property
    def merged(self) -> list[str]:
        """Names of the adapters that are in the weight."""
        return [name for name in self.adapters if self.weights(name).phase.merged]

    def _shaped(self, matrix: Tensor) -> Tensor:
        """[out, in] in the layout of the frozen weight."""
        if self.quantized:
            return matrix
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return matrix.T if is_conv1d(self.base) else matrix.view(weight.shape)

    # -- directions

    def frozen_matrix(self) -> Tensor:
        """W [out, in] as it was before any merge, in the highest precision at hand: a bf16 copy of it has a rounding
        floor just where the change rates look. A part of it where the model is split: see sharding.whole."""
        return self.precise_weight() if self.precise_weight is not None else self.unmerged_matrix()

    def unmerged_matrix(self) -> Tensor:
        """W [out, in] as it was before any merge, in the dtype that the layer computes with.

        Where the weight came merged from a state dict its original is not at hand: then up to rounding.
        """
        merged = self.merged
        if not merged:
            return weight_matrix(self.base)
        if self.kept_weight is not None:
            return self.kept_weight
        W = weight_matrix(self.base).detach()
        wide = torch.promote_types(W.dtype, torch.float32)
        return (W.to(wide) - torch.stack([self.weights(name).delta(wide) for name in merged]).sum(0)).to(W.dtype)

    def probes(self) -> list[float]:
        """`fingerprints.probe_matrix` of the frozen weight as it was before any merge, and of a quantized one as its
        base has it unquantized, where that is to be had. It gathers where the model is split."""
        if not self.quantized:
            return probe_matrix(whole(self.unmerged_matrix()))
        if self._probes is None:  # it is frozen, and reading or dequantizing it takes time
            self._probes = probe_matrix(self.frozen_matrix())
        return self._probes

    @torch.no_grad()
    def set_directions(self, name: str, indices: Tensor, U: Tensor, V: Tensor) -> None:
        """Write chosen directions into the adapter's buffers, in place: references to them stay valid."""
        w = self.weights(name)
        w.indices.copy_(indices)
        w.U.copy_(U)
        w.V.copy_(V)

    # -- merging

    @torch.no_grad()
    def merge(self, name: str) -> None:
        """Add adapter `name`'s update to the frozen weight. The first merge keeps a copy of the weight. Raises
        RuntimeError for a quantized weight."""
        if name in self.merged:
            return
        self.check_mergeable()
        if self.merged:
            self.check_unmergeable()
        else:
            self.kept_weight = weight_matrix(self.base).clone()
        self.weights(name).switch(MERGED, True)
        self._write_merged()

    @torch.no_grad()
    def unmerge(self, name: str) -> None:
        """Take the update out again: with no other merged, W comes back bit for bit from the kept copy."""
        if name not in self.merged:
            return
        self.check_unmergeable()
        self.weights(name).switch(MERGED, False)
        self._write_merged()
        if not self.merged:
            self.kept_weight = None

    def check_mergeable(self) -> None:
        """Raises RuntimeError for a quantized weight: its steps are wider than most updates."""
        if self.quantized:
            raise RuntimeError(
                "cannot merge into a quantized weight, whose rounding would swallow the update; export the adapter as "
                "a LoRA, or merge it into the unquantized base"
            )

    def check_unmergeable(self) -> None:
        """Raises RuntimeError where the weight came merged from a state dict, without the original to go back to."""
        if self.merged and self.kept_weight is None:
            raise RuntimeError(
                f"the weights came from a state dict that was saved while {', '.join(self.merged)} was merged, so that "
                "the original ones are not at hand; load the base again, inject, and load the adapter"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """A weight that is loaded is merged or not, as the loaded switches say: the copy kept here is of another."""
        if f"{prefix}base.weight" in state_dict:
            self.kept_weight = None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _write_merged(self) -> None:
        assert self.kept_weight is not None
        total = self.kept_weight
        if self.merged:
            wide = torch.promote_types(total.dtype, torch.float32)
            total = total.to(wide)
            for name in self.merged:
                total = total + self.weights(name).delta(wide).to(total.device)
        # Into the weight itself: the matrix of a channels_last kernel is a copy of it.
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        weight.copy_(self._shaped(total))


class DashConv2d(DashLinear):
    """The same for nn.Conv2d: W flattened to [out, in * kh * kw], A and V applied as a k x k convolution."""

    base: nn.Conv2d

    def _add_update(self, x: Tensor, y: Tensor, w: DashWeights) -> Tensor:
        if w.dropout is not None:
            x = w.dropout(x)
        down, scale, up = w(x.dtype)
        down = down.view(-1, *self.base.weight.shape[1:])
        h = self.base._conv_forward(x, down, None)  # stride, dilation and padding mode of the frozen layer
        h = h * scale.to(h.dtype).view(-1, 1, 1)
        return y + F.conv2d(h, up.to(h.dtype)[:, :, None, None]).to(y.dtype)


def wrap(module: nn.Module) -> DashLinear:
    """`module` inside the class that can adapt it; ValueError if there is none, in words fit for the user."""
    reason = refusal(module)
    if reason:
        raise ValueError(reason)
    return DashConv2d(module) if isinstance(module, nn.Conv2d) else DashLinear(module)


def adaptable(module: nn.Module) -> bool:
    """True for the layer types an adapter can sit on."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) or is_conv1d(module)


def refusal(module: nn.Module) -> str | None:
    """Why this layer cannot be adapted, or None."""
    kind = type(module).__name__
    if not adaptable(module):
        return f"{kind} is not a Linear, Conv2d or Conv1D layer"
    if kind == "NonDynamicallyQuantizableLinear":
        return "it is the output projection of nn.MultiheadAttention, which reads the weight and never calls the layer"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"it is a grouped convolution (groups={module.groups}); its weight is not one matrix"
    if "weight" not in module._parameters:
        return "its weight is computed from other tensors each time (weight or spectral normalisation, parametrization)"
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.device.type == "meta":
        return "its weight is on the meta device; load the weights first"
    if is_quantized(module):
        return _REPACKED if is_repacked(module) else None
    if not weight.is_floating_point():
        return f"its weight is stored as {weight.dtype}; load the model in a floating-point dtype"
    if is_sharded(weight):
        return "its weight is split over the processes; put the adapter in first, and split the model (FSDP) afterwards"
    if not has_numbers(weight):  # its memory is being planned: see diffusion.metering
        return None
    if not torch.isfinite(weight).all():
        return "its weight holds NaN or infinity"
    if not _is_plain(module):
        return (
            f"{kind} does more than a plain layer with its weight, so that an update of the weight means nothing to it"
        )
    return None


@torch.no_grad()
def _is_plain(module: nn.Module) -> bool:
    """Whether a layer computes what a plain one with its weight computes: of classes with a forward of their own it is
    tried (timm's Conv2dSame pads otherwise, StdConv2d standardizes its weight)."""
    if is_conv1d(module) or type(module).forward in (nn.Linear.forward, nn.Conv2d.forward):
        return True
    plain: Any
    if isinstance(module, nn.Linear):
        plain, inputs = nn.Linear.forward, [_ramp(module, 2, module.in_features)]
    else:
        assert isinstance(module, nn.Conv2d)
        plain, inputs = nn.Conv2d.forward, [_ramp(module, 1, module.in_channels, side, side) for side in (32, 33)]
    return all(_same(type(module).forward, plain, module, x) for x in inputs)


def _same(forward: Any, plain: Any, module: nn.Module, x: Tensor) -> bool:
    """Whether both give one result, up to what half precision rounds."""
    try:
        expected, found = plain(module, x), forward(module, x)
    except (TypeError, ValueError, RuntimeError):  # it takes other inputs
        return False
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    expected = expected.float()
    return torch.allclose(found.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def _ramp(module: nn.Module, *shape: int) -> Tensor:
    """Numbers in -1..1 without a pattern that a layer could miss, drawn from no generator."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return torch.sin(torch.arange(math.prod(shape), device=weight.device) ** 1.5).to(weight.dtype).view(shape)
