"""Networks on a device for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from ..core.quantized import is_quantized


def cast_network(network: nn.Module, dtype: torch.dtype) -> None:
    """A network in a dtype; a quantized one keeps its own, having been loaded in the one that it computes in."""
    if not any(is_quantized(module) for module in network.modules()):
        network.to(dtype)


@contextmanager
def placed(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Networks on a device while inside, back where they were after."""
    before = [cast(Any, network).device for network in networks]
    away = [(network, home) for network, home in zip(networks, before, strict=True) if home != device]
    for network, _ in away:  # some quantized networks cannot be moved, not even to where they are
        network.to(device)
    try:
        yield
    finally:
        for network, home in away:
            network.to(home)
