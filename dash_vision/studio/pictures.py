"""The pictures of a subject: taken in, looked at, captioned, put aside. Nothing that a user gave is ever deleted."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ..files.atomic import replacing, write_text
from ..files.errors import InputError
from ..pictures.captions import MAX_CAPTION_CHARS, shown
from ..pictures.crops import kept_share, make_buckets, nearest_bucket
from ..pictures.decode import MIN_SIDE, Limits, Refused, read_picture
from ..pictures.folder import decode_files
from ..pictures.formats import SUFFIXES
from ..pictures.listing import Listing, PictureFile, list_folder, picture_files
from .places import safe_name

ASIDE = "left-out"  # where pictures go that are taken out of a folder
LARGEST = 64 * 1024 * 1024  # bytes of a picture
MOST = 500  # pictures in a folder
_STEP = 64  # of the buckets' sides, in pixels, for a base of 512 pixels or more
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}


@dataclass(frozen=True)
class Shown:
    """A picture of the folder. size: of the upright picture in pixels. keeps: the shares of its width and height that
    a crop keeps. caption: its own, "" where the prompt is used. remarks: what the command would note. refused: why it
    cannot be used, "" where it can."""

    name: str
    size: tuple[int, int] = (0, 0)
    keeps: tuple[float, float] = (1.0, 1.0)
    caption: str = ""
    remarks: tuple[str, ...] = ()
    refused: str = ""

    @property
    def cut(self) -> str:
        """What the crop leaves out, in words."""
        lost = 1 - self.keeps[0] * self.keeps[1]
        return f"{lost:.0%} cut away" if lost >= 0.005 else "used whole"

    @property
    def box(self) -> str:
        """The crop in the middle, as the insets (top, right, bottom, left) of a style sheet."""
        x, y = (50 * (1 - share) for share in self.keeps)
        return f"{y:.2f}% {x:.2f}% {y:.2f}% {x:.2f}%"


@dataclass(frozen=True)
class Contents:
    """What is in a folder. problem: why the command would refuse it. notes: what it would say. tables: names of tables
    of captions, beside which no caption can be written to a file of its own."""

    pictures: list[Shown]
    notes: list[str]
    problem: str = ""
    tables: tuple[str, ...] = ()

    @property
    def usable(self) -> list[Shown]:
        """The pictures that are trained on."""
        return [picture for picture in self.pictures if not picture.refused]


def look(folder: Path, resolution: int, buckets: bool) -> Contents:
    """A folder as the command would read it for pictures of `resolution` pixels; whatever is wrong with it is said."""
    tables = tuple(name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file())
    try:
        listing = list_folder(folder, may_be_empty=True, skip=(ASIDE,))
    except InputError as error:
        files = tuple(PictureFile(path, None, path.name) for path in _files(folder))
        shown_ones = [_look_at(file, resolution, buckets) for file in files]
        return Contents(shown_ones, [], str(error), tables)
    pictures = [_look_at(file, resolution, buckets) for file in listing.files]
    problem, notes = "", list(listing.notes)
    good = {picture.name for picture in pictures if not picture.refused}
    if len(good) < len(pictures):
        problem = "a run does not begin with pictures in its folder that it cannot use; take them out"
    elif not pictures:
        problem = "there are no pictures yet"
    else:
        notes += _copies(listing)
    return Contents(pictures, notes, problem, tables)


def _files(folder: Path) -> list[Path]:
    try:
        return picture_files(folder)
    except InputError:
        return []


def _copies(listing: Listing) -> list[str]:
    """The note on pictures that are the same as others."""
    if len(listing.files) > 40:  # all are decoded for it
        return []
    try:
        notes = decode_files(listing, resolution=64).notes
    except InputError:
        return []
    return [note for note in notes if "the same as another" in note]


def _look_at(file: PictureFile, resolution: int, buckets: bool) -> Shown:
    try:
        changed = file.path.stat().st_mtime_ns
        (height, width), remarks = _decoded(str(file.path), changed, resolution)
    except OSError as error:
        return Shown(file.name, refused=(error.strerror or "it cannot be opened").lower())
    except Refused as reason:
        return Shown(file.name, refused=str(reason))
    target = (resolution, resolution)
    if buckets:
        step = _STEP if resolution >= 512 else max(8, resolution // 8)
        target = nearest_bucket(width, height, make_buckets(resolution, step))
    return Shown(file.name, (width, height), kept_share((width, height), target), file.caption or "", remarks)


@lru_cache(maxsize=2048)
def _decoded(path: str, changed: int, resolution: int) -> tuple[tuple[int, int], tuple[str, ...]]:
    """((height, width), remarks) of a picture. changed: its time of change, by which the answer is kept."""
    picture = read_picture(Path(path), Limits(resolution, MIN_SIDE, max_side=4 * resolution))
    remarks = tuple(_of_one(remark) for remark in picture.remarks)
    return picture.original_size, remarks


def _of_one(remark: str) -> str:
    """A remark on any number of pictures as one on a single picture."""
    return remark.format(n="this picture").replace("will be enlarged and look soft", "is enlarged and looks soft")


@lru_cache(maxsize=256)
def thumbnail(path: str, changed: int, side: int = 360) -> bytes:
    """A small upright JPEG of a picture. Raises Refused."""
    image = read_picture(Path(path), Limits(1, 1, 2 * side)).image
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def find(folder: Path, name: str) -> Path:
    """The picture of that name, as `look` gives it. Raises InputError where the folder does not list it."""
    try:
        files = {file.name: file.path for file in list_folder(folder, may_be_empty=True, skip=(ASIDE,)).files}
    except InputError:
        files = {path.name: path for path in _files(folder)}
    path = files.get(name)
    if path is None or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"there is no picture {shown(name)} in {shown(folder.name)}; load the page again")
    return path


def take_in(folder: Path, name: str, file: Path) -> str:
    """Move an uploaded file into the folder as a picture of about that name; the name that it got.

    Raises InputError, and leaves the file, where it is no picture that a run could use, with the reason.
    """
    try:
        picture = read_picture(file, Limits(1, MIN_SIDE, 512))
    except Refused as reason:
        raise InputError(f"{shown(name)}: {reason}") from None
    if len(_files(folder)) >= MOST:
        raise InputError(f"{shown(name)}: the folder holds {MOST} pictures already, as many as this page takes")
    stem, dot, ending = (safe_name(name) or "picture").rpartition(".")
    stem, suffix = (stem, dot + ending) if f".{ending.lower()}" in SUFFIXES else (f"{stem}{dot}{ending}", "")
    suffix = suffix or _SUFFIXES.get(picture.format, ".png")
    target = _free(folder, stem, suffix)
    with replacing(target) as temporary:
        shutil.move(file, temporary)
    return target.name


def _free(folder: Path, stem: str, suffix: str) -> Path:
    """A name that no picture has, whatever the suffix: captions go by the stem."""
    stems = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()
    number, name = 1, stem
    while name in stems:
        number += 1
        name = f"{stem}-{number}"
    return folder / f"{name}{suffix}"


def set_caption(folder: Path, name: str, text: str) -> None:
    """Write a picture's caption to the file beside it; an empty one takes that file away. Raises InputError."""
    picture = find(folder, name)
    caption = " ".join(text.split())
    if len(caption) > MAX_CAPTION_CHARS:
        raise InputError(f"the caption has {len(caption):,} characters; shorten it to at most {MAX_CAPTION_CHARS:,}")
    beside = [picture.with_name(base + end) for base in (picture.stem, picture.name) for end in (".txt", ".caption")]
    there = [path for path in beside if path.is_file()]
    target = there[0] if there else picture.with_suffix(".txt")
    tables = [n for n in ("metadata.jsonl", "metadata.csv") if (picture.parent / n).is_file()]
    if tables and not there:
        raise InputError(f"the captions of this folder are in {tables[0]}; edit them there")
    try:
        if caption:
            write_text(target, caption + "\n")
        elif there:
            _move_aside(target)
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot write {shown(target.name)} ({error}); check the folder") from None


