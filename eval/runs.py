"""What runs left on disk, read with care: a broken one is one sentence, never a traceback."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dash_vision.files.errors import InputError
from dash_vision.miniature import EMBEDDED
from dash_vision.runs.record import METHODS, RECORDS, RUN, DreamBoothRecord, VtabRecord, read_record, record_file

# What pages and figures need among a DreamBooth run's arguments: numbers.
_ARGUMENTS = ("rank", "dash_k", "learning_rate", "resolution", "num_inference_steps", "guidance_scale")


LORA = "pytorch_lora_weights.safetensors"  # as diffusers names it; files.lora, which says so too, needs torch


@dataclass(frozen=True)
class DreamBoothRun:
    """A DreamBooth output folder."""

    folder: Path
    record: DreamBoothRecord

    @property
    def base(self) -> str:
        """The base's hub id or path, or the name of an embedded one."""
        return self.record.base.name

    @property
    def embedded(self) -> bool:
        """Whether the base is a miniature, which this package carries."""
        return self.base in EMBEDDED

    @property
    def base_fingerprint(self) -> str:
        """By which the same base under another name is recognised: of the denoiser."""
        return self.record.base.fingerprints[self.denoiser]

    @property
    def denoiser(self) -> str:
        """The denoiser's name among the adapted networks, of which it is the first."""
        return next(iter(self.record.base.fingerprints))

    @property
    def prompt(self) -> str:
        """The instance prompt."""
        return self.record.instance_prompt

    @property
    def subject(self) -> str:
        """What follows "a photo of" in the instance prompt; the whole prompt when it has another form."""
        return self.record.subject

    @property
    def method(self) -> str:
        """ "LoRA" or "LoRA-Dash"."""
        return METHODS.get(self.record.method, self.record.method)

    @property
    def launch(self) -> int | None:
        """The step after which the dash was launched."""
        return self.record.launch.step if self.record.launch else None

    @property
    def losses(self) -> list[float]:
        """The loss of every optimizer step."""
        return self.record.losses

    @property
    def steps_of_adapter(self) -> int:
        """The training steps of the adapter in the folder, where `checkpoints --apply` may have put an earlier one."""
        applied = self.record.evaluation.applied if self.record.evaluation else None
        return self.record.steps if applied is None else applied

    def argument(self, name: str) -> Any:
        """A setting of the run."""
        return self.record.arguments[name]


