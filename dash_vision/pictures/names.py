"""What a folder's name says of its pictures: words, and kohya's number of repeats in front of them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ..files.errors import InputError, one_line
from ..files.places import from_root

_REPEATS = re.compile(r"([1-9][0-9]{0,3})_(.+)", re.DOTALL)  # no date: 20240131_cat is a name
_JOINERS = "'\u2019\u200c\u200d"  # apostrophes, and what joins or parts letters of Persian and Indian words


@dataclass(frozen=True)
class FolderName:
    """`10_sks dog`, as kohya's trainers have it, is 10 repeats of "sks dog"; `my_dogs-2` has no repeats."""

    words: str
    """Words in lower case, one blank between them; "" where the name holds no letter."""
    repeats: int | None


def folder_name(name: str) -> FolderName:
    """The parts of a folder's plain name, without its path."""
    match = _REPEATS.fullmatch(name)
    if match and words_of(match[2]):
        return FolderName(words_of(match[2]), int(match[1]))
    return FolderName(words_of(name), None)


def name_of(folder: str | Path) -> FolderName:
    """The name of the folder at a path, or of the picture file at it, without its suffix."""
    try:
        path = from_root(folder)
    except (ValueError, RuntimeError):  # a zero byte in the name; "~nobody"
        raise InputError(f"{one_line(folder)} is no path; give the folder of the pictures") from None
    return folder_name(path.stem if path.is_file() else path.name)


def words_of(name: str) -> str:
    """The words in a name: runs of letters, their marks and digits, in any script; numbers alone are left out.

    Accents that a file system has taken apart are put together (NFC).
    """
    text = unicodedata.normalize("NFC", name)
    words = "".join(c if _in_word(text, i) else " " for i, c in enumerate(text)).split()
    return " ".join(word for word in words if not word.isnumeric()).lower()


def _in_word(text: str, i: int) -> bool:
    if text[i] in _JOINERS:
        return 0 < i < len(text) - 1 and _is_letter(text[i - 1]) and _is_letter(text[i + 1])
    return _is_letter(text[i])


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"  # letters, marks, numbers
