"""One run from beginning to end: choose on val200, retrain on train800val200, test once, write what came out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..bases.backbones import Backbone, describe
from ..core.decompositions import VARIABLE
from ..files.atomic import FolderInUse, FolderLock, write_json
from ..files.checkpoint import load_checkpoint, save_checkpoint
from ..files.errors import InputError
from ..runs.signals import StopRequest
from ..runs.versions import installed_versions
from .cache import cache_root
from .config import Run
from .data import TaskData, load_task
from .loop import Plan, Trainer
from .methods import prepare
from .protocol import EpochScore, ProtocolError, Selection, select
from .results import RESULT, VAL_RESULT, read_result
from .runtime import Interrupted, Runtime
from .trained import KEPT_FOLDER, keep_adapter, save_trained

CHECKPOINT = "checkpoint.safetensors"
PACKAGES = ("dash-vision", "torch", "timm", "peft", "safetensors", "pillow", "numpy")

Progress = Callable[[str, Trainer], None]


def quiet(phase: str, trainer: Trainer) -> None:
    """Shows nothing."""


@dataclass
class Progressed:
    """What a run has settled so far: finished curves and launches, one per candidate, and the selection once it is
    frozen."""

    curves: list[list[EpochScore]] = field(default_factory=list)
    launches: list[dict[str, Any] | None] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    selection: Selection | None = None


def cache_folder(run: Run) -> Path | None:
    """Where decoded images are kept; None for --cache_dir none."""
    given = run.settings.cache_dir
    return None if given == "none" else cache_root(given)


def directions_folder(run: Run) -> Path | None:
    """Where decompositions of frozen weights are kept: $DASH_VISION_DIRECTIONS, else beside the decoded images."""
    images = cache_folder(run)
    return None if VARIABLE in os.environ or images is None else images / "directions"


def backbone_of(run: Run) -> Backbone:
    s = run.settings
    return describe(run.model, s.image_size, s.normalization, s.checkpoint, s.random_weights, s.revision)


def open_data(run: Run) -> TaskData:
    """The run's data at its model's size. Raises InputError before any weight is loaded."""
    return load_task(run.task, run.settings.data_root, backbone_of(run).image_size, cache_folder(run))


def finished(run: Run) -> dict[str, Any] | None:
    """The result of this very run if it is done, else None. Raises InputError when the folder holds another run's."""
    if run.settings.overwrite:
        return None
    for name in (VAL_RESULT, RESULT) if run.settings.val_only else (RESULT,):
        result = read_result(run.folder / name)
        if result is not None:
            _check_same(run, result["arguments"], run.folder / name)
            return result
    return None


def execute(run: Run, runtime: Runtime, stop: StopRequest | None = None, progress: Progress = quiet) -> dict[str, Any]:
    """Do the run, or go on with it from its checkpoint; returns what result.json holds.

    Raises Interrupted after writing a checkpoint when `stop` asks for it; FolderInUse while another process is at this
    run; InputError, NonFiniteLoss with a sentence for the user.
    """
    with _claimed(run.folder, runtime):
        done = finished(run)
        if done is not None:
            return done
        return _Execution(run, runtime, stop or StopRequest(), progress).result()


