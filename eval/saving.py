"""Drawn pages on disk, with the story of how they were made inside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from dash_vision.files.atomic import replacing
from dash_vision.files.errors import InputError


def save(page: Image.Image, output: Path, story: dict[str, Any]) -> None:
    """Write the page with its story: in a PNG as the text "dash-vision", in a PDF as its subject."""
    with replacing(output) as temporary:
        if output.suffix.lower() == ".png":
            notes = PngImagePlugin.PngInfo()
            notes.add_itxt("dash-vision", json.dumps(story))
            page.save(temporary, format="PNG", pnginfo=notes)
        else:
            # Pillow stores RGB as lossy JPEG, but RGBA as JPEG 2000, which is exact.
            page.convert("RGBA").save(temporary, format="PDF", resolution=200, subject=json.dumps(story))


def check_picture_name(output: Path, what: str = "picture") -> None:
    """Raises InputError for a file to draw that is not .png or .pdf."""
    if output.suffix.lower() not in (".png", ".pdf"):
        raise InputError(f"the {what}'s name is {output}; it takes a name that ends in .png or .pdf")


def check_output(path: Path, folder: bool = False) -> None:
    """Raises InputError where the file `path` (folder: files in the folder `path`) cannot be written; makes nothing."""
    places = ([path] if folder else []) + list(path.absolute().parents)
    place = next(p for p in places if os.path.lexists(p))
    if not folder and path.is_dir():
        reason = "it is a folder"
    elif not place.is_dir():
        reason = f"{place} is no folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"{place} may not be written to"
    else:
        return
    raise InputError(f"cannot write {path}: {reason}; give another place")
