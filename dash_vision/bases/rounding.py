"""What is left of an update that is merged into a weight which is then kept in few bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.quantized import dequantized
from . import quantization
from .quantization import BLOCK


@torch.no_grad()
def rounded(W: Tensor, word: str) -> Tensor:
    """W [out, in], float32 on the CPU, as a word of quantization.QUANTIZATIONS keeps it: quantized by its library and
    dequantized again. Raises InputError where the library is missing."""
    quantization.check_installed(word, "--as")
    if word == "nf4":
        return _four_bits(W)
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False).requires_grad_(False)
    layer.weight.copy_(W)
    quantization.quantize_layer(layer, word)
    return dequantized(layer).float()


def _four_bits(W: Tensor) -> Tensor:
    from bitsandbytes import functional

    # By blocks, which are the same in a matrix of any width; on CPUs the library reads some widths wrongly.
    flat = W.reshape(-1)
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % BLOCK)]).view(-1, BLOCK)
    kept, state = functional.quantize_4bit(blocks, quant_type="nf4", blocksize=BLOCK)
    back: Tensor = functional.dequantize_4bit(kept, state)
    return back.reshape(-1)[: len(flat)].view_as(W)


@torch.no_grad()
def surviving(W: Tensor, dW: Tensor, keep: Callable[[Tensor], Tensor]) -> float:
    """The share of an update dW [out, in] that survives where it is merged into W and the sum is rounded by `keep`.

        R = keep(W + dW) - keep(W),     share = <R, dW>^2 / (<R, R> <dW, dW>)

    R is what the merge changes in the weight that is computed with. The share is that of dW's squared norm which lies
    along R: 1 where the change is the update, near 0 where the steps of the rounding are so wide that the few weights
    which move tell little of it, and 0 where none moves.
    """
    R, dW = (keep(W + dW) - keep(W)).double(), dW.double()
    along, size = (R * dW).sum(), (R * R).sum() * (dW * dW).sum()
    return float(along * along / size) if size > 0 else 0.0
