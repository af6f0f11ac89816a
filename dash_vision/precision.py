"""What a device computes fast in."""

from __future__ import annotations

import torch


def fast_in_bf16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; one that does not is ten times slower."""
    kind = torch.device(device).type
    if kind == "cpu":  # torch tells it nowhere else
        asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device | str) -> torch.autocast:
    """bfloat16 autocast on a device that is fast in it, none on others."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=fast_in_bf16(device))
