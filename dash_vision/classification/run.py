"""One run from beginning to end: choose on val200, retrain on train800val200, test once, write what came out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..bases.backbones import Backbone, describe, weights_digest
from ..core.decompositions import VARIABLE
from ..files.atomic import FolderInUse, FolderLock
from ..files.checkpoint import load_checkpoint, save_checkpoint
from ..files.errors import InputError, Stopped
from ..runs.record import RESULT, VAL_RESULT, BackboneRecord, Launch, VtabRecord, read_record, write_record
from ..runs.runtime import Runtime, device_name
from ..runs.signals import StopRequest
from ..runs.versions import installed_versions
from .cache import cache_root
from .config import Run
from .data import TaskData, load_task
from .job import Plan, VtabJob
from .methods import prepare
from .protocol import EpochScore, ProtocolError, Selection, select
from .trained import KEPT_FOLDER, keep_adapter, save_trained

CHECKPOINT = "checkpoint.safetensors"
PACKAGES = ("dash-vision", "torch", "timm", "peft", "safetensors", "pillow", "numpy")


class Progress:
    """Is told how far a run is, and shows nothing of it; a display shows more."""

    def step(self, job: VtabJob) -> None:
        """A step begins."""

    def epoch(self, job: VtabJob) -> None:
        """An epoch has ended, whose score is the last of the job's curve."""


@dataclass
class Progressed:
    """What a run has settled so far: finished curves and launches, one per candidate, and the selection once it is
    frozen."""

    curves: list[list[EpochScore]] = field(default_factory=list)
    launches: list[Launch | None] = field(default_factory=list)
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
    """The run's base, not loaded. Raises InputError as `describe`."""
    s = run.settings
    return describe(run.model, s.image_size, s.normalization, s.checkpoint, s.random_weights, s.revision, s.global_pool)


def open_data(run: Run) -> TaskData:
    """The run's data at its model's size. Raises InputError before any weight is loaded."""
    return load_task(run.task, run.settings.data_root, backbone_of(run).image_size, cache_folder(run))


def finished(run: Run) -> VtabRecord | None:
    """The record of this very run if it is done, else None; a record that is cut short counts as none.

    Raises InputError when the folder holds another run's.
    """
    if run.settings.overwrite:
        return None
    for name in (VAL_RESULT, RESULT) if run.settings.val_only else (RESULT,):
        try:
            record = read_record(run.folder / name)
        except InputError:
            continue
        if isinstance(record, VtabRecord):
            _check_same(run, record.arguments, run.folder / name)
            if run.settings.checkpoint:  # of weights by name, the name has been compared; they may not be here now
                _check_weights(backbone_of(run), record.backbone.weights, run.folder / name)
            return record
    return None


