"""The whole corpus."""

from __future__ import annotations

from pathlib import Path

from tests.malformed.adapters import adapters
from tests.malformed.cases import Case
from tests.malformed.pictures import captions, images
from tests.malformed.runs import checkpoints, classifiers
from tests.malformed.texts import layouts, results, settings


def corpus(folder: Path) -> list[Case]:
    """Write every file under `folder`; the cases."""
    parts = (images, captions, adapters, checkpoints, settings, results, layouts, classifiers)
    return [case for part in parts for case in part(folder / part.__name__)]
