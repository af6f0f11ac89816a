"""What a folder of pictures holds: which files are pictures, their captions, kohya's repeats. No picture is decoded.

    listing = list_folder("cat/")
    check_folder(listing)

Needs no torch, so that a command line can look at a folder before it loads anything.
"""

from __future__ import annotations

import hashlib
import math
import re
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from ..files.errors import InputError
from .captions import CAPTION_SUFFIXES, METADATA_NAMES, Captions, listed, read_captions, shown
from .decode import MIN_SIDE, Limits, Refused, check_picture
from .formats import READABLE, SUFFIXES, is_hidden, meant_as_picture, read_head, reason_of, sniff
from .names import FolderName, folder_name, name_of

RECORD_NAME = "run.json"  # with the adapter beside it, a folder is the output of a run
MASK_ENDS = ("-masklabel", "-condlabel", "_mask", ".mask")  # of the stem; the first two are OneTrainer's
MAX_REPEATS = 1_000  # of one subfolder for each time of another


@dataclass(frozen=True)
class PictureFile:
    """A file that is meant to be a picture, not looked into yet; the fields are those of `InstanceImage`."""

    path: Path
    caption: str | None
    name: str
    repeats: int = 1


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    folder: Path
    files: tuple[PictureFile, ...]
    notes: tuple[str, ...]


def files_digest(paths: Sequence[Path]) -> str:
    """By which the same picture files are recognised, whatever their names: 16 hex digits. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def list_folder(
    folder: str | Path,
    *,
    captions: bool = True,
    prompt: Callable[[FolderName], str] | None = None,
    skip: Collection[str] = (),
    may_be_empty: bool = False,
) -> Listing:
    """The pictures of a folder and their captions, without opening a picture.

    Args:
        folder: as in `read_folder`.
        captions: read the files that `captions` describes; otherwise they are skipped, and said.
        prompt: where subfolders have different words in their names, makes these the caption of the pictures that have
            none of their own. None leaves such pictures without.
        skip: names of subfolders that are not mentioned either.
        may_be_empty: no pictures are no error.

    Raises:
        InputError: nothing to read, a bad caption, the output folder of a run.
    """
    root = _existing(folder)
    if holds_run(root):
        raise InputError(
            f"{shown(root)} is the output folder of a run (its {RECORD_NAME} and its adapter are in it), and its "
            "pictures are results; give the folder of your own pictures"
        )
    entries = _list_entries(root, skip) if root.is_dir() else _list_one_file(root)
    parts = [entries] if entries.images else _kohya_parts(entries) or [entries]
    if not (entries.images or may_be_empty or parts[0] is not entries):
        raise InputError(_nothing_to_read(root, entries))
    notes = _part_notes(parts, entries)
    files: list[PictureFile] = []
    common = math.gcd(*(part.repeats for part in parts))
    several = len({part.name.words for part in parts}) > 1
    for part in parts:
        text = prompt(part.name) if prompt and several else None
        if text:
            notes.append(f'prompt of {shown(part.prefix)}: "{text}" (from its name), where a picture has no caption')
        texts = read_captions(part.images, part.texts, part.tables) if captions else Captions({}, (), ())
        files += [
            PictureFile(p, texts.texts.get(p.name) or text, part.label(p.name), part.repeats // common)
            for p in part.images
        ]
        notes += [*_skip_notes(part, texts, captions), *_caption_notes(part, texts), *_mask_notes(part)]
    return Listing(root, tuple(files), tuple(notes))


def check_folder(listing: Listing, *, min_side: int = MIN_SIDE) -> None:
    """Look at the beginning and the end of every file, without decoding it: the commonest faults in little time.

    Raises:
        InputError: pictures that cannot be used (named, up to eight).
    """
    limits = Limits(resolution=1, min_side=min_side, max_side=1)
    bad = []
    for file in listing.files:
        try:
            check_picture(file.path, limits)
        except Refused as reason:
            bad.append(f"{shown(file.name)} ({reason})")
    raise_bad(listing, bad)


def raise_bad(listing: Listing, bad: Sequence[str]) -> None:
    """Raises InputError with all that cannot be used, if there is something: names, each with its reason."""
    if bad:
        which, them = _count(len(bad), "picture"), "it" if len(bad) == 1 else "them"
        raise InputError(f"cannot use {which} in {shown(listing.folder)}: {listed(bad)}; remove or replace {them}")


def picture_files(folder: Path) -> list[Path]:
    """The files in a folder that are meant to be pictures, in natural order; none where there is no folder.

    Raises:
        InputError: the folder cannot be listed.
    """
    return _list_entries(folder).images if folder.is_dir() else []


def subfolder_names(folder: str | Path) -> list[FolderName]:
    """The names of the subfolders that `read_folder` would enter; none for a folder with pictures of its own, and
    where nothing can be read."""
    try:
        root = _existing(folder)
        entries = _list_entries(root) if root.is_dir() else _Entries()
    except InputError:
        return []
    return [] if entries.images else [part.name for part in _kohya_parts(entries)]


def holds_run(folder: Path) -> bool:
    """Whether a run has written its results there."""
    if not (folder / RECORD_NAME).is_file():
        return False
    from ..files.native import NATIVE_NAME  # needs torch, which a folder of pictures does not

    return (folder / NATIVE_NAME).is_file()


# The folder


@dataclass
class _Entries:
    """The entries of a folder, sorted into what they are for."""

    images: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    name: FolderName = field(default_factory=lambda: FolderName("", None))
    prefix: str = ""
    """Of a subfolder: what stands before its files' names when they are shown."""

    @property
    def repeats(self) -> int:
        return self.name.repeats or 1

    def label(self, name: str) -> str:
        return self.prefix + name


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


