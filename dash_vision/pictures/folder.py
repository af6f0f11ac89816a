"""Read the pictures of a DreamBooth run from a folder, whatever people have put there.

    pictures = read_folder("cat/", resolution=512)
    for note in pictures.notes:
        print(note)
    tensor, info = to_tensor(pictures.images[0].image, (512, 512))

A file that is meant to be a picture and cannot be used stops the run, by name: training on four pictures when
the user counted five is a surprise. A file that is no picture is skipped, and said. Nothing is repaired by
guessing; a truncated photograph would otherwise be learned with its grey lower half.

Knows pillow, numpy and torch; no diffusers. Sizes are in pixels throughout.
"""

from __future__ import annotations

import re
import stat
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from PIL import Image

from ..files.errors import InputError
from .captions import METADATA_NAME, Captions, listed, read_captions, shown
from .crops import Bucket, CropInfo, make_buckets, nearest_bucket, to_tensor, variants
from .decode import MIN_SIDE, Limits, Refused, read_picture
from .formats import READABLE, SUFFIXES, meant_as_picture, read_head, reason_of, sniff

__all__ = [
    "Bucket",
    "CropInfo",
    "InputError",
    "InstanceImage",
    "InstanceSet",
    "make_buckets",
    "nearest_bucket",
    "read_folder",
    "to_tensor",
    "variants",
]


@dataclass(frozen=True)
class InstanceImage:
    """One picture, ready to be cropped."""

    path: Path
    image: Image.Image
    """RGB, 8 bit, upright, white where it was transparent; scaled down if it was much larger than needed."""
    caption: str | None
    """Its own caption on one line, or None: the instance prompt is to be used."""
    original_size: tuple[int, int]
    """(height, width) of the upright picture in the file, before any scaling: what SDXL is told."""