def execute(
    run: Run, runtime: Runtime, stop: StopRequest | None = None, progress: Progress | None = None
) -> VtabRecord:
    """Do the run, or go on with it from its checkpoint; returns the record that it wrote.

    Raises Stopped after writing a checkpoint when `stop` asks for it; FolderInUse while another process is at this
    run; InputError, RunError with a sentence for the user.
    """
    with _claimed(run.folder, runtime):
        done = finished(run)
        if done is not None:
            return done
        with runtime.tracking(run.name.replace(" ", "-"), run.identity()):
            return _Execution(run, runtime, stop or StopRequest(), progress or Progress()).record()


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
        self.settled, self.job_state = self._resume()

    def record(self) -> VtabRecord:
        """Train, choose and test as far as that is not done, and write the record."""
        if self.settled.selection is None:
            self._choose()
        selection = self.settled.selection
        assert selection is not None
        if self.run.settings.val_only:
            return self._write(VAL_RESULT, self._record(selection, None, None))
        chosen = self.run.with_overrides(self.candidates[selection.candidate])
        # An epoch has more steps here, and could contain a launch that the chosen one came before.
        dash = selection.score.launched
        job = self._train(chosen, "train800val200", None, len(self.candidates), selection.epoch, dash)
        self.settled.seconds["retrain"] = job.training.seconds
        started = time.perf_counter()
        # Every process scores the whole test split: the figure is the first one's.
        accuracy = self.runtime.agreed(self.data.test.score(selection, job.predict))
        self.settled.seconds["test"] = time.perf_counter() - started
        if self._gives:
            save_trained(self.run.folder, job.tuned, self._about(), self.backbone, self.runtime.main)
        return self._write(RESULT, self._record(selection, job, accuracy))

    @property
    def _gives(self) -> bool:
        """Whether this process has a part in writing the model: of a split one every process gives its own."""
        return self.runtime.main or self.runtime.sharded

    def _choose(self) -> None:
        """Train every candidate on train800 and freeze the selection."""
        for index in range(len(self.settled.curves), len(self.candidates)):
            candidate = self.run.with_overrides(self.candidates[index])
            job = self._train(candidate, "train800", "val200", index, candidate.epochs)
            self.settled.curves.append(job.curve)
            self.settled.launches.append(job.launch)
            self.settled.seconds[f"selection {index}"] = job.training.seconds
        self.settled.selection = select(self.run.settings.selection, self.settled.curves)
        self._save(None)

    def _train(self, run: Run, train: str, val: str | None, stage: int, until: int, dash: bool = True) -> VtabJob:
        """One training of the protocol, from where the checkpoint left it. dash: whether its launch may come."""
        images, val_images = self.data.split(train), self.data.split(val) if val else None
        tuned = prepare(run, self.backbone, self.run.task.classes, Plan.of(run, len(images)).steps)
        tuned.may_launch = dash
        phase = "select" if val else "retrain"
        job = VtabJob(run, tuned, self.backbone, images, val_images, self.runtime, stage, phase, self._save)
        job.before_step = self.progress.step
        state, self.job_state = self.job_state, None
        if state is not None:
            try:
                job.load_state_dict(state)
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise self._does_not_fit(error) from None
        # Every task, seed and candidate on this base needs the same decompositions.
        if tuned.adapter is not None and dash:
            tuned.adapter.prepare(directions_folder(run))
        if not job.fit(until, self.stop, lambda job: self._after_epoch(job, until)):
            number = self.runtime.asked_to_stop(self.stop)
            raise Stopped(number, f"{self.run.name}: stopped in epoch {job.epoch + 1}, checkpoint in {self.file}")
        return job

    def _after_epoch(self, job: VtabJob, until: int) -> None:
        """Show the epoch; keep the adapter and a checkpoint where the settings ask for them."""
        self.progress.epoch(job)
        if job.epoch == until:
            return
        s, run = self.run.settings, self.run
        if s.keep_every and job.phase == "retrain" and job.epoch % s.keep_every == 0 and self._gives:
            keep_adapter(run.folder, job.tuned, self._about(), self.backbone, job.step, self.runtime.main)
        if job.epoch % s.checkpoint_every == 0:
            self._save(job)

    # -- on disk

    def _save(self, job: VtabJob | None) -> None:
        settled = self.settled
        state = {
            "arguments": self.run.identity(),
            "weights": weights_digest(self.backbone),
            "curves": [[asdict(score) for score in curve] for curve in settled.curves],
            "launches": [asdict(launch) if launch else None for launch in settled.launches],
            "seconds": settled.seconds,
            "selection": settled.selection.to_dict() if settled.selection else None,
            "job": job.state_dict() if job else None,
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
            _check_weights(self.backbone, state["weights"], self.file)
            curves = [[EpochScore(**score) for score in curve] for curve in state["curves"]]
            if not all(curves):
                raise ValueError("a curve is empty")
            launches = [Launch(**launch) if launch else None for launch in state["launches"]]
            if len(launches) != len(curves):
                raise ValueError("curves and launches are of different candidates")
            frozen = state["selection"]
            selection = None if frozen is None else Selection.from_dict(frozen)
            return Progressed(curves, launches, dict(state["seconds"]), selection), state["job"]
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ProtocolError) as error:
            raise self._does_not_fit(error) from None

    def _does_not_fit(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:300]
        return InputError(f"{self.file} does not fit this run ({reason}); --overwrite starts anew")

    def _write(self, name: str, record: VtabRecord) -> VtabRecord:
        if self.runtime.main:
            write_record(self.run.folder / name, record)
            self.file.unlink(missing_ok=True)
        self.runtime.wait()
        return record

    # -- what is reported

    def _about(self) -> dict[str, Any]:
        """What one has to know to use the trained model."""
        return {
            "task": self.run.task.name,
            "method": self.run.method,
            "seed": self.run.seed,
            "classes": self.data.classes,
            "backbone": self.backbone.to_dict(),
            "weights": weights_digest(self.backbone),
        }

    def _record(self, selection: Selection, job: VtabJob | None, accuracy: float | None) -> VtabRecord:
        """The run's record. job, accuracy: the retraining and its test accuracy; None for a run of val200 alone."""
        task, seconds = self.run.task, self.settled.seconds
        assert selection.score.val_accuracy is not None  # `choose` takes no score without it
        return VtabRecord(
            task=task.name,
            group=task.group,
            synthetic=task.embedded,
            official_split=self.data.official,
            method=self.run.label,
            seed=self.run.seed,
            model=self.run.model,
            backbone=BackboneRecord(self.backbone.name, weights_digest(self.backbone), self.backbone.source),
            normalization={"mean": list(self.backbone.mean), "std": list(self.backbone.std)},
            selected_epoch=selection.epoch,
            selected_settings=self.candidates[selection.candidate],
            val_accuracy=selection.score.val_accuracy,
            test_accuracy=accuracy,
            selection={**selection.to_dict(), "candidates": self.candidates},
            launch=job.launch if job else self.settled.launches[selection.candidate],
            images=self.data.sizes,
            parameters=job.tuned.counts() if job else None,
            data=self.data.source,
            arguments=self.run.identity(),
            processes=self.runtime.world,
            mixed_precision=self.runtime.precision,
            device=device_name(self.runtime.device),
            seconds={**seconds, "total": sum(seconds.values())},
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=installed_versions(PACKAGES),
            retrain_losses=[score.train_loss for score in job.curve] if job else [],
            optimizer_steps=job.step if job else None,
            untrained=job.training.untrained if job else [],
        )


