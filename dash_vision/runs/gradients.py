"""Which trainable tensors a training reaches: those whose gradient is not zero in its first updates.

One look would not do: LoRA's A has a gradient of zero until B has moved, and B does not move while the learning rate is
still zero. The shifts of singular values have one of zero until the launch, so they are looked at from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.sharding import is_sharded

UPDATES = 10  # that are looked at; three are enough for LoRA, more where fp16 rounds the first ones to nothing
_SHIFTS = (".dsigma", ".lora_dash_shifts.")  # of core and of integrations.peft
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's prefixes


class GradientWatch:
    """Looks at the gradients of some parameters during their first updates.

    unused: names of those that had no gradient at all at the first look: they take no part in the loss. zero: names of
    the others whose gradient was zero at every look; empty until the last one.
    """

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        self.named, self.looks = named, 0
        self.unused: list[str] = []
        self.zero: list[str] = []
        self._seen: Tensor | None = None  # by parameter, whether a gradient was not zero; on the device, unread

    @property
    def done(self) -> bool:
        """Whether the last look was taken."""
        return self.looks == UPDATES or not self.named

    def look(self, total: Callable[[Tensor], Tensor]) -> None:
        """Look at the gradients as they are after a backward pass; all processes together. total: the sum over them."""
        self.looks += 1
        if self.looks == 1:
            self.unused = [name for name, parameter in self.named.items() if parameter.grad is None]
            self.named = {name: p for name, p in self.named.items() if p.grad is not None}
        if not self.named:
            return
        # Only the last look reads the answer: each reading would make a GPU wait.
        now = torch.stack([_is_not_zero(p.grad) for p in self.named.values()]).to(torch.float32)
        self._seen = now if self._seen is None else torch.maximum(self._seen, now)
        if self.done:
            # A process of a split model holds a part of each gradient only.
            seen = total(self._seen).tolist()
            self.zero = [name for name, flag in zip(self.named, seen, strict=True) if not flag]


@torch.no_grad()
def _is_not_zero(gradient: Tensor | None) -> Tensor:
    """Whether any number of a gradient, of this process's part of it, is not zero: a scalar on its device."""
    assert gradient is not None  # a parameter that had one at the first look has one at each
    own = cast(Any, gradient).to_local() if is_sharded(gradient) else gradient
    return (own != 0).any()


def watches(networks: Iterable[nn.Module], parameters: Sequence[nn.Parameter]) -> tuple[GradientWatch, GradientWatch]:
    """(one for everything but the shifts, one for the shifts) of `parameters`, by their names in `networks`."""
    names = {id(p): _plain(name) for network in networks for name, p in network.named_parameters()}
    named = {names.get(id(p), f"parameter {i}"): p for i, p in enumerate(parameters) if p.requires_grad}
    shifts = {name: p for name, p in named.items() if any(part in name for part in _SHIFTS)}
    return GradientWatch({name: p for name, p in named.items() if name not in shifts}), GradientWatch(shifts)


def look_at(
    watches: Sequence[GradientWatch], launched: bool, total: Callable[[Tensor], Tensor]
) -> Iterator[tuple[list[str], bool]]:
    """Look with each of `watches` whose turn it is, the shifts' after the launch; gives (names, whether they are
    unused) where one has found something. total: see GradientWatch.look."""
    for of_shifts, watch in enumerate(watches):
        if watch.done or (of_shifts and not launched):
            continue
        watch.look(total)
        if watch.looks == 1 and watch.unused:
            yield watch.unused, True
        if watch.zero:
            yield watch.zero, False


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def listed(names: Sequence[str]) -> str:
    """A few of many names, for a message."""
    more = f" and {len(names) - 2} more" if len(names) > 3 else ""
    return ", ".join(names[: 2 if more else 3]) + more


def untrained_sentence(names: Sequence[str], unused: bool) -> str:
    """What `Job.untrained` tells."""
    why = "take no part in the loss" if unused else f"had a gradient of zero in each of the first {UPDATES} updates"
    return f"trainable tensors that {why}, so that they learn nothing: {len(names)} ({listed(names)})"