def _list_entries(root: Path, skip: Collection[str] = ()) -> _Entries:
    try:
        paths = sorted(root.iterdir(), key=_natural_key)
    except OSError as error:
        reason = reason_of(error)
        raise InputError(f"cannot list {shown(root)}: {reason}; check its permissions") from error
    entries = _Entries(name=name_of(root))
    for path in paths:
        if path.name not in skip:
            _sort_in(path, entries)
    return entries


def _sort_in(path: Path, entries: _Entries) -> None:
    kind = _kind(path)
    if is_hidden(path.name):
        entries.strays.append(path.name)
    elif kind == "folder":
        entries.folders.append(path)
    elif kind == "file" and path.name.lower() in METADATA_NAMES:
        entries.tables.append(path)
    elif kind == "file" and path.suffix.lower() in CAPTION_SUFFIXES:
        entries.texts.append(path)
    elif kind in ("file", "unreadable") and meant_as_picture(path):
        entries.images.append(path)
    else:
        entries.strays.append(path.name)


def _list_one_file(path: Path) -> _Entries:
    plain = _kind(path) == "file"
    if not plain or not meant_as_picture(path):
        what = (plain and sniff(read_head(path))) or "a file that is no picture"
        raise InputError(f"{shown(path)} is {what}; give a folder of pictures, or one picture ({listed(READABLE)})")
    beside = [path.with_name(name + suffix) for name in (path.stem, path.name) for suffix in CAPTION_SUFFIXES]
    texts = [text for text in beside if _kind(text) == "file"]
    return _Entries(images=[path], texts=texts, name=name_of(path))


def _kohya_parts(entries: _Entries) -> list[_Entries]:
    """The subfolders with kohya's repeats in their names and pictures in them."""
    parts = []
    for folder in entries.folders:
        name = folder_name(folder.name)
        if name.repeats is None or holds_run(folder):
            continue
        part = _list_entries(folder)
        part.name, part.prefix = name, folder.name + "/"
        if part.images:
            parts.append(part)
    return parts


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


def picture_notes(remarks: dict[str, list[str]]) -> list[str]:
    """Sentences for the user. remarks: those of `Picture`, each with the names of the pictures it is true of."""
    counts = {text: _count(len(names), "picture") for text, names in remarks.items()}
    return [f"{text.format(n=counts[text])}: {listed(names)}" for text, names in remarks.items()]


