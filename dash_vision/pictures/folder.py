"""Read the pictures of a DreamBooth run from a folder, whatever people have put there.

    pictures = read_folder("cat/", resolution=512)
    for note in pictures.notes:
        print(note)
    tensor, info = to_tensor(pictures.images[0].image, (512, 512))

A file that is meant to be a picture and cannot be used stops the run, by name: training on four pictures when
the user counted five is a surprise. A file that is no picture is skipped, and said. Nothing is repaired by
guessing; a truncated photograph would otherwise be learned with its grey lower half.

A folder without pictures of its own, but with subfolders such as `10_sks dog/`, is read as kohya's trainers read it:
all those subfolders, the pictures of each as often as its number says in comparison with the others.

Knows pillow, numpy and torch; no diffusers. Sizes are in pixels throughout.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..files.errors import InputError
from .captions import shown
from .crops import Bucket, CropInfo, make_buckets, nearest_bucket, to_tensor, variants
from .decode import MIN_SIDE, Limits, Refused, read_picture
from .listing import (
    Listing,
    PictureFile,
    check_folder,
    list_folder,
    picture_files,
    picture_notes,
    raise_bad,
    subfolder_names,
)
from .names import FolderName

__all__ = [
    "Bucket",
    "CropInfo",
    "InputError",
    "InstanceImage",
    "InstanceSet",
    "Listing",
    "PictureFile",
    "check_folder",
    "decode_files",
    "list_folder",
    "make_buckets",
    "nearest_bucket",
    "picture_files",
    "picture_notes",
    "read_folder",
    "subfolder_names",
    "to_tensor",
    "variants",
]

_TWICE = "{n} the same as another one, which so counts more than once (remove copies)"


@dataclass(frozen=True)
class InstanceImage:
    """One picture, ready to be cropped."""

    path: Path
    image: Image.Image
    """RGB, 8 bit, sRGB, upright, white where it was transparent; scaled down if it was much larger than needed."""
    caption: str | None
    """Its own caption on one line, or None: the instance prompt is to be used."""
    original_size: tuple[int, int]
    """(height, width) of the upright picture in the file, before any scaling: what SDXL is told."""
    name: str
    """Its place in the folder: "01.jpg", or "10_sks dog/01.jpg"."""
    repeats: int = 1
    """How often it is drawn for one time of a picture that has 1."""


@dataclass(frozen=True)
class InstanceSet:
    """The pictures of a folder in natural order of their names, and what the user should know about them."""

    folder: Path
    images: tuple[InstanceImage, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def read_folder(
    folder: str | Path,
    *,
    resolution: int = 512,
    min_side: int = MIN_SIDE,
    max_side: int | None = None,
    captions: bool = True,
    prompt: Callable[[FolderName], str] | None = None,
) -> InstanceSet:
    """Read every picture in `folder`, and the captions beside them.

    Args:
        folder: a folder (of subfolders only those of kohya's kind are entered), or one picture file.
        resolution, min_side, max_side: as in `decode_files`.
        captions, prompt: as in `list_folder`.

    Raises:
        InputError: nothing to read, pictures that cannot be used (named, up to eight), a bad caption.
    """
    listing = list_folder(folder, captions=captions, prompt=prompt)
    return decode_files(listing, resolution=resolution, min_side=min_side, max_side=max_side)


def decode_files(
    listing: Listing, *, resolution: int = 512, min_side: int = MIN_SIDE, max_side: int | None = None
) -> InstanceSet:
    """Decode every file of a listing.

    Args:
        listing: of `list_folder`.
        resolution: what the model will see. A shorter side below it is noted, since it will be enlarged.
        min_side: a shorter side below this is refused.
        max_side: a longer side above this is scaled down to it while reading, to spare memory, but never so
            far that the shorter side drops below 2 * resolution. None takes 4 * resolution.

    Raises:
        InputError: pictures that cannot be used (named, up to eight).
    """
    limits = Limits(resolution, min_side, max_side or 4 * resolution)
    images: list[InstanceImage] = []
    remarks: dict[str, list[str]] = defaultdict(list)
    bad: list[str] = []
    first: dict[bytes, str] = {}  # by pixels
    for file in listing.files:
        try:
            picture = read_picture(file.path, limits)
        except Refused as reason:
            bad.append(f"{shown(file.name)} ({reason})")
            continue
        size = picture.original_size
        pixels = hashlib.sha256(repr(picture.image.size).encode() + picture.image.tobytes()).digest()
        if first.setdefault(pixels, file.name) != file.name:
            remarks[_TWICE].append(f"{shown(file.name)} (as {shown(first[pixels])})")
        images.append(InstanceImage(file.path, picture.image, file.caption, size, file.name, file.repeats))
        for remark in picture.remarks:
            remarks[remark].append(shown(file.name))
    raise_bad(listing, bad)
    return InstanceSet(listing.folder, tuple(images), (*listing.notes, *picture_notes(remarks)))
