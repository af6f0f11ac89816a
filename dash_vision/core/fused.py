"""One autograd function for a frozen linear layer and its adapter: fewer and thinner products than the graph of parts.

Left to autograd, the parts cost more than they must in the backward pass: gradients of U and V are computed as columns
of the stacked factors and thrown away, and the input's gradient is summed from two wide tensors. Here U and V get none,
the update's share is added into the frozen layer's by one product, and the copies that the products read are made when
they are needed and kept by nobody. Of a quantized layer the frozen product stays its library's, and the update is one
function. The plain version, DashLinear's `_add_update`, stays for every other case, and is
what the tests compare this with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as modules

from .quantized import frozen_product

if TYPE_CHECKING:
    from .weights import DashWeights

# A hook sees the layer's own output only when the layer itself is called.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (Tensor, FakeTensor)  # no subclass that computes otherwise, as quantized weights do
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)  # of all modules there are


def applies(base: nn.Module, w: DashWeights, x: Tensor) -> bool:
    """Whether `linear` computes what base and update would: a plain nn.Linear, frozen and without hooks, in training.

    torch.compile sees the plain version, which it fuses its own way; so do tracing, torch.func's transforms, and
    whatever needs no gradient.
    """
    if type(base) is not nn.Linear or not _in_training(w):
        return False
    weight, bias = base.weight, base.bias
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return False
    if type(weight.data) not in _PLAIN or type(x.detach()) not in _PLAIN:
        return False
    # accelerate's offloading, for one, exchanges the method instead of registering a hook.
    if "forward" in vars(base) or any(getattr(base, hooks) for hooks in _HOOKS):
        return False
    if any(getattr(modules, hooks) for hooks in _GLOBAL_HOOKS):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return torch.float64 not in (x.dtype, weight.dtype)  # which autocast leaves alone
    return x.dtype == weight.dtype


def applies_to_quantized(w: DashWeights, x: Tensor) -> bool:
    """Whether `quantized` computes what a quantized layer and the update would."""
    return _in_training(w) and type(x.detach()) in _PLAIN and x.dtype != torch.float64


def _in_training(w: DashWeights) -> bool:
    if not torch.is_grad_enabled() or _is_watched():
        return False
    return w.dropout is None or not w.dropout.training


def _is_watched() -> bool:
    """Whether something records or transforms what is called, and has to see PyTorch's own operations."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def linear(base: nn.Linear, w: DashWeights, x: Tensor) -> Tensor:
    """base(x) + (alpha / r) B A x + U diag(dsigma) V x, for x [..., in]; returns [..., out].

    The dtype is that of the frozen layer's output: autocast's under autocast, else that of x and the weight.
    Gradients go to x, A, B and dsigma, once: a second derivative raises RuntimeError.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    result: Tensor = _Linear.apply(x, base.weight, base.bias, w.A, w.B, w.dsigma, w.U, w.V, w.scaling, dtype)
    return result


def quantized(base: nn.Module, w: DashWeights, x: Tensor) -> Tensor:
    """The same as `linear` of a quantized layer. The output's dtype is that of its library's."""
    rows = x.reshape(-1, x.shape[-1])
    y = frozen_product(base, rows)
    if y._is_view():  # autograd forbids changing a view that the function of a library gives
        y = y.clone()
    result: Tensor = _Update.apply(y, rows, w.A, w.B, w.dsigma, w.U, w.V, w.scaling)
    return result.view(*x.shape[:-1], result.shape[-1])


def _down(A: Tensor, V: Tensor, dsigma: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """[(alpha / r) A; diag(dsigma) V], [r + k, in]: scaled here, where there are fewest numbers."""
    return _as(dtype, torch.cat([A if scaling == 1 else A * scaling, V * dsigma.view(-1, 1)]))


def _up(B: Tensor, U: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, U], [out, r + k]."""
    return _as(dtype, torch.cat([B, U], dim=1))


def _as(dtype: torch.dtype, t: Tensor) -> Tensor:
    """t.to(dtype), without a call into PyTorch where there is nothing to do: small layers are measured in those."""
    return t if t.dtype == dtype else t.to(dtype)


