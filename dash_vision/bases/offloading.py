"""A network whose blocks wait in the machine's memory and are on the device while they compute, with gradients.

diffusers' group offloading is made for drawing pictures: it changes the data of a parameter in place after a block's
forward pass (`ModuleGroup.offload_`), while the backward pass still refers to that parameter, and a block takes the
adapter in it along. Here a block computes with copies of its frozen parameters, so that whatever the backward pass has
kept stays what it was.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..files.errors import InputError

_MARK = "dash_offload"  # on the network
_Place = tuple[nn.Module, str, nn.Parameter]  # a module, the name of a parameter of it, and that parameter


class _Kept(NamedTuple):
    """What the backward pass keeps instead of a weight on the device."""

    home: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class Offload:
    """The blocks of a network, loaded one after another.

    blocks: class names of the modules whose parameters wait in the machine's memory; what is added to the blocks later,
    such as an adapter, stays on `device` with the rest of the network. On CUDA the waiting parameters are pinned, and
    the next block is copied while one computes. Raises InputError for quantized weights.
    """

    def __init__(self, network: nn.Module, device: torch.device, blocks: Collection[str]) -> None:
        self.device = device
        self._homes: dict[int, nn.Parameter] = {}
        self._places: dict[int, list[_Place]] = {}  # by the id of a block
        self._order: list[nn.Module] = []  # blocks as they were first called
        self._last = -1  # number of the block that was called last
        self._ahead: dict[int, list[Tensor]] = {}  # copies that no block has asked for yet, by its id
        self._there: dict[int, nn.Parameter] = {}  # what is on the device now, by the address of its copy
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda else None
        for block in _outermost(network, blocks):
            for parameter in block.parameters():
                if id(parameter) not in self._homes:
                    _check(parameter)
                    data = parameter.data.cpu()
                    parameter.data = data.pin_memory() if cuda else data
                    self._homes[id(parameter)] = parameter
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave, always_call=True)  # also where recomputing ends early
        setattr(network, _MARK, self)
        self.place(network)

    def __deepcopy__(self, memo: dict[int, Any]) -> Offload:
        """A copy of the network that shares its parameters shares this too."""
        return self

    @torch.no_grad()
    def place(self, network: nn.Module) -> None:
        """Bring everything that does not wait to the device: what was added to the network since, too."""
        for module in network.modules():
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) not in self._homes:
                    parameter.data = parameter.data.to(self.device)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    # -- blocks

    def _enter(self, block: nn.Module, inputs: Any) -> None:
        copies = self._ahead.pop(id(block), None) or self._copies(block)
        self._ahead.clear()
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for copy in copies:
                copy.record_stream(current)
        for (module, name, home), copy in zip(self._of(block), copies, strict=True):
            module._parameters[name] = nn.Parameter(copy, requires_grad=False)
            self._there[copy.untyped_storage().data_ptr()] = home
        self._look_ahead(block)

    def _leave(self, block: nn.Module, inputs: Any, output: Any) -> None:
        for module, name, home in self._of(block):
            copy = module._parameters[name]
            if copy is not None and copy is not home:
                self._there.pop(copy.untyped_storage().data_ptr(), None)
                module._parameters[name] = home

    def _look_ahead(self, block: nn.Module) -> None:
        """Begin to copy the block that comes next: the following one, or in a backward pass the one before."""
        numbers = [number for number, known in enumerate(self._order) if known is block]
        if not numbers:
            self._order.append(block)
        number = numbers[0] if numbers else len(self._order) - 1
        following = number + (1 if number > self._last else -1)
        self._last = number
        if self._stream is not None and 0 <= following < len(self._order):
            self._ahead[id(self._order[following])] = self._copies(self._order[following])

    def _copies(self, block: nn.Module) -> list[Tensor]:
        if self._stream is None:
            return [home.detach().to(self.device, copy=True) for _, _, home in self._of(block)]
        with torch.cuda.stream(self._stream):
            return [home.detach().to(self.device, non_blocking=True, copy=True) for _, _, home in self._of(block)]

    def _of(self, block: nn.Module) -> list[_Place]:
        """Where a block, or a copy of one, has its waiting parameters."""
        if id(block) not in self._places:
            self._places[id(block)] = [
                (module, name, parameter)
                for module in block.modules()
                for name, parameter in module._parameters.items()
                if parameter is not None and id(parameter) in self._homes
            ]
        return self._places[id(block)]

    # -- what a backward pass keeps

    def pack(self, tensor: Tensor) -> Tensor | _Kept:
        """A view of a copy that is on the device is kept as one of what waits."""
        home = self._there.get(tensor.untyped_storage().data_ptr())
        if home is None or tensor.dtype != home.dtype:
            return tensor
        return _Kept(home.detach(), tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def unpack(self, kept: Tensor | _Kept) -> Tensor:
        """What was packed, on the device."""
        if not isinstance(kept, _Kept):
            return kept
        copy = kept.home.to(self.device, non_blocking=True, copy=True)
        return copy.as_strided(kept.shape, kept.stride, kept.offset)


def _outermost(network: nn.Module, kinds: Collection[str]) -> list[nn.Module]:
    """The modules of these classes that are inside no other one of them."""
    if type(network).__name__ in kinds:
        return [network]
    return [block for child in network.children() for block in _outermost(child, kinds)]


def _check(parameter: nn.Parameter) -> None:
    if type(parameter.data) is not Tensor or not parameter.is_floating_point():
        raise InputError("--offload group moves plain weights, and this base's are quantized; give --offload model")


def waiting_share(network: nn.Module, kinds: Collection[str]) -> tuple[int, int]:
    """(bytes of the weights that wait, bytes of them on the device at most): a block at work, and the next one."""
    sizes = [sum(p.numel() * p.element_size() for p in b.parameters()) for b in _outermost(network, kinds)]
    return sum(sizes), 2 * max(sizes, default=0)


def offload_of(network: nn.Module) -> Offload | None:
    """The Offload that a network, or one that it is a copy of, was given."""
    found: Offload | None = getattr(network, _MARK, None)
    return found


def keeping_little(network: nn.Module) -> AbstractContextManager[Any]:
    """Forward passes inside keep no weights of an offloaded network on the device for their backward pass."""
    offload = offload_of(network)
    return nullcontext() if offload is None else torch.autograd.graph.saved_tensors_hooks(offload.pack, offload.unpack)