@dataclass(frozen=True)
class VtabRun:
    """A run of train_vtab.py: the folder of its result.json, or of a val_result.json where test was left closed."""

    folder: Path
    record: VtabRecord

    @property
    def method(self) -> str:
        """As train_vtab.py calls it, "LoRA" and "LoRA-Dash" spelled out."""
        return METHODS.get(self.record.method, self.record.method)

    @property
    def launch(self) -> int | None:
        """The step after which the dash was launched; where only the curve tells of a launch, the one asked for."""
        if self.record.launch:
            return self.record.launch.step
        asked = {**self.record.arguments, **self.record.selected_settings}
        return int(asked["prelaunch_steps"]) if any(s.get("launched") for s in self._curve) else None

    @property
    def _curve(self) -> list[dict[str, Any]]:
        """The chosen candidate's epochs on train800."""
        selection = self.record.selection
        curve: list[dict[str, Any]] = selection["curves"][selection["candidate"]]
        return curve

    @property
    def undashed(self) -> bool:
        """Whether the model that was kept has no shifts though the dash was launched: its epoch came before that."""
        return self.record.launch is None and any(score["launched"] for score in self._curve)

    @property
    def scores(self) -> list[tuple[int, float, float | None]]:
        """(optimizer step, training loss, accuracy on val200 in percent) at every epoch's end of the chosen candidate's
        training on train800."""
        steps = -(-self.record.images["train800"] // self.record.arguments["batch_size"])
        return [(int(s["epoch"]) * steps, float(s["train_loss"]), s["val_accuracy"]) for s in self._curve]


Run = DreamBoothRun | VtabRun


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every run in folders and, where they are none themselves, below them; and one sentence for each that is broken.

    A broken run costs itself only; one that several paths lead to is there once, under the first.
    """
    runs: list[Run] = []
    problems = []
    seen: set[str] = set()
    for path in distinct((Path(p).expanduser() for p in paths), set()):
        folders = [path]
        if path.is_dir() and not record_file(path):
            folders = sorted({file.parent for name in RECORDS for file in path.rglob(name)})
            if not folders:
                problems.append(
                    f"{path} holds no run.json and no result.json; give the output folders of finished runs"
                )
        for folder in distinct(folders, seen):
            record = record_file(folder)
            try:
                runs.append(read_vtab_run(record) if record and record.name != RUN else read_run(folder))
            except InputError as error:
                problems.append(str(error))
    return runs, problems


def distinct(folders: Iterable[Path], seen: set[str]) -> Iterator[Path]:
    """The folders that are not in `seen` under any path; adds them to it."""
    for folder in folders:
        real = os.path.realpath(folder)
        if real not in seen:
            seen.add(real)
            yield folder


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run, no two alike: its method, of a VTAB run its task and seed as well; and where that
    leaves some alike, for those their folders as in `short_names`."""
    names = [
        f"{run.record.task}, {run.method}, seed {run.record.seed}" if isinstance(run, VtabRun) else run.method
        for run in runs
    ]
    alike: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        alike.setdefault(name, []).append(i)
    for name, places in alike.items():
        if len(places) > 1:
            for i, folder in zip(places, short_names([runs[i].folder for i in places]), strict=True):
                names[i] = f"{name} ({folder})"
    return names


def short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of paths from where they part: "2/lora/seed-0" and "3/dash/seed-1". All that tells two apart is there,
    nothing that all share above it; of a single path its last part."""
    real = [Path(os.path.realpath(path.expanduser())) for path in paths]
    shared = os.path.commonpath([path.parent for path in real])
    return [path.relative_to(shared).as_posix() for path in real]


def read_run(folder: str | Path, torn: bool = False) -> DreamBoothRun:
    """The run in `folder`. torn: its adapter may have been left half replaced. Raises InputError when it is missing,
    unfinished, cut short or of another kind."""
    folder = Path(folder).expanduser()
    path = folder / "run.json"
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the --output_dir of a run of train_dreambooth.py")
    if not path.is_file():
        raise InputError(
            f"{folder} holds no run.json; its run has not finished, or it is no run of train_dreambooth.py"
        )
    record = read_record(path, torn)
    if not isinstance(record, DreamBoothRecord):
        raise InputError(f"{path} is of a run of train_vtab.py; this takes runs of train_dreambooth.py")
    run = DreamBoothRun(folder, record)
    _check_open_parts(path, lambda: all(math.isfinite(run.argument(name)) for name in _ARGUMENTS))
    if not (folder / LORA).is_file():
        raise InputError(f"{folder} has no {LORA}; make the run again")
    return run


def read_vtab_run(path: Path) -> VtabRun:
    """The run whose record `path` is. Raises InputError when it is cut short or of another version."""
    record = read_record(path)
    if not isinstance(record, VtabRecord):
        raise InputError(f"{path} is of a run of train_dreambooth.py; this takes results of train_vtab.py")
    run = VtabRun(path.parent, record)
    _check_open_parts(path, lambda: bool(run.scores) and (run.launch or 0) >= 0 and run.undashed is not None)
    return run


def _check_open_parts(path: Path, whole: Callable[[], bool]) -> None:
    """Raises InputError where what is read here of a record's settings and curves is not there."""
    try:
        if whole():
            return
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError):
        pass
    raise InputError(f"{path} is of another version of dash-vision; make the run again")


def read_json(path: Path) -> Any:
    """What a file of JSON holds. Raises InputError when it is cut short or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); finish the run again") from None
