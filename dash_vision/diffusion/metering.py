"""What computations would take of memory, found by making them with tensors that have no numbers.

torch's fake tensors have a shape, a dtype and a device, and every operation of torch gives fake ones in turn. So the
very code of a training step runs on a network that is in no memory, and what the step would allocate is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_FLOAT32_ON_CUDA = ("layer_norm", "group_norm")  # what a GPU's autocast computes in float32, and a CPU's does not


class Meter(TorchDispatchMode):
    """Counts the memory of the tensors that are made inside and alive.

    live, peak: bytes, now and at most. Torch has such a tool (torch.distributed._tools), which wants the whole loop in
    its hands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, and count what is new in its result. A view has its original's storage, and what an argument
        has, but no call gave, was there before."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._known.add(value.untyped_storage()._cdata)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        weakref.finalize(storage, self._forget, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@contextmanager
def _autocast_of_cuda() -> Iterator[None]:
    """Fake tensors are on the CPU, whose autocast leaves norms in half precision: while inside they are as on a GPU.

    The functions are exchanged, since gradient checkpointing calls them again where a mode of torch is switched off.
    """
    with ExitStack() as stack:
        for name in _FLOAT32_ON_CUDA:
            stack.enter_context(mock.patch.object(F, name, _in_float32(getattr(F, name))))
        yield


def _in_float32(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(_widened, (args, kwargs))
        return function(*args, **kwargs)

    return call


def _widened(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


@contextmanager
def imagined(dtype: torch.dtype, cuda: bool) -> Iterator[None]:
    """New tensors are fake while inside, and autocast to `dtype` computes in the precisions that it does on a GPU, or
    on a CPU."""
    half = dtype != torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16, enabled=half):
        if cuda and half:
            with _autocast_of_cuda():
                yield
        else:
            yield


def imagine(network: nn.Module) -> None:
    """Exchange the tensors of a network on the meta device for fake ones on the CPU. Inside `imagined` only."""
    network.to_empty(device="cpu")


@contextmanager
def telling_shapes(encoders: Sequence[nn.Module]) -> Iterator[None]:
    """While inside, text encoders on the meta device answer with tensors on the CPU, of the right shapes and without
    memory of their own, so that a pipeline can encode prompts with them."""
    meta = torch.device("meta")

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(lambda value: value.to(meta) if isinstance(value, Tensor) else value, (args, kwargs))

    def after(module: nn.Module, args: Any, kwargs: Any, answer: Any) -> Any:
        return tree_map(lambda value: _zeros(value) if isinstance(value, Tensor) else value, answer)

    with ExitStack() as stack:
        for encoder in encoders:
            cast(Any, encoder).set_attn_implementation("eager")  # the others look at the masks' numbers
            stack.callback(encoder.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(encoder.register_forward_hook(after, with_kwargs=True).remove)
        yield


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype).expand(like.shape)


def size_of(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers, each counted once."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
