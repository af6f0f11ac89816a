"""Image files to uint8 tensors, by as many threads as the machine has cores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files.errors import InputError
from ..pictures.decode import Refused, read_picture

CHUNK = 256


def to_tensor(image: Image.Image, size: int) -> Tensor:
    """[3, size, size] uint8, the whole picture resized with Pillow's bicubic filter: VTAB crops nothing."""
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def decode(path: Path, size: int) -> Tensor:
    """`to_tensor` of a file, as it lies: published pipelines of VTAB look at no EXIF orientation.

    Raises InputError for one that is missing, no image or cut off.
    """
    try:
        return to_tensor(read_picture(path, upright=False).image, size)
    except Refused as reason:
        if not path.exists():
            raise InputError(f"{path} is listed but not there; fetch the data again with --download") from None
        raise InputError(
            f"{path} cannot be read as an image ({reason}); `python train_vtab.py --check_data` lists all such files"
        ) from None


def decode_chunks(paths: Sequence[Path], size: int) -> Iterator[Tensor]:
    """The files in order, as [<= 256, 3, size, size] uint8 tensors; never more than one chunk in memory."""
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), CHUNK):
            yield torch.stack(list(pool.map(lambda path: decode(path, size), paths[start : start + CHUNK])))
