"""Where a file or folder is, by the name that its user knows it by."""

from __future__ import annotations

from pathlib import Path


def from_root(path: str | Path) -> Path:
    """A path from the root that keeps its last part as it was given.

    That part may be a link, and what it points to may have a name that says nothing: the hub's cache links
    model.safetensors to a file that is called after its digest, without a suffix. Raises ValueError and RuntimeError
    as Path.expanduser and Path.resolve.
    """
    place = Path(path).expanduser()
    if place.name in ("", ".."):  # of the present folder and those above it
        return place.resolve()
    return place.parent.resolve() / place.name
