"""Decoded images on disk: one .safetensors file of uint8 pixels per split, named after what it was made of.

The name holds a hash of every image file's bytes and of the size asked for. Changed data is another file: a stale
cache cannot be read by mistake. A cache can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.atomic import replacing
from ..files.container import safetensors_header
from ..files.errors import InputError
from .decode import CHUNK, decode_chunks

# Anything above is decoded anew in each run instead: dSprites' test split alone would take 11 GB at 224 pixels.
LIMIT_BYTES = 4 * 10**9
_VERSION = "2 bicubic, sRGB"


class Images(Protocol):
    """Pictures that come in chunks: [n, 3, size, size] uint8, in order."""

    def __len__(self) -> int: ...

    def chunks(self) -> Iterator[Tensor]: ...


class TensorImages:
    """Pictures in memory, [n, 3, size, size] uint8."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def chunks(self) -> Iterator[Tensor]:
        yield from self.pixels.split(CHUNK)


class FileImages:
    """Pictures decoded from their files whenever they are asked for."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def chunks(self) -> Iterator[Tensor]:
        yield from decode_chunks(self.paths, self.size)


class CachedImages:
    """Pictures in a cache file, read in chunks from the mapped file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with safe_open(file, framework="pt") as opened:
            self.shape = tuple(opened.get_slice("images").get_shape())

    def __len__(self) -> int:
        return int(self.shape[0])

    def chunks(self) -> Iterator[Tensor]:
        with safe_open(self.file, framework="pt") as opened:
            pixels = opened.get_slice("images")
            for start in range(0, len(self), CHUNK):
                yield pixels[start : start + CHUNK]


def cache_root(given: str | os.PathLike[str] | None) -> Path:
    """The folder of cache files: as given, else $DASH_VISION_CACHE, else ~/.cache/dash_vision."""
    return Path(given or os.environ.get("DASH_VISION_CACHE") or "~/.cache/dash_vision").expanduser()


def cached(name: str, paths: Sequence[Path], size: int, root: Path | None, limit: int = LIMIT_BYTES) -> Images:
    """The pictures of `paths` at size x size, from the cache if it has them, put into it if not.

    root: folder of the cache; None keeps nothing on disk. A split above `limit` bytes is not cached either. A disk
    that cannot be written to is no error: the pictures are decoded for this run.
    """
    if root is None or len(paths) * 3 * size * size > limit:
        return FileImages(paths, size)
    file = root / f"{name}-{size}-{content_hash(paths, size)[:20]}.safetensors"
    found = open_cache(file, len(paths), size)
    if found is None:
        try:
            write_cache(file, decode_chunks(paths, size), len(paths), size)
        except InputError:
            raise
        except OSError:
            return FileImages(paths, size)
        found = open_cache(file, len(paths), size)
    return found or FileImages(paths, size)


def content_hash(paths: Sequence[Path], size: int) -> str:
    """SHA-256 of the files' bytes, in order, and of how they are resized. Raises InputError for a missing file."""
    total = hashlib.sha256(f"{_VERSION} {size} {len(paths)}".encode())
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot read {path}: {error.strerror}; `python train_vtab.py --check_data` lists all such files"
            ) from None
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()


def open_cache(file: Path, count: int, size: int) -> CachedImages | None:
    """The cache file, or None when it is not there or is not what its name says (then it is made anew)."""
    try:
        found = CachedImages(file)
    except (OSError, SafetensorError, KeyError):
        return None
    return found if found.shape == (count, 3, size, size) else None


def write_cache(file: Path, chunks: Iterator[Tensor], count: int, size: int) -> None:
    """Write chunk after chunk as one .safetensors file, complete or not at all.

    A split may be larger than the memory, and files.container takes whole tensors.
    """
    total = count * 3 * size * size
    entry = {"dtype": "U8", "shape": [count, 3, size, size], "data_offsets": [0, total]}
    header = safetensors_header({"images": entry})
    with replacing(file) as temporary, open(temporary, "wb") as out:
        out.write(header)
        for chunk in chunks:
            out.write(chunk.contiguous().numpy().tobytes())
        if out.tell() != len(header) + total:
            raise InputError(f"{file}: expected {count} pictures of {size} x {size}, got another number of bytes")


def whole(images: Images) -> Tensor:
    """All pictures at once, [n, 3, size, size] uint8."""
    return torch.cat(list(images.chunks()))
