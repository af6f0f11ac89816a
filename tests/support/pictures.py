"""Pictures of every kind, and short ways to read them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from dash_vision.files.errors import InputError
from dash_vision.pictures.folder import InstanceSet, read_folder


def save_pictures(folder, count=5, size=20):
    """`count` pictures of coloured noise."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(3)
    for i in range(count):
        pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this pillow cannot read AVIF")
CAPTION = "a clay cat on a mat"


def photo(width: int = 48, height: int = 32) -> np.ndarray:
    """uint8 [height, width, 3]: smooth, without symmetry, every corner of another colour."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 255 - 127 * (x / width + y / height)], 2).astype("uint8")


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def encoded(pixels: np.ndarray, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def read(folder: Path, **options: object) -> InstanceSet:
    return read_folder(folder, **{"resolution": 16, **options})


def read_one(folder: Path, **options: object) -> np.ndarray:
    pictures = read(folder, **options)
    assert len(pictures) == 1
    assert pictures.images[0].image.mode == "RGB"
    return np.asarray(pictures.images[0].image)


def note(pictures: InstanceSet, word: str) -> str:
    """The one note that has `word` in it."""
    (found,) = [text for text in pictures.notes if word in text]
    return found


def refusal(folder: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_folder(folder, **{"resolution": 16, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do
    return message


# Sizes


def png(
    width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, chunks: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A PNG file. rows: each with its filter byte. colour: 2 for RGB, 0 for grey. chunks: others, before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)