def put_aside(folder: Path, name: str) -> None:
    """Move a picture and its caption into a folder that runs do not look into. Raises InputError."""
    picture = find(folder, name)
    beside = [picture.with_name(base + end) for base in (picture.stem, picture.name) for end in (".txt", ".caption")]
    try:
        for path in (picture, *(path for path in beside if path.is_file())):
            _move_aside(path)
    except OSError as error:
        raise InputError(f"cannot take {shown(name)} out ({error.strerror}); check the folder") from None


def _move_aside(path: Path) -> None:
    target = path.parent / ASIDE / path.name
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{path.stem}-{number}{path.suffix}")
    target.parent.mkdir(exist_ok=True)
    os.replace(path, target)


def draw_example(folder: Path) -> None:
    """Five pictures of a cat of the miniature's world, as `dash-vision demo` has them."""
    from ..commands.demo import SCENE_SEED, SEED, SIDE
    from ..miniature.world.scenes import individual, instance_scenes, write_pictures

    write_pictures(instance_scenes(individual(SEED, "cat"), 5, SCENE_SEED), folder, SIDE)


def usable_count(folders: Sequence[Path]) -> dict[str, int]:
    """How many files that are meant to be pictures are in each folder, by its name."""
    return {folder.name: len(_files(folder)) for folder in folders}
