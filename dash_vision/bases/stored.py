"""The tensors in a base's safetensors files, read one at a time when they are wanted.

What a run computes with may be rounded to half precision or quantized; the launch and the digests of a base look at the
weights as the files have them. None of these stays in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.errors import InputError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, or a part of one: what lies at `shape`, `stride` and `offset` of its numbers."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    stride: tuple[int, ...] | None = None
    offset: int = 0

    def __call__(self) -> Tensor:
        """Read it, on the CPU. Raises InputError where the file is not there any more."""
        try:
            with safe_open(self.file, "pt") as opened:
                tensor: Tensor = opened.get_tensor(self.key)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.file} cannot be read again ({error}); put the base's file back") from None
        if self.stride is None:
            return tensor
        return tensor.as_strided(self.shape, self.stride, self.offset)

    def matrix(self) -> StoredMatrix:
        """The same as a layer's matrix W [out, in]."""
        return StoredMatrix(self)


@dataclass(frozen=True)
class StoredMatrix:
    """Reads a layer's matrix W [out, in] whenever it is called."""

    tensor: StoredTensor

    def __call__(self) -> Tensor:
        """See StoredTensor."""
        return self.tensor().flatten(1)


def tensors_in(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors in safetensors files, by name."""
    found = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118, it is no dict
                part = opened.get_slice(key)
                found[key] = StoredTensor(file, key, tuple(part.get_shape()), _DTYPES.get(part.get_dtype()))
    return found


def renamed(
    stored: Mapping[str, StoredTensor], convert: Callable[[dict[str, Tensor]], Mapping[str, Any]]
) -> dict[str, StoredTensor]:
    """The tensors by the names that a converter of checkpoints gives them. convert: takes tensors by their names in the
    files. What it computes, instead of renaming, cutting or turning it, is left out.

    It is given tensors without numbers, and where in which of them its answers lie tells what they are.
    """
    empty = {key: torch.empty(t.shape, dtype=t.dtype or torch.uint8, device="meta") for key, t in stored.items()}
    origins = {tensor.untyped_storage()._cdata: key for key, tensor in empty.items()}
    found = {}
    for name, tensor in convert(dict(empty)).items():
        key = origins.get(tensor.untyped_storage()._cdata) if isinstance(tensor, Tensor) else None
        if key is not None:
            whole = stored[key]
            place = tuple(tensor.stride()), int(tensor.storage_offset())
            found[name] = StoredTensor(whole.file, whole.key, tuple(tensor.shape), whole.dtype, *place)
    return found


def of_layer(stored: Mapping[str, StoredTensor], module: str, size: tuple[int, int]) -> StoredTensor | None:
    """The weight of a layer in a network; None where no tensor is surely that. size: (out, in) of its matrix.

    A library may have put something before the names since the file was written, or taken it away.
    """
    name = f"{module}.weight"
    keys = [name] if name in stored else [key for key in stored if key.endswith(f".{name}") or name.endswith(f".{key}")]
    fitting = [key for key in keys if _is_matrix(stored[key], size)]
    return stored[fitting[0]] if len(fitting) == 1 else None


def _is_matrix(tensor: StoredTensor, size: tuple[int, int]) -> bool:
    """Whether a tensor in full or half precision is a matrix of that size, or a kernel that flattens to one."""
    fits = len(tensor.shape) > 1 and (tensor.shape[0], math.prod(tensor.shape[1:])) == size
    return fits and tensor.dtype is not None