class _Linear(torch.autograd.Function):
    """Keeps for the backward pass what LoRA alone would: the input and A x; of many tokens in a narrow layer not even
    that. Stacked factors and a cast weight are made again there."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        dsigma: Tensor,
        U: Tensor,
        V: Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> Tensor:
        out, in_ = weight.shape
        rows, matrix = _as(dtype, x.reshape(-1, in_)), _as(dtype, weight).T
        # The output is no view of anything: an activation after the layer may work in place.
        y = rows.new_empty(*x.shape[:-1], out)
        flat = y.view(-1, out)
        if bias is None:
            torch.mm(rows, matrix, out=flat)
        else:
            torch.addmm(_as(dtype, bias), rows, matrix, out=flat)
        kept = _add(flat, rows, A, B, dsigma, U, V, scaling)
        ctx.save_for_backward(rows, weight, A, B, dsigma, U, V, kept)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, *update = ctx.saved_tensors
        for_x, _, _, *wanted = ctx.needs_input_grad
        dx, g = None, gradient.reshape(-1, len(weight))
        gh, down, found = _gradients(g, rows, update, ctx.scaling, wanted)
        if for_x:
            dx = _as(ctx.dtype, torch.mm(g, _as(rows.dtype, weight)).addmm_(gh, down).view(ctx.shape))
        return dx, None, None, *found, None, None, None, None


class _Update(torch.autograd.Function):
    """Adds the update into y [tokens, out], which a quantized layer gave, and keeps for the backward pass what LoRA
    alone would."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        dsigma: Tensor,
        U: Tensor,
        V: Tensor,
        scaling: float,
    ) -> Tensor:
        rows = _as(y.dtype, x)
        with torch.autocast(x.device.type, enabled=False):
            kept = _add(y, rows, A, B, dsigma, U, V, scaling)
        ctx.mark_dirty(y)
        ctx.save_for_backward(rows, A, B, dsigma, U, V, kept)
        ctx.scaling, ctx.dtype = scaling, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        rows, *update = ctx.saved_tensors
        for_y, for_x, *wanted = ctx.needs_input_grad
        gh, down, found = _gradients(g, rows, update, ctx.scaling, wanted)
        dx = _as(ctx.dtype, torch.mm(gh, down)) if for_x else None
        return g if for_y else None, dx, *found, None, None, None


def _add(
    y: Tensor, rows: Tensor, A: Tensor, B: Tensor, dsigma: Tensor, U: Tensor, V: Tensor, scaling: float
) -> Tensor | None:
    """Add the update of rows [tokens, in] into y [tokens, out], of one dtype; returns A x where it is to be kept."""
    h = torch.mm(rows, _down(A, V, dsigma, scaling, rows.dtype).T)
    y.addmm_(h, _up(B, U, rows.dtype).T)
    # More numbers than A and B have are computed again instead: so U and V find room in what LoRA takes.
    return h.narrow_copy(1, 0, len(A)) if len(rows) <= A.shape[1] + len(B) else None


def _gradients(
    g: Tensor, rows: Tensor, update: Sequence[Any], scaling: float, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """([tokens, r + k] and [r + k, in], whose product is the input's gradient by the update; those of A, B and dsigma
    as far as they are `wanted`), of the output's gradient g [tokens, out]. update: what the forward pass saved."""
    A, B, dsigma, U, V, kept = update
    for_A, for_B, for_dsigma, *_ = wanted
    r, dtype = len(A), rows.dtype
    dA = dB = ddsigma = None
    down = _down(A, V, dsigma, scaling, dtype)
    gh = torch.mm(g, _up(B, U, dtype))  # [tokens, r + k]
    if for_B:
        # Thin times wide: in this order BLAS is up to nine times faster than with the wide factor transposed.
        h = torch.mm(rows, down[:r].T) if kept is None else kept
        dB = _as(B.dtype, torch.mm(h.T, g).T)
    if for_A or for_dsigma:
        # One product: its first rows are A's gradient, and the others' share along V is that of the shifts.
        toward = torch.mm(gh.T, rows)  # [r + k, in]
        if for_A:  # in memory of its own, not as a part of the product's
            dA = _as(A.dtype, toward.narrow_copy(0, 0, r))
            if scaling != 1:
                dA.mul_(scaling)
        if for_dsigma:
            ddsigma = (toward[r:] * V).sum(1, dtype=dsigma.dtype)
    return gh, down, (dA, dB, ddsigma)
