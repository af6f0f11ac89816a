"""A device by its name, and networks on one for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from ..core.quantized import is_quantized
from ..files.errors import InputError
from .offloading import offload_of


def cast_network(network: nn.Module, dtype: torch.dtype) -> None:
    """A network in a dtype; a quantized one keeps its own, having been loaded in the one that it computes in."""
    if not any(is_quantized(module) for module in network.modules()):
        network.to(dtype)


@contextmanager
def placed(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Networks on a device while inside, back where they were after; those without weights stay, and so do
    those that are loaded block by block."""
    networks = [n for n in networks if offload_of(n) is None and cast(Any, n).device.type != "meta"]
    before = [cast(Any, network).device for network in networks]
    away = [(network, home) for network, home in zip(networks, before, strict=True) if home != device]
    for network, _ in away:  # some quantized networks cannot be moved, not even to where they are
        network.to(device)
    try:
        yield
    finally:
        for network, home in away:
            network.to(home)


def usable_device(name: str | None = None) -> str:
    """The device of that name; None: the GPU where there is one. Raises InputError where torch cannot use it."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"--device is {name}, which cannot be used here ({reason}); give cpu, or leave it out"
        ) from None
    return name


@contextmanager
def within_memory(what: str, instead: str) -> Iterator[None]:
    """Raises InputError where the GPU's memory does not suffice for `what`; instead: the flags to give then."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise InputError(f"the GPU's memory does not suffice for {what}; give {instead}") from None