def _check_weights(backbone: Backbone, found: str, where: Path) -> None:
    """Raises InputError when `found` is the digest of other weights."""
    if found != weights_digest(backbone):
        raise InputError(
            f"{where} is of a run on other weights of {backbone.name} than {backbone.checkpoint or 'those of now'}; "
            "give the same --checkpoint, keep both with --tag or another --output_dir, or replace it with --overwrite"
        )


def _check_same(run: Run, found: dict[str, Any], where: Path) -> None:
    """Raises InputError when `found` are the arguments of another run."""
    asked = run.identity()
    by_digest = ("checkpoint",)  # a file of weights may move
    asked, found = ({k: v for k, v in one.items() if k not in by_digest} for one in (asked, found))
    different = [key for key in {**asked, **found} if asked.get(key) != found.get(key)]
    if different:
        shown = ", ".join(f"{key} {found.get(key)!r} there, {asked.get(key)!r} here" for key in different[:3])
        raise InputError(
            f"{where} is of a run with other settings ({shown}); keep both with --tag or another --output_dir, or "
            "replace it with --overwrite"
        )


def _check_steps(run: Run, candidates: list[dict[str, Any]], images: int) -> None:
    """A launch that would never come is an error before the first step, not a LoRA run under another name."""
    if run.dash_k == 0:
        return
    for overrides in candidates:
        candidate = run.with_overrides(overrides)
        steps, prelaunch = Plan.of(candidate, images).steps, candidate.prelaunch_steps
        if prelaunch >= steps:
            raise InputError(
                f"--prelaunch_steps {prelaunch} leaves no step for the dash: {candidate.epochs} epochs of {images} "
                f"images make {steps} steps; lower it, or raise --epochs"
            )
