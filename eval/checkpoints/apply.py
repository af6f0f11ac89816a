"""--apply: an adapter of an earlier step in the place of the last one, which is kept beside the others."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dash_vision.files.atomic import new_folder, replacing, write_text
from dash_vision.files.errors import InputError
from dash_vision.files.places import from_root
from dash_vision.runs.evaluation import EVALUATION, Evaluation, write_evaluation
from dash_vision.runs.record import RUN, write_record

from ..runs import DreamBoothRun
from .found import KEPT, Checkpoint

_MARK = "| adapter |"


def wanted_step(apply: str | None, checkpoints: Sequence[Checkpoint]) -> int | None:
    """The step that --apply names; None where it is to be the recommended one. Raises InputError."""
    if apply is None or not apply.isdecimal():
        if apply not in (None, "recommended"):
            raise InputError(f"--apply is {apply}; it takes a step, or nothing for the recommended one")
        return None
    steps = [one.step for one in checkpoints]
    if int(apply) not in steps:
        raise InputError(f"--apply is {apply}; the run kept the steps {', '.join(map(str, steps))}")
    return int(apply)


def apply(run: DreamBoothRun, checkpoints: Sequence[Checkpoint], evaluation: Evaluation, step: int) -> str:
    """Put the adapter of `step` where the run's last one is; a sentence that says so.

    The last one stays below the run's adapters/, so that --apply with its step brings it back.
    """
    chosen = next(one for one in checkpoints if one.step == step)
    last = run.record.steps
    if chosen.folder == run.folder:
        return f"step {step} is the adapter in {run.folder} already."
    _keep_last(run, checkpoints, last)
    with ExitStack() as stack:  # every copy is whole before the first one takes its place
        for source in sorted(path for path in chosen.folder.rglob("*.safetensors")):
            temporary = stack.enter_context(replacing(_target(run.folder, chosen.folder, source)))
            shutil.copyfile(source, temporary)
    applied = None if step == last else step
    recorded = dataclasses.replace(run.record.evaluation or evaluation, applied=applied)
    write_record(run.folder / RUN, dataclasses.replace(run.record, evaluation=recorded))
    if (run.folder / EVALUATION).is_file():
        write_evaluation(run.folder / EVALUATION, recorded)
    _tell_card(run, applied)
    if applied is None:
        return f"step {step} is the adapter in {run.folder} again, the last of the run."
    return f"step {step} is the adapter in {run.folder} now; --apply {last} brings the last one back."


def _keep_last(run: DreamBoothRun, checkpoints: Sequence[Checkpoint], last: int) -> None:
    """The run's own adapter below its adapters/, where it is not there yet."""
    if not any(one.step == last and one.folder != run.folder for one in checkpoints):
        name = from_root(run.folder).name
        with new_folder(run.folder / KEPT / f"{name}-{last:06d}") as folder:
            for source in _adapter_files(run.folder):
                target = folder / source.relative_to(run.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def _adapter_files(folder: Path) -> list[Path]:
    """The adapter in every format, in a run's folder."""
    own = [path for path in folder.glob("*.safetensors") if not path.name.startswith("checkpoint-")]
    return own + [path for path in folder.glob("*/*.safetensors") if path.parent.name not in (KEPT, "checkpoints")]


def _target(run: Path, kept: Path, source: Path) -> Path:
    """Where a file of a kept adapter belongs in the run's folder: files of other programs have the folder's name."""
    place = source.relative_to(kept)
    if len(place.parts) == 1:
        return run / place
    there = sorted((run / place.parent).glob("*.safetensors"))
    return there[0] if len(there) == 1 else run / place.parent / f"{from_root(run).name}.safetensors"


def _tell_card(run: DreamBoothRun, applied: int | None) -> None:
    """Say in the model card which step's adapter is in the folder."""
    card = run.folder / "README.md"
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # the user's own, or none
        return
    text = re.sub(rf"^{re.escape(_MARK)}.*\n", "", text, flags=re.MULTILINE)
    if applied is not None:
        line = f"{_MARK} of step {applied} of these; samples.png shows the last one |\n"
        text = re.sub(r"^(\| steps \|.*\n)", lambda found: found[1] + line, text, count=1, flags=re.MULTILINE)
    write_text(card, text)
