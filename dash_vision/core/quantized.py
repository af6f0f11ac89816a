"""Linear layers whose weight a quantization library keeps in few bits.

Such a layer is told by what it can do, without an import of the library: bitsandbytes, torchao, quanto and diffusers'
GGUF layers are all subclasses of nn.Linear, or hold a subclass of Tensor. The frozen product stays the library's own.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_REPACKS = "support_avx512bf16_for_cpu"
_ROWS = 1024  # unit vectors at once: they bound the memory of a dequantization


def is_quantized(module: nn.Module) -> bool:
    """Whether the layer's weight is kept in fewer bits than it stands for."""
    if not isinstance(module, nn.Linear):
        return False
    weight = module._parameters.get("weight")
    if weight is None:
        return False
    if _can_dequantize(weight):
        return True
    packed = weight.dtype.itemsize == 1 or tuple(weight.shape) != (module.out_features, module.in_features)
    return packed and type(module).forward is not nn.Linear.forward


def _can_dequantize(weight: Tensor) -> bool:
    """Whether the class of the weight has a way of its own to say what it stands for, as torchao's and quanto's do."""
    return type(weight).dequantize is not Tensor.dequantize


def keep_trainable(model: nn.Module) -> None:
    """Have quantized layers stay as they are when they compute without gradients.

    On CPUs with bfloat16 instructions, a layer of bitsandbytes in evaluation mode repacks its weight in place: its
    scales are rounded, widths that are no multiple of 64 end in an error, and from then on it has no gradient.
    """
    for module in model.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)


def is_repacked(layer: nn.Module) -> bool:
    """Whether bitsandbytes has done that to a layer already."""
    return bool(getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False))


def frozen_product(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) of a quantized layer. Where its library leaves the backward pass to autograd, which would keep the
    unpacked weight for it, the weight is unpacked again there instead."""
    if _can_dequantize(cast(Tensor, layer.weight)) and torch.is_grad_enabled() and x.requires_grad:
        product: Tensor = _Product.apply(x, layer)
        return product
    answer: Tensor = layer(x)
    return answer


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        y: Tensor = layer(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _times_weight(gradient, ctx.layer).to(ctx.dtype), None


def _times_weight(g: Tensor, layer: nn.Module) -> Tensor:
    """g [tokens, out] @ W of a layer whose weight can be dequantized. Where it has a scale for each row, as torchao's,
    g is scaled instead of W, which has many more numbers."""
    weight = cast(Any, layer.weight)
    numbers, scale, zero = (getattr(weight, name, None) for name in ("qdata", "scale", "zero_point"))
    if isinstance(numbers, Tensor) and isinstance(scale, Tensor) and numbers.shape == weight.shape:
        by_rows = scale.shape == (len(numbers), 1)
        if by_rows and (zero is None or not zero.any()):
            return (g * scale.T).to(g.dtype) @ numbers.to(g.dtype)
    W = dequantized(layer)
    return g.to(W.dtype) @ W


@torch.no_grad()
def dequantized(layer: nn.Module) -> Tensor:
    """W [out, in] that a quantized layer computes with, as a new tensor on its device, in the dtype it computes in.

    Other threads may call the layer meanwhile.
    """
    weight = cast(Tensor, layer.weight)
    if _can_dequantize(weight):
        return weight.dequantize().detach()
    # The others unpack their weight inside the product, each in its own way: what they answer to unit vectors is W.
    plain: Any = copy.copy(layer)
    plain._parameters = {**layer._parameters, "bias": None}
    keep_trainable(plain)
    bias = layer._parameters.get("bias")
    dtype = getattr(layer, "compute_dtype", None) or (torch.float32 if bias is None else bias.dtype)
    width, device = int(plain.in_features), weight.device
    columns = []
    with torch.autocast(device.type, enabled=False):
        for start in range(0, width, _ROWS):
            units = torch.zeros(min(_ROWS, width - start), width, dtype=dtype, device=device)
            units.diagonal(start).fill_(1)
            columns.append(type(plain).forward(plain, units).T)
    return torch.cat(columns, dim=1)
