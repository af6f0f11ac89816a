"""--apply: an adapter of an earlier step in the place of the last one, which is kept beside the others."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dash_vision.files.atomic import FolderInUse, FolderLock, in_use, new_folder, remove_left, replacing, write_text
from dash_vision.files.container import read_safetensors
from dash_vision.files.errors import InputError
from dash_vision.files.lora import FORMATS
from dash_vision.files.native import NATIVE_NAME, read_native, read_notes
from dash_vision.files.places import from_root
from dash_vision.runs.evaluation import EVALUATION, Evaluation, read_evaluation, write_evaluation
from dash_vision.runs.record import REPLACING, RUN, replacing_adapter, write_record

from ..runs import LORA, DreamBoothRun, read_run
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


def check_free(folder: Path) -> None:
    """Raises InputError where a training writes to the run's folder."""
    if in_use(folder):
        raise InputError(_in_use(folder))


def _in_use(folder: Path) -> str:
    return f"another command is writing to {folder}; give --apply when it has ended"


@contextmanager
def applying(
    run: DreamBoothRun, checkpoints: Sequence[Checkpoint], evaluation: Evaluation, step: int | None
) -> Iterator[str]:
    """Put the adapter of `step` where the run's is, and give a sentence that says so; "" without a step. What tells of
    it is written while inside.

    The adapter that was there stays below the run's adapters/, so that --apply with its step brings it back. A command
    that is stopped in between leaves a folder that is refused until it is run again. Raises InputError where the
    adapter of the step is not whole, and where the run is not any more what was compared.
    """
    chosen = next((one for one in checkpoints if one.step == step), None)
    if chosen is None or chosen.folder == run.folder:
        yield f"step {step} is the adapter in {run.folder} already." if chosen else ""
        return
    last = run.record.steps
    applied = None if step == last else step
    recorded = dataclasses.replace(run.record.evaluation or evaluation, applied=applied)
    with _held(run):
        _check_whole(chosen, run.folder)
        _keep_present(run, checkpoints)
        again = f"run python -m eval checkpoints {shlex.quote(str(run.folder))} --apply {step} again"
        with replacing_adapter(run.folder, again):
            _tell_card(run, f"being replaced by that of step {step}; where this stays, {again}")
            with ExitStack() as stack:  # every copy is whole before the first one takes its place
                for source in _adapter_files(chosen.folder):
                    temporary = stack.enter_context(replacing(_target(run.folder, chosen.folder, source)))
                    shutil.copyfile(source, temporary)
            measured = read_evaluation(run.folder / EVALUATION)  # of a run that is trained further it has more
            if measured is not None:
                write_evaluation(run.folder / EVALUATION, dataclasses.replace(measured, applied=applied))
            _tell_card(run, f"of step {applied} of these; samples.png shows the last one" if applied else None)
            if applied is None:
                yield f"step {step} is the adapter in {run.folder} again, the last of the run."
            else:
                kept = any(one.step == last for one in checkpoints)
                back = f"; --apply {last} brings the last one back" if kept else f"; step {last} is not kept any more"
                yield f"step {step} is the adapter in {run.folder} now{back}."
            write_record(run.folder / RUN, dataclasses.replace(run.record, evaluation=recorded))


@contextmanager
def _held(run: DreamBoothRun) -> Iterator[None]:
    """Nothing else writes to the run's folder while inside. Raises InputError where something does, or did since the
    run was read."""
    try:
        lock = FolderLock(run.folder)
    except FolderInUse:
        raise InputError(_in_use(run.folder)) from None
    try:
        if read_run(run.folder, torn=True).record != run.record:
            raise InputError(f"{run.folder} was changed by another command meanwhile; run this one again")
        for place in (KEPT, *FORMATS):
            remove_left(run.folder / place)
        yield
    finally:
        lock.release()


def _check_whole(chosen: Checkpoint, run: Path) -> None:
    """Raises InputError where a kept adapter lacks a format that the run's folder has, is damaged or of another step:
    the folder would hold adapters of two steps then."""
    there = _adapter_files(chosen.folder)
    formats = {_format(path, chosen.folder) for path in there}
    for path in _adapter_files(run):
        if _format(path, run) not in formats:
            raise InputError(
                f"{chosen.folder} has no {_format(path, run)} any more, and the run's folder would hold adapters of "
                "two steps; apply another step"
            )
    for path in there:
        if path.name != NATIVE_NAME:
            read_safetensors(path)
            continue
        read_native(path)
        step = read_notes(path).get("step", chosen.step)
        if step != chosen.step:
            raise InputError(f"{path} is of step {step}; move it away, or apply another step")


def _keep_present(run: DreamBoothRun, checkpoints: Sequence[Checkpoint]) -> None:
    """The adapter in the run's folder below its adapters/, as far as it is not there yet."""
    if (run.folder / REPLACING).is_file():  # it is of two steps, and the one before was kept
        return
    step = run.steps_of_adapter
    kept = next((one.folder for one in checkpoints if one.step == step and one.folder != run.folder), None)
    if kept is None:
        with new_folder(run.folder / KEPT / f"{from_root(run.folder).name}-{step:06d}") as folder:
            for source in _adapter_files(run.folder):
                target = folder / source.relative_to(run.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        return
    formats = {_format(path, kept) for path in _adapter_files(kept)}
    for source in _adapter_files(run.folder):
        if _format(source, run.folder) not in formats:
            with replacing(kept / source.relative_to(run.folder)) as temporary:
                shutil.copyfile(source, temporary)


def _adapter_files(folder: Path) -> list[Path]:
    """The adapter in every format, in a run's folder or in one of its adapters/."""
    own = [folder / name for name in (LORA, NATIVE_NAME) if (folder / name).is_file()]
    return own + [path for layout in FORMATS for path in sorted((folder / layout).glob("*.safetensors"))]


def _format(path: Path, folder: Path) -> str:
    """What tells an adapter's formats apart: files of other programs have the run's name, in a folder of theirs."""
    return path.name if path.parent == folder else path.parent.name


def _target(run: Path, kept: Path, source: Path) -> Path:
    """Where a file of a kept adapter belongs in the run's folder: files of other programs have the folder's name."""
    place = source.relative_to(kept)
    if len(place.parts) == 1:
        return run / place
    there = sorted((run / place.parent).glob("*.safetensors"))
    return there[0] if len(there) == 1 else run / place.parent / f"{from_root(run).name}.safetensors"


def _tell_card(run: DreamBoothRun, words: str | None) -> None:
    """Say in the model card what adapter is in the folder; None: the run's last one, of which there is nothing to
    say."""
    card = run.folder / "README.md"
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # the user's own, or none
        return
    text = re.sub(rf"^{re.escape(_MARK)}.*\n", "", text, flags=re.MULTILINE)
    if words is not None:
        line = f"{_MARK} {words.replace('|', chr(92) + '|')} |\n"
        text = re.sub(r"^(\| steps \|.*\n)", lambda found: found[1] + line, text, count=1, flags=re.MULTILINE)
    write_text(card, text)
