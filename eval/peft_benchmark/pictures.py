"""The pictures of PEFT's benchmark of image generation: fetched, split and cut to size as its own code does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageOps import exif_transpose

from dash_vision.files.atomic import replacing, write_text
from dash_vision.files.errors import InputError
from dash_vision.pictures.decode import Refused, read_picture
from dash_vision.pictures.listing import list_folder

from ..saving import check_output
from .params import Params

PARTS = ("train", "valid", "test")


def split(count: int, valid: int, test: int) -> dict[str, list[int]]:
    """The numbers of the pictures of each part, in the order in which they are drawn and compared. Raises InputError
    where nothing is left to train on."""
    if count <= valid + test:
        raise InputError(f"the data set has {count} pictures; the benchmark keeps {valid + test} of them for its tests")
    order = np.arange(count)
    np.random.RandomState(0).shuffle(order)  # the generator that np.random.seed(0) seeds
    first = count - valid - test
    parts = order[:first], order[first : first + valid], order[first + valid :]
    return {name: part.tolist() for name, part in zip(PARTS, parts, strict=True)}


def prepare(params: Params, folder: Path, say: Callable[[str], None] = print) -> None:
    """Write train/, valid/ and test/ with a caption beside each picture to `folder`. The training pictures have the
    benchmark's size, to which it squeezes them, whatever their shape. Raises InputError."""
    check_output(folder, folder=True)
    pictures = _fetch(params)
    if len(pictures) != len(params.instance_prompts):
        raise InputError(
            f"{params.dataset_id} has {len(pictures)} pictures and instance_prompts {len(params.instance_prompts)} "
            "prompts; both are of other versions"
        )
    parts = split(len(pictures), params.valid_size, params.test_size)
    write_parts(parts, pictures, params.instance_prompts, params.resolution, folder)
    counts = ", ".join(f"{len(numbers)} in {folder / name}" for name, numbers in parts.items())
    say(f"{params.dataset_id}: {counts}")


def write_parts(
    parts: dict[str, list[int]], pictures: Sequence[Image.Image], prompts: Sequence[str], side: int, folder: Path
) -> None:
    """Each part's pictures as numbered PNG files, in its order, each with its prompt in a text file."""
    for name, numbers in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for place, number in enumerate(numbers):
            picture = exif_transpose(pictures[number].convert("RGB"))
            if name == "train":
                picture = picture.resize((side, side), Image.Resampling.BILINEAR)
            with replacing(folder / name / f"{place:02d}.png") as temporary:
                picture.save(temporary, format="PNG")
            write_text(folder / name / f"{place:02d}.txt", prompts[number])


def _fetch(params: Params) -> list[Image.Image]:
    """The data set's pictures. Raises InputError."""
    try:
        import datasets
    except ImportError:
        raise InputError("--prepare needs a package: pip install 'dash-vision[datasets]'") from None
    try:
        rows: Any = datasets.load_dataset(params.dataset_id, split=params.dataset_split)
        return list(rows[params.image_column])
    except Exception as error:  # the library has no exception of its own that all its others are
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read the data set {params.dataset_id} ({reason}); check the connection") from None


def read_part(folder: Path) -> tuple[list[Image.Image], list[str]]:
    """Pictures and prompts of a part, in their order. Raises InputError."""
    files = list_folder(folder).files
    for file in files:
        if file.caption is None:
            raise InputError(f"{file.path} has no caption; give the folder test of what --prepare wrote")
    try:
        pictures = [read_picture(file.path).image for file in files]
    except Refused as reason:
        raise InputError(f"a picture in {folder} cannot be read ({reason}); --prepare writes them again") from None
    return pictures, [str(file.caption) for file in files]
