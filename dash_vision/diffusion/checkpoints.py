"""The checkpoints in a run's folder: checkpoint-STEP.safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..files.errors import InputError
from ..runs.evaluation import EVALUATION, PROGRESS
from ..runs.record import RUN, read_record
from .config import STEADY

KEPT = "adapters"  # of earlier steps, by --save_lora_every and --evaluate_every
_MEASURED = (EVALUATION, PROGRESS, "checkpoints")  # the last one is what `eval checkpoints` writes


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of the checkpoint after `step`."""
    return folder / f"checkpoint-{step}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, the oldest first."""
    files = [p for p in folder.glob("checkpoint-*.safetensors") if p.stem.removeprefix("checkpoint-").isdigit()]
    return sorted(files, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("checkpoint-"))


def latest_checkpoint(folder: Path) -> Path | None:
    """The one with the most steps; None where there is none."""
    files = checkpoints(folder)
    return files[-1] if files else None


def starting_point(folder: Path, wanted: str | None, overwrite: bool) -> Path | None:
    """The checkpoint that a run in `folder` goes on from; None to begin with step 1.

    wanted: --resume_from_checkpoint; without it an interrupted run goes on from its latest checkpoint.

    Raises InputError where the folder holds a finished run that would be lost, and where there is no such checkpoint.
    """
    if wanted is not None:
        checkpoint = _named(folder, wanted)
        if checkpoint is None and (folder / RUN).exists():
            raise InputError(
                f"{folder} holds a finished run and no checkpoint to go on from; give another --output_dir, or "
                "--overwrite instead of --resume_from_checkpoint to replace it"
            )
        return checkpoint
    if overwrite:
        return None
    if (folder / RUN).exists():
        further = ", or --resume_from_checkpoint latest and a larger --max_train_steps to train it further"
        raise InputError(
            f"{folder} holds a finished run; give another --output_dir, or --overwrite to replace it"
            f"{further if _has_steady_rate(folder) else ''}"
        )
    return latest_checkpoint(folder)


def _has_steady_rate(folder: Path) -> bool:
    """Whether a finished run's learning rate did not depend on its number of steps."""
    try:
        return read_record(folder / RUN).arguments.get("lr_scheduler") in STEADY
    except InputError:
        return False


def _named(folder: Path, wanted: str) -> Path | None:
    if wanted == "latest":
        return latest_checkpoint(folder)
    for path in (Path(wanted).expanduser(), folder / wanted, folder / f"{wanted}.safetensors"):
        if path.is_file():
            return path
    present = ", ".join(p.stem for p in checkpoints(folder)) or "none"
    raise InputError(f"there is no checkpoint {wanted}; in {folder} there are: {present}")


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], limit: int | None) -> None:
    """Write the checkpoint after `step`; the oldest ones beyond `limit` go only after it is complete."""
    from ..files.checkpoint import save_checkpoint  # needs torch, which the names of checkpoints do not

    save_checkpoint(checkpoint_path(folder, step), state)
    for old in checkpoints(folder)[:-limit] if limit else []:
        old.unlink(missing_ok=True)


def put_aside(folder: Path, step: int, measured: bool) -> Path | None:
    """Move checkpoints and kept adapters after `step`, which an earlier run left, where nothing takes them for those of
    this run. measured: what was measured of that run too.

    Returns the new folder, if any moved.
    """
    old = [path for path in checkpoints(folder) if _step_of(path) > step]
    old += [path for path in (folder / KEPT).glob("*") if _kept_step(path) > step]
    old += [folder / name for name in _MEASURED if measured and (folder / name).exists()]
    if not old:
        return None
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    target = folder / f"earlier-{number}"
    for path in old:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)
    return target


def _kept_step(path: Path) -> int:
    """The step of a folder with kept adapters, NAME-STEP; 0 for another one."""
    digits = path.name.rsplit("-", 1)[-1]
    return int(digits) if digits.isdecimal() else 0