@contextmanager
def _claimed(folder: Path, runtime: Runtime) -> Iterator[None]:
    """The folder is this run's, on all of its processes, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = None
    try:
        lock = FolderLock(folder) if runtime.main else None
        taken = False
    except FolderInUse:
        taken = True
    if runtime.any(taken):
        raise FolderInUse(folder)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class _Execution:
    """The steps of `execute`, with what they share."""

    def __init__(self, run: Run, runtime: Runtime, stop: StopRequest, progress: Progress) -> None:
        self.run, self.runtime, self.stop, self.progress = run, runtime, stop, progress
        self.file = run.folder / CHECKPOINT
        self.backbone = backbone_of(run)
        self.data = open_data(run)
        self.candidates = run.candidates()
        _check_steps(run, self.candidates, self.data.sizes["train800"])
        if run.settings.overwrite and runtime.main:
            for name in (RESULT, VAL_RESULT, CHECKPOINT):
                (run.folder / name).unlink(missing_ok=True)
            for file in (run.folder / KEPT_FOLDER).glob("*"):
                file.unlink()
        runtime.wait()
        self.settled, self.trainer_state = self._resume()

    def result(self) -> dict[str, Any]:
        if self.settled.selection is None:
            self._choose()
        selection = self.settled.selection
        assert selection is not None
        if self.run.settings.val_only:
            return self._write(VAL_RESULT, self._report(selection))
        chosen = self.run.with_overrides(self.candidates[selection.candidate])
        # An epoch has more steps here, and could contain a launch that the chosen one came before.
        dash = selection.score.launched
        trainer = self._train(chosen, "train800val200", None, len(self.candidates), selection.epoch, dash)
        started = time.perf_counter()
        # Every process scores the whole test split: the figure is the first one's.
        accuracy = self.runtime.agreed(self.data.test.score(selection, trainer.predict))
        self.settled.seconds["test"] = time.perf_counter() - started
        report = self._report(selection) | self._outcome(trainer, accuracy)
        if self._gives:
            save_trained(self.run.folder, trainer.tuned, self._about(), self.backbone, self.runtime.main)
        return self._write(RESULT, report)

    @property
    def _gives(self) -> bool:
        """Whether this process has a part in writing the model: of a split one every process gives its own."""
        return self.runtime.main or self.runtime.sharded

    def _choose(self) -> None:
        """Train every candidate on train800 and freeze the selection."""
        for index in range(len(self.settled.curves), len(self.candidates)):
            candidate = self.run.with_overrides(self.candidates[index])
            trainer = self._train(candidate, "train800", "val200", index, candidate.epochs)
            self.settled.curves.append(trainer.curve)
            self.settled.launches.append(trainer.launch)
            self.settled.seconds[f"selection {index}"] = trainer.seconds
            self.trainer_state = None
        self.settled.selection = select(self.run.settings.selection, self.settled.curves)
        self._save(None)

    def _train(self, run: Run, train: str, val: str | None, stage: int, until: int, dash: bool = True) -> Trainer:
        """One training of the protocol, from where the checkpoint left it. dash: whether its launch may come."""
        tuned = prepare(run, self.backbone, self.run.task.classes)
        if not dash:
            tuned.schedule = None
        val_split = self.data.split(val) if val else None
        trainer = Trainer(run, tuned, self.backbone, self.data.split(train), val_split, self.runtime, stage)
        state, self.trainer_state = self.trainer_state, None
        if state is not None:
            try:
                trainer.load_state_dict(state)
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise self._does_not_fit(error) from None
        # Every task, seed and candidate on this base needs the same decompositions.
        if tuned.adapter is not None and dash:
            tuned.adapter.prepare(directions_folder(run))
        phase = "select" if val else "retrain"

        every = run.settings.keep_every

        def after_epoch(trainer: Trainer) -> None:
            self.progress(phase, trainer)
            if trainer.epoch == until:
                return
            if every and phase == "retrain" and trainer.epoch % every == 0 and self._gives:
                keep_adapter(self.run.folder, tuned, self._about(), self.backbone, trainer.step, self.runtime.main)
            if trainer.epoch % run.settings.checkpoint_every == 0:
                self._save(trainer)

        if not trainer.fit(until, after_epoch, lambda: self.runtime.any(self.stop.pending())):
            self._save(trainer)
            raise Interrupted(f"{self.run.name}: stopped in epoch {trainer.epoch + 1}, checkpoint in {self.file}")
        return trainer

    # -- on disk

    def _save(self, trainer: Trainer | None) -> None:
        settled = self.settled
        curves = [[vars(score) for score in curve] for curve in settled.curves]
        state = {
            "arguments": self.run.identity(),
            "curves": curves,
            "launches": settled.launches,
            "seconds": settled.seconds,
            "selection": settled.selection.to_dict() if settled.selection else None,
            "trainer": trainer.state_dict() if trainer else None,
        }
        if self.runtime.main:
            save_checkpoint(self.file, state)
        self.runtime.wait()

    def _resume(self) -> tuple[Progressed, dict[str, Any] | None]:
        if not self.file.exists():
            return Progressed(), None
        state = load_checkpoint(self.file)
        try:
            _check_same(self.run, state["arguments"], self.file)
            curves = [[EpochScore(**score) for score in curve] for curve in state["curves"]]
            if not all(curves):
                raise ValueError("a curve is empty")
            launches = list(state.get("launches", [None] * len(curves)))  # the first checkpoints had none
            if len(launches) != len(curves):
                raise ValueError("curves and launches are of different candidates")
            frozen = state["selection"]
            selection = None if frozen is None else Selection.from_dict(frozen)
            return Progressed(curves, launches, dict(state["seconds"]), selection), state["trainer"]
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ProtocolError) as error:
            raise self._does_not_fit(error) from None

    def _does_not_fit(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:300]
        return InputError(f"{self.file} does not fit this run ({reason}); --overwrite starts anew")

    def _write(self, name: str, report: dict[str, Any]) -> dict[str, Any]:
        if self.runtime.main:
            write_json(self.run.folder / name, report)
            self.file.unlink(missing_ok=True)
        self.runtime.wait()
        return report

    # -- what is reported

    def _about(self) -> dict[str, Any]:
        """What one has to know to use the trained model."""
        return {
            "task": self.run.task.name,
            "method": self.run.method,
            "seed": self.run.seed,
            "classes": self.data.classes,
            "backbone": self.backbone.to_dict(),
        }

    def _report(self, selection: Selection) -> dict[str, Any]:
        task, score = self.run.task, selection.score
        return {
            "task": task.name,
            "group": task.group,
            "synthetic": task.embedded,
            "official_split": self.data.official,
            "method": self.run.folder.parent.name,
            "seed": self.run.seed,
            "model": self.run.model,
            "normalization": {"mean": list(self.backbone.mean), "std": list(self.backbone.std)},
            "selected_epoch": selection.epoch,
            "selected_settings": self.candidates[selection.candidate],
            "val_accuracy": score.val_accuracy,
            "test_accuracy": None,
            "selection": {**selection.to_dict(), "candidates": self.candidates},
            "launch": self.settled.launches[selection.candidate],
            "sizes": {"images": self.data.sizes},
            "data": self.data.source,
            "seconds": self.settled.seconds,
            "versions": installed_versions(PACKAGES),
            "device": device_name(self.runtime),
            "bf16": self.runtime.bf16,
            "processes": self.runtime.world,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "arguments": self.run.identity(),
        }

    def _outcome(self, trainer: Trainer, accuracy: float) -> dict[str, Any]:
        plan, tuned = trainer.plan, trainer.tuned
        seconds = {**self.settled.seconds, "retrain": trainer.seconds}
        return {
            "test_accuracy": accuracy,
            "retrain_curve": [{"epoch": s.epoch, "train_loss": s.train_loss} for s in trainer.curve],
            "launch": trainer.launch,
            "sizes": {"images": self.data.sizes, "parameters": tuned.counts()},
            "optimizer_steps": {"retrain": trainer.step, "schedule": plan.steps},
            "seconds": {**seconds, "total": sum(seconds.values())},
            "images_per_second": round(trainer.step * plan.batch_size / max(trainer.seconds, 1e-9), 1),
        }


def _check_same(run: Run, found: dict[str, Any], where: Path) -> None:
    """Raises InputError when `found` are the arguments of another run."""
    asked = run.identity()
    different = [key for key in {**asked, **found} if asked.get(key) != found.get(key)]
    if different:
        shown = ", ".join(f"{key} {found.get(key)!r} there, {asked.get(key)!r} here" for key in different[:3])
        raise InputError(
            f"{where} is of a run with other settings ({shown}); keep both with --tag or another --output_dir, or "
            "replace it with --overwrite"
        )


def _check_steps(run: Run, candidates: list[dict[str, Any]], images: int) -> None:
    """A launch that would never come is an error before the first step, not a LoRA run under another name."""
    if run.method != "dash" or run.settings.dash_k == 0:
        return
    for overrides in candidates:
        candidate = run.with_overrides(overrides)
        steps = Plan.of(candidate, images).steps
        if candidate.settings.prelaunch_steps >= steps:
            raise InputError(
                f"--prelaunch_steps {candidate.settings.prelaunch_steps} leaves no step for the dash: {run.epochs} "
                f"epochs of {images} images make {steps} steps; lower it, or raise --epochs"
            )


def device_name(runtime: Runtime) -> str:
    """What computed the result, for the reader of it."""
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_name(runtime.device)
    return f"{runtime.device.type}, {torch.get_num_threads()} threads"
