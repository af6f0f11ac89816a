"""What every .safetensors file can suffer, and a pickle that shows that it was executed."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dash_vision.files.container import checksum
from tests.malformed.cases import CANARY, EIGHTHS, EITHER, REFUSED


class Bomb:
    """Unpickling it makes the canary."""

    def __init__(self, beside: str | Path) -> None:
        self.path = str(Path(beside).parent / CANARY)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, tensors' bytes) of a .safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def save_sealed(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """A container with a checksum that fits, as somebody would write who changes a file on purpose."""
    seal = checksum(header.get("content"), tensors)
    save_file(tensors, path, {"dash_vision": json.dumps({**header, "checksum": seal})})


def flipped(data: bytes, start: int, end: int, count: int) -> Iterator[bytes]:
    """`count` copies with one byte between start and end changed."""
    draw = random.Random(0)
    for _ in range(count):
        at = draw.randrange(start, end)
        yield data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]


def broken_files(data: bytes, path: Path, entry: str) -> Iterator[tuple[str, bytes, str]]:
    """(what, bytes, expected) of a .safetensors file whose metadata are under `entry`, broken as a file."""
    for eighth in EIGHTHS:
        yield f"cut at {eighth}/8", data[: len(data) * eighth // 8], REFUSED
    length = 8 + int.from_bytes(data[:8], "little")
    for number, wrong in enumerate(flipped(data, 0, 8, 4)):
        yield f"length of the header, flip {number}", wrong, REFUSED
    for number, wrong in enumerate(flipped(data, 8, length, 12)):
        yield f"header, flip {number}", wrong, EITHER
    for number, wrong in enumerate(flipped(data, length, len(data), 8)):
        yield f"tensors, flip {number}", wrong, REFUSED
    header, body = header_of(data)
    name = next(key for key, value in header.items() if value.get("dtype") == "F32")
    for claim in (len(data), 1 << 40, (1 << 64) - 1, 0):
        yield f"claims a header of {claim} bytes", claim.to_bytes(8, "little") + data[8:], REFUSED
    beyond = {**header[name], "data_offsets": [0, len(body) * 10]}
    yield "a tensor larger than the file", with_header({**header, name: beyond}, body), REFUSED
    negative = {**header[name], "data_offsets": [8, 0]}
    yield "a tensor that ends before it begins", with_header({**header, name: negative}, body), REFUSED
    huge = {**header[name], "shape": [1 << 40, 1 << 40]}
    yield "a shape beyond all memory", with_header({**header, name: huge}, body), REFUSED
    for dtype in ("F128", "F8_E4M3", "I64", "BOOL"):
        yield f"dtype {dtype}", with_header({**header, name: {**header[name], "dtype": dtype}}, body), REFUSED
    for what, text in (
        ("empty", ""),
        ("not JSON", "{"),
        ("a list", "[]"),
        ("null", "null"),
        ("ten thousand brackets", "[" * 10_000),
        ("5,000 digits", "9" * 5000),
    ):
        yield f"{entry} is {what}", with_header({**header, "__metadata__": {entry: text}}, body), REFUSED
    yield "metadata that are no text", with_header({**header, "__metadata__": {entry: 7}}, body), REFUSED
    yield "a pickle", pickle.dumps(Bomb(path)), REFUSED
    buffer = io.BytesIO()
    torch.save(Bomb(path), buffer)
    yield "a torch pickle", buffer.getvalue(), REFUSED


def set_in(content: dict[str, Any], path: str, value: Any) -> None:
    """content["a"]["b"] = value for the path "a/b"."""
    *parents, last = path.split("/")
    for key in parents:
        content = content[key]
    content[last] = value
