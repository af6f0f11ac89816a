"""One autograd function for a frozen linear layer and its adapter: fewer and thinner products than the graph of parts.

Left to autograd, the parts cost more than they must in the backward pass: gradients of U and V are computed as columns
of the stacked factors and thrown away, and the input's gradient is summed from two wide tensors. Here U and V get none,
and the update's share is added into the frozen layer's by one product. The plain version, DashLinear's `_add_update`,
stays for every other case, and is what the tests compare this with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as modules

if TYPE_CHECKING:
    from .layer import DashWeights

# A hook sees the layer's own output only when the layer itself is called.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)  # of all modules there are


def applies(base: nn.Module, w: DashWeights, x: Tensor) -> bool:
    """Whether `linear` computes what base and update would: a plain nn.Linear, frozen and without hooks, in training.

    torch.compile sees the plain version, which it fuses its own way; so do tracing, torch.func's transforms, and
    whatever needs no gradient.
    """
    if type(base) is not nn.Linear or not torch.is_grad_enabled() or _is_watched():
        return False
    if w.dropout is not None and w.dropout.training:
        return False
    weight, bias = base.weight, base.bias
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return False
    if type(weight.data) is not Tensor or type(x.detach()) is not Tensor:
        return False
    # accelerate's offloading, for one, exchanges the method instead of registering a hook.
    if "forward" in vars(base) or any(getattr(base, hooks) for hooks in _HOOKS):
        return False
    if any(getattr(modules, hooks) for hooks in _GLOBAL_HOOKS):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return torch.float64 not in (x.dtype, weight.dtype)  # which autocast leaves alone
    return x.dtype == weight.dtype


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
    result: Tensor = _Linear.apply(x, base.weight, base.bias, w.A, w.B, w.dsigma, w, dtype)
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        dsigma: Tensor,
        w: DashWeights,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        weight = weight.to(dtype)
        down, up, scale = w.down(dtype), w.up(dtype), w.scale(dtype)
        # The output is no view of anything: an activation after the layer may work in place.
        y = rows.new_empty(*x.shape[:-1], weight.shape[0])
        flat = y.view(-1, y.shape[-1])
        if bias is None:
            torch.mm(rows, weight.T, out=flat)
        else:
            torch.addmm(bias.to(dtype), rows, weight.T, out=flat)
        h = rows @ down.T
        flat.addmm_(h * scale, up.T)
        ctx.save_for_backward(rows, weight, down, up, scale, h)
        ctx.rank, ctx.shape, ctx.dtypes = w.rank, x.shape, (x.dtype, A.dtype, B.dtype, dsigma.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, scale, h = ctx.saved_tensors
        r: int = ctx.rank
        for_x, _, _, for_A, for_B, for_dsigma, _, _ = ctx.needs_input_grad
        dx = dA = dB = ddsigma = None
        g = gradient.reshape(-1, gradient.shape[-1])
        gh = g @ up  # of the scaled h, [tokens, r + k]
        if for_B:
            # Thin times wide: in this order BLAS is up to nine times faster than with the wide factor transposed.
            dB = ((h[:, :r] * scale[:r]).T @ g).T.to(ctx.dtypes[2])
        if for_dsigma:
            ddsigma = (gh[:, r:] * h[:, r:]).sum(0, dtype=ctx.dtypes[3])
        gh *= scale
        if for_A:
            dA = (gh[:, :r].T @ rows).to(ctx.dtypes[1])
        if for_x:
            dx = (g @ weight).addmm_(gh, down).view(ctx.shape).to(ctx.dtypes[0])
        return dx, None, None, dA, dB, ddsigma, None, None
