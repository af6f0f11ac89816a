"""The folders that were given at the start, and what lies in them.

A request never makes a path: it gives a name, and the name has to be one that the folder lists.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ..files.errors import InputError
from ..pictures.captions import shown

LONGEST = 80  # characters of a name that is made here


@dataclass(frozen=True)
class Place:
    """A folder in which each folder is one thing: a run, or the pictures of a subject."""

    root: Path
    what: str

    def names(self) -> list[str]:
        """The folders in it, but for hidden ones and links that lead out of it."""
        try:
            entries = sorted(self.root.iterdir())
        except OSError:
            return []
        return [path.name for path in entries if not path.name.startswith(".") and self._is_inside(path)]

    def _is_inside(self, path: Path) -> bool:
        try:
            return path.is_dir() and path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError):  # a circle of links
            return False

    def find(self, name: str) -> Path:
        """The folder of that name. Raises InputError where the list has none."""
        if name not in self.names():
            raise InputError(f"there is no {self.what} {shown(name)} here; go back to the list")
        return self.root / name

    def make(self, wanted: str) -> Path:
        """A new folder: of the wanted name, or with a number behind it where that is taken. Raises InputError."""
        name = safe_name(wanted) or "run"
        for number in range(1, 10_000):
            path = self.root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                continue
            except OSError as error:
                raise InputError(f"cannot make a folder in {self.root} ({error.strerror}); check the disk") from None
        raise InputError(f"there are 10,000 folders called {name}; give another name")


def safe_name(text: str) -> str:
    """A plain name of a file or folder out of any text: letters and digits of any script, blanks, and . - _ between
    them; "" where nothing is left."""
    text = unicodedata.normalize("NFC", text).replace("\\", "/").rpartition("/")[2]
    text = re.sub(r"[^\w. -]+", "-", text).strip(" .-_")
    return text[:LONGEST].strip(" .-_")


def below(text: str, roots: list[Path]) -> bool:
    """Whether a path, its links followed, is one of the folders or lies in one of them."""
    try:
        real = Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return False
    return any(real.is_relative_to(root.resolve()) for root in roots)