@dataclass(frozen=True)
class InstanceSet:
    """The pictures of a folder in natural order of their names, and what the user should know about them."""

    folder: Path
    images: tuple[InstanceImage, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class _Listing:
    """The entries of a folder, sorted into what they are for."""

    images: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    metadata: Path | None = None
    strays: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def read_folder(
    folder: str | Path,
    *,
    resolution: int = 512,
    min_side: int = MIN_SIDE,
    max_side: int | None = None,
    captions: bool = True,
) -> InstanceSet:
    """Read every picture in `folder`, and the captions beside them.

    Args:
        folder: a folder (its subfolders are not entered), or one picture file.
        resolution: what the model will see. A shorter side below it is noted, since it will be enlarged.
        min_side: a shorter side below this is refused.
        max_side: a longer side above this is scaled down to it while reading, to spare memory, but never so
            far that the shorter side drops below 2 * resolution. None takes 4 * resolution.
        captions: read `NAME.txt` and `metadata.jsonl`; otherwise they are skipped, and said.

    Raises:
        InputError: nothing to read, pictures that cannot be used (named, up to eight), a bad caption.
    """
    root = _existing(folder)
    listing = _list_folder(root) if root.is_dir() else _list_one_file(root)
    if not listing.images:
        raise InputError(_nothing_to_read(root, listing))
    found = Captions({}, (), ())
    if captions:
        found = read_captions(listing.images, listing.texts, listing.metadata)
    limits = Limits(resolution, min_side, max_side or 4 * resolution)
    images, remarks = _read_all(root, listing.images, found, limits)
    notes = [*_skip_notes(listing, found, captions), *_picture_notes(remarks), *_caption_notes(images, found)]
    return InstanceSet(root, images, tuple(notes))


def _read_all(
    root: Path, paths: list[Path], captions: Captions, limits: Limits
) -> tuple[tuple[InstanceImage, ...], dict[str, list[str]]]:
    """Decode all files; `remarks` are file names by what was remarkable about them."""
    images: list[InstanceImage] = []
    remarks: dict[str, list[str]] = defaultdict(list)
    bad: list[str] = []
    for path in paths:
        try:
            picture = read_picture(path, limits)
        except Refused as reason:
            bad.append(f"{shown(path.name)} ({reason})")
            continue
        caption = captions.texts.get(path.name)
        images.append(InstanceImage(path, picture.image, caption, picture.original_size))
        for remark in picture.remarks:
            remarks[remark].append(shown(path.name))
    if bad:
        which, them = _count(len(bad), "picture"), "it" if len(bad) == 1 else "them"
        raise InputError(f"cannot use {which} in {shown(root)}: {listed(bad)}; remove or replace {them}")
    return tuple(images), remarks


# The folder


def _existing(folder: str | Path) -> Path:
    if not str(folder).strip():
        raise InputError("the image folder has an empty name; give the folder that holds the pictures")
    try:
        path = Path(folder).expanduser()  # "--instance_data=~/cat" reaches us unexpanded
        path.stat()
        return path
    except FileNotFoundError as error:
        near = _near_names(path)
        hint = f"did you mean {shown(near)}?" if near else "check the name, or make it and put pictures in it"
        raise InputError(f"there is no folder {shown(folder)}; {hint}") from error
    except OSError as error:
        raise InputError(f"cannot read {shown(folder)}: {reason_of(error)}; check the path") from error
    except (ValueError, RuntimeError) as error:  # a zero byte in the name; "~nobody"
        raise InputError(f"{shown(folder)} is no path; give the folder of the pictures") from error


def _near_names(path: Path) -> Path | None:
    try:
        near = get_close_matches(path.name, sorted(p.name for p in path.parent.iterdir()), n=1)
    except OSError:
        return None
    return path.parent / near[0] if near else None


def _list_folder(root: Path) -> _Listing:
    try:
        entries = sorted(root.iterdir(), key=_natural_key)
    except OSError as error:
        reason = reason_of(error)
        raise InputError(f"cannot list {shown(root)}: {reason}; check its permissions") from error
    listing = _Listing()
    for entry in entries:
        _sort_in(entry, listing)
    return listing


def _sort_in(entry: Path, listing: _Listing) -> None:
    kind = _kind(entry)
    # .ipynb_checkpoints, .DS_Store, and the ._01.jpg of a Mac, which is no picture whatever its name says
    if entry.name.startswith(".") or entry.name == "__MACOSX":
        listing.strays.append(entry.name)
    elif kind == "folder":
        listing.folders.append(entry)
    elif kind == "file" and entry.name.lower() == METADATA_NAME:
        listing.metadata = entry
    elif kind == "file" and entry.suffix.lower() == ".txt":
        listing.texts.append(entry)
    elif kind in ("file", "unreadable") and meant_as_picture(entry):
        listing.images.append(entry)
    else:
        listing.strays.append(entry.name)


def _list_one_file(path: Path) -> _Listing:
    plain = _kind(path) == "file"
    if not plain or not meant_as_picture(path):
        what = (plain and sniff(read_head(path))) or "a file that is no picture"
        raise InputError(f"{shown(path)} is {what}; give a folder of pictures, or one picture ({listed(READABLE)})")
    sidecar = path.with_suffix(".txt")
    return _Listing(images=[path], texts=[sidecar] if _kind(sidecar) == "file" else [])


def _kind(path: Path) -> str:
    """One of "file", "folder", "unreadable" (or a dead link), "special" (a pipe would be waited for)."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "unreadable"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special"


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    """cat2 before cat10; names that differ only in case or in leading zeros stay in a fixed order too."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


# What the user is told


def _picture_notes(remarks: dict[str, list[str]]) -> list[str]:
    counts = {text: _count(len(names), "picture") for text, names in remarks.items()}
    return [f"{text.format(n=counts[text])}: {listed(names)}" for text, names in remarks.items()]


def _skip_notes(listing: _Listing, found: Captions, captions: bool) -> list[str]:
    notes = []
    stems = {path.stem for path in listing.images}
    unused = [path.name for path in listing.texts if path.name not in found.used]
    if not captions:
        files = [name for name in unused if Path(name).stem in stems]
        files += [listing.metadata.name] if listing.metadata else []
        unused = [name for name in unused if name not in files]
        if files:
            notes.append(f"did not read {_count(len(files), 'caption file')}: {listed(map(shown, files))}")
    strays = sorted([*unused, *listing.strays], key=lambda name: _natural_key(Path(name)))
    if strays:
        verb = "is no image" if len(strays) == 1 else "are no images"
        notes.append(f"skipped {_count(len(strays), 'file')} that {verb}: {listed(map(shown, strays))}")
    if listing.folders:
        names = listed(shown(path.name) for path in listing.folders)
        notes.append(f"did not look into {_count(len(listing.folders), 'subfolder')}: {names}")
    return notes


def _caption_notes(images: Iterable[InstanceImage], found: Captions) -> list[str]:
    notes = []
    if found.blank:
        names = listed(map(shown, found.blank))
        notes.append(f"{_count(len(found.blank), 'empty caption')}, using the prompt: {names}")
    without = [shown(i.path.name) for i in images if i.caption is None and i.path.name not in found.blank]
    if without and (found.texts or found.blank):
        names = listed(without)
        notes.append(f"{_count(len(without), 'picture')} without a caption, using the prompt: {names}")
    return notes


def _nothing_to_read(root: Path, listing: _Listing) -> str:
    names = [path.name for path in (*listing.texts, *([listing.metadata] if listing.metadata else []))]
    names += listing.strays
    holds = [f"{_count(len(names), 'other file')} ({listed(map(shown, names))})"] if names else []
    if listing.folders:
        folders = listed(shown(path.name) for path in listing.folders)
        holds.append(f"{_count(len(listing.folders), 'subfolder')} ({folders})")
    full = next((path for path in listing.folders if _has_pictures(path)), None)
    advice = f"give {shown(full)} instead" if full else f"put pictures into it ({listed(READABLE)})"
    what = f"holds {' and '.join(holds)}" if holds else "is empty"
    return f"there are no pictures in {shown(root)}, which {what}; {advice}"


def _has_pictures(folder: Path) -> bool:
    try:
        return any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
    except OSError:
        return False


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
