"""The one container of this package's own files: safetensors, with a JSON header and a checksum of both.

The header entry "dash_vision" holds {"kind", "version", "content", "checksum"}. A reader names the kind that it takes,
so that a checkpoint is never read as an adapter. Plain safetensors files of others are opened here too.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from safetensors.torch import save_file
from torch import Tensor

from .atomic import replacing
from .errors import InputError

ENTRY = "dash_vision"  # of the safetensors header


class Kind(NamedTuple):
    """What a container holds: its name in the header, what a message calls it, and the version that is written."""

    name: str
    words: str
    version: int = 1


def checksum(content: Any, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of JSON values and of tensors with their names, types and shapes.

    It finds damage, not malice: whoever changes a file on purpose can change its checksum too.
    """
    total = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        total.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


# -- plain safetensors files


def write_safetensors(path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors [any shape, any dtype of safetensors] with header entries; equal content gives equal bytes.

    A reader, or a run that is killed at any moment, finds the whole file or none. Raises OSError, also for a full disk.
    """
    tensors = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    with replacing(path) as temporary:
        try:
            if len(metadata) > 1:
                _write_sorted(temporary, tensors, metadata)
            else:
                save_file(tensors, temporary, dict(metadata))
        except SafetensorError as error:  # what a full disk is to this library
            raise OSError(errno.ENOSPC, f"could not be written ({error})", str(path)) from None


def _write_sorted(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """With several header entries, which safetensors writes in an order that changes from process to process."""
    data = to_safetensors(tensors, metadata=dict(metadata))
    # The header is JSON after its length, padded with spaces to a multiple of 8.
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    with open(path, "wb") as file:
        file.write(safetensors_header(entries))
        file.write(memoryview(data)[8 + length :])


def safetensors_header(entries: Mapping[str, Any]) -> bytes:
    """The beginning of a safetensors file, before its tensors' bytes. entries: name -> dtype, shape, data_offsets."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def open_safetensors(path: str | PathLike[str]) -> Iterator[Any]:
    """A safetensors file opened for reading on the CPU (an object of `safe_open`).

    Raises InputError, in the block too, where the file is missing, cut short or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; check the path")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no complete .safetensors file ({error}); copy it or make it again") from None


def read_safetensors(path: str | PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(header entries, tensors on the CPU) of a safetensors file. Raises InputError as `open_safetensors`."""
    with open_safetensors(path) as file:
        return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


# -- the package's own files


def write_container(path: str | PathLike[str], kind: Kind, content: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write `content` (JSON values) and tensors as a file of `kind`. Raises OSError, also for a full disk."""
    header = {"kind": kind.name, "version": kind.version, "content": content, "checksum": checksum(content, tensors)}
    write_safetensors(path, tensors, {ENTRY: json.dumps(header)})


def read_container(path: str | PathLike[str], kind: Kind) -> tuple[Any, dict[str, Tensor]]:
    """(content, tensors on the CPU) of a file of `kind`.

    Raises InputError when it is missing, cut short, damaged, of another kind, or of a version that is not read here.
    """
    with open_safetensors(path) as file:
        content = _content(Path(path), file, kind)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    if content["checksum"] != checksum(content["content"], tensors):
        raise InputError(f"{path} is damaged: its checksum does not fit what it holds; use another copy")
    return content["content"], tensors


def read_content(path: str | PathLike[str], kind: Kind) -> Any:
    """The content of a file of `kind` without its tensors, not checked against its checksum. Raises InputError."""
    with open_safetensors(path) as file:
        return _content(Path(path), file, kind)["content"]


def kind_of(path: str | PathLike[str]) -> str | None:
    """The name of the kind of container that a file is; None for a safetensors file of others. Raises InputError."""
    with open_safetensors(path) as file:
        header = _header(file)
    return str(header["kind"]) if header else None


def _header(file: Any) -> dict[str, Any] | None:
    try:
        header = json.loads((file.metadata() or {}).get(ENTRY, "null"))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) and header.keys() >= {"kind", "version", "content", "checksum"} else None


def _content(path: Path, file: Any, kind: Kind) -> dict[str, Any]:
    header = _header(file)
    if header is None or header["kind"] != kind.name:
        keys = list(file.keys())
        what = (
            f"a dash-vision file of another kind ({header['kind']})"
            if header
            else "a .safetensors file of another kind"
        )
        raise InputError(f"{path} is {what}, not {kind.words} ({len(keys)} tensors, such as {', '.join(keys[:2])})")
    if header["version"] != kind.version:
        raise InputError(
            f"{path} has version {header['version']!r} of {kind.words}, this dash-vision reads {kind.version}; "
            "use the dash-vision that wrote it, or update"
        )
    return header
