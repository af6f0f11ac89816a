"""A training state in one container file: complete or not there, and never a pickle.

The state is nested dictionaries, lists, numbers, strings, None and tensors (such as an optimizer's state_dict()).
Tensors are stored as tensors; the rest, with references to them, as JSON in the header.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from .container import Kind, read_container, write_container
from .errors import InputError

CHECKPOINT = Kind("checkpoint", "a checkpoint of dash-vision")


def save_checkpoint(path: str | PathLike[str], state: dict[str, Any]) -> None:
    """Write `state`; a reader, or a run that is killed at any moment, finds the whole file or none."""
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, tensors)
    write_container(path, CHECKPOINT, packed, tensors)


def load_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """The state in a file, on the CPU. Raises InputError for a missing, cut, changed, foreign or newer file."""
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}; check the name")
    packed, tensors = read_container(path, CHECKPOINT)
    try:
        state = _unpack(packed, tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error} is missing in it); use an earlier one") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} is damaged (it holds no state); use an earlier one")
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"items": [[_pack_key(k), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list):
        return [_pack(v, tensors) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [_pack(v, tensors) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _pack_key(key: Any) -> str | int:
    if isinstance(key, str | int):
        return key
    raise TypeError(f"a checkpoint cannot hold a dictionary key of type {type(key).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(v, tensors) for v in value["tuple"])
    return {key: _unpack(v, tensors) for key, v in value["items"]}