def _part_notes(parts: list[_Entries], entries: _Entries) -> list[str]:
    """What becomes of repeats, and what lies beside the subfolders that are read."""
    notes = []
    numbers = [part.name.repeats for part in parts if part.name.repeats]
    if len(parts) > 1 and len(set(numbers)) > 1:
        common = math.gcd(*numbers)
        if max(numbers) > MAX_REPEATS * common:
            raise InputError(
                f"the repeats of the subfolders are {listed(map(str, numbers))}; name them so that none is drawn more "
                f"than {MAX_REPEATS:,} times as often as the others"
            )
        shares = listed(
            f"{number // common} ({shown(part.prefix)})" for part, number in zip(parts, numbers, strict=True)
        )
        notes.append(f"pictures are drawn in the proportion of their subfolders' repeats: {shares}")
    elif any(number > 1 for number in numbers):
        why = "all pictures have the same" if len(parts) > 1 else "all pictures are in one folder"
        notes.append(f"the {numbers[0]} repeats in the folder's name make no difference, since {why}")
    if parts[0] is not entries:
        entries.folders = [f for f in entries.folders if f.name + "/" not in {part.prefix for part in parts}]
        notes += _skip_notes(entries, Captions({}, (), ()), captions=False)
    return notes


def _skip_notes(entries: _Entries, texts: Captions, captions: bool) -> list[str]:
    notes = []
    names = {name for path in entries.images for name in (path.stem, path.name)}
    unused = [path.name for path in entries.texts if path.name not in texts.used]
    if not captions:
        files = [name for name in unused if Path(name).stem in names]
        files += [path.name for path in entries.tables]
        unused = [name for name in unused if name not in files]
        if files:
            notes.append(f"did not read {_count(len(files), 'caption file')}: {_labels(entries, files)}")
    strays = sorted([*unused, *entries.strays], key=lambda name: _natural_key(Path(name)))
    if strays:
        verb = "is no image" if len(strays) == 1 else "are no images"
        notes.append(f"skipped {_count(len(strays), 'file')} that {verb}: {_labels(entries, strays)}")
    if entries.folders:
        folders = _labels(entries, [path.name for path in entries.folders])
        notes.append(f"did not look into {_count(len(entries.folders), 'subfolder')}: {folders}")
    return notes


def _caption_notes(entries: _Entries, texts: Captions) -> list[str]:
    notes = []
    if texts.blank:
        names = _labels(entries, texts.blank)
        notes.append(f"{_count(len(texts.blank), 'empty caption')}, using the prompt: {names}")
    without = [p.name for p in entries.images if p.name not in texts.texts and p.name not in texts.blank]
    if without and (texts.texts or texts.blank):
        notes.append(
            f"{_count(len(without), 'picture')} without a caption, using the prompt: {_labels(entries, without)}"
        )
    return notes


def _mask_notes(entries: _Entries) -> list[str]:
    """Other trainers keep a mask beside its picture, which is a picture like any other here."""
    stems = {path.stem for path in entries.images}
    masks = [
        path.name
        for path in entries.images
        for end in MASK_ENDS
        if path.stem.endswith(end) and path.stem.removesuffix(end) in stems
    ]
    if not masks:
        return []
    return [
        f"{_count(len(masks), 'picture')} named like the mask of another, which is trained on like the others (remove "
        f"masks): {_labels(entries, masks)}"
    ]


def _labels(entries: _Entries, names: Sequence[str]) -> str:
    return listed(shown(entries.label(name)) for name in names)


def _nothing_to_read(root: Path, entries: _Entries) -> str:
    names = [path.name for path in (*entries.texts, *entries.tables)] + entries.strays
    holds = [f"{_count(len(names), 'other file')} ({listed(map(shown, names))})"] if names else []
    if entries.folders:
        folders = listed(shown(path.name) for path in entries.folders)
        holds.append(f"{_count(len(entries.folders), 'subfolder')} ({folders})")
    full = next((path for path in entries.folders if _has_pictures(path)), None)
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
