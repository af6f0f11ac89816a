"""The run that a file or folder inside its output folder belongs to."""

from __future__ import annotations

from pathlib import Path

from ..files.errors import InputError
from ..runs.record import RUN

_ABOVE = 2  # an adapter that --save_lora_every kept lies so far below the run


def run_folder(path: Path) -> Path:
    """The output folder of a DreamBooth run: `path` itself, or one above it. Raises InputError where there is none."""
    found = find_run(path)
    if found is None:
        state = "holds no finished run" if path.exists() else "is not there"
        raise InputError(f"{path} {state} (no {RUN}); give the --output_dir of a run of train_dreambooth.py")
    return found


def find_run(path: Path) -> Path | None:
    """The same; None where there is none."""
    folder = path if path.is_dir() else path.parent
    real = folder.resolve()
    return next((place for place in (folder, *real.parents[:_ABOVE]) if (place / RUN).is_file()), None)
