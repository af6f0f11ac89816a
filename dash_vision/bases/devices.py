"""Networks on a device for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn


@contextmanager
def placed(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Networks on a device while inside, back where they were after."""
    before = [cast(Any, network).device for network in networks]
    for network in networks:
        network.to(device)
    try:
        yield
    finally:
        for network, home in zip(networks, before, strict=True):
            network.to(home)
