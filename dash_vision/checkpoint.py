"""A training state in one .safetensors file: complete or not there, and never a pickle.

The state is nested dictionaries, lists, numbers, strings, None and tensors (such as an optimizer's state_dict()).
Tensors are stored as tensors; the rest, with references to them, as JSON in the header.
"""

from __future__ import annotations

import errno
import json
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checksum import checksum
from .files import replacing

_HEADER = "dash_vision_checkpoint"
_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: what was found, what to do."""


def save_checkpoint(path: str | PathLike[str], state: dict[str, Any]) -> None:
    """Write `state`; a reader, or a run killed at any moment, finds the whole file or none."""
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, tensors)
    header = json.dumps({"version": _VERSION, "state": packed, "checksum": checksum(packed, tensors)})
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {_HEADER: header})
        except SafetensorError as error:  # what a full disk is to this library
            raise OSError(errno.ENOSPC, f"could not be written ({error})", str(path)) from None


def load_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """The state in a file, on the CPU. Raises CheckpointError for a missing, cut, changed, foreign or newer file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; check the name")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no complete checkpoint ({error}); use an earlier one") from None
    if not isinstance(header, dict) or "state" not in header:
        raise CheckpointError(f"{path} is a .safetensors file of another kind, not a checkpoint of dash-vision")
    if header.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {header.get('version')!r}, this dash-vision reads {_VERSION}; "
            "go on with the version that wrote it"
        )
    # The first checkpoints that were written had no checksum.
    if header.get("checksum") not in (None, checksum(header["state"], tensors)):
        raise CheckpointError(f"{path} is damaged (its checksum does not fit); use an earlier one")
    try:
        state = _unpack(header["state"], tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error} is missing in it); use an earlier one") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is damaged (it holds no state); use an earlier one")
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
