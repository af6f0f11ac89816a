"""The record of a run: run.json of a DreamBooth run, result.json of a VTAB run. Trainers write it, eval reads it.

A record on disk is the dataclass as JSON. Whatever a file says, reading it gives a complete record or one sentence.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..files.atomic import write_json, write_text
from ..files.errors import InputError
from .evaluation import Evaluation
from .values import typed

RUN, RESULT, VAL_RESULT = "run.json", "result.json", "val_result.json"
RECORDS = (RUN, RESULT, VAL_RESULT)  # of finished runs
REPLACING = "being-replaced.txt"  # in a run's folder, while its adapter is not the one that its record tells of
METHODS = {"lora": "LoRA", "dash": "LoRA-Dash"}  # as pages and figures call them


@dataclass(frozen=True)
class Launch:
    """The dash's launch: after which optimizer step, of how many layers, in how many seconds, and where in their
    spectra the chosen directions lie on average (0 = largest singular value, 1 = smallest). in_full: how many layers
    took a full SVD."""

    step: int
    layers: int
    seconds: float
    mean_relative_index: float
    in_full: int = 0


@dataclass(frozen=True)
class BaseRecord:
    """The base of a DreamBooth run. name: hub id, path, or an embedded one's own. fingerprints: by component, of the
    adapted weights. specification: everything that is needed to load it again, see bases. identity: digests of all that
    it consists of, by name."""

    name: str
    family: str
    fingerprints: dict[str, str]
    specification: dict[str, Any]
    identity: dict[str, str]


@dataclass(frozen=True)
class DreamBoothRecord:
    """A DreamBooth run. subject: "sks cat" of "a photo of sks cat". validation_prompts: of samples.png, column by
    column. instance_digest: of the pictures' pixels. arguments: every setting, after the base's defaults. losses: of
    every optimizer step. timings, seconds: in seconds. untrained: trainable tensors that had no gradient. evaluation:
    what was measured on held-out pictures, where there are some."""

    KIND: ClassVar[str] = "dreambooth"

    method: str
    base: BaseRecord
    instance_prompt: str
    class_prompt: str
    subject: str
    validation_prompts: list[str]
    instance_digest: str
    arguments: dict[str, Any]
    seed: int
    steps: int
    launch: Launch | None
    losses: list[float]
    trainable_parameters: int
    processes: int
    fsdp: bool
    mixed_precision: str
    device: str
    timings: dict[str, float]
    started: str
    seconds: float
    versions: dict[str, str]
    untrained: list[str] = field(default_factory=list)
    evaluation: Evaluation | None = None
    kind: str = KIND


@dataclass(frozen=True)
class BackboneRecord:
    """The base of a VTAB run. name: timm's present one. weights: digest of them, without the head. source: what mean
    and standard deviation of its input were read from."""

    name: str
    weights: str
    source: str


@dataclass(frozen=True)
class VtabRecord:
    """A run of train_vtab.py. method: with its tag. model: as the user called it. accuracies in percent; test_accuracy
    is None where the test images stayed closed. selection: the curves on val200 and what was chosen from them
    (classification.protocol.Selection). launch: of the retraining. images: by split. parameters: numbers in the model,
    trained ones, and trained ones outside the head; None where nothing was retrained. arguments: everything that the
    result depends on. seconds: by part of the run. retrain_losses: mean loss of every epoch of the retraining.
    optimizer_steps: of the retraining. untrained: trainable tensors that had no gradient in it."""

    KIND: ClassVar[str] = "vtab"

    task: str
    group: str
    synthetic: bool
    official_split: bool
    method: str
    seed: int
    model: str
    backbone: BackboneRecord
    normalization: dict[str, list[float]]
    selected_epoch: int
    selected_settings: dict[str, Any]
    val_accuracy: float
    test_accuracy: float | None
    selection: dict[str, Any]
    launch: Launch | None
    images: dict[str, int]
    parameters: dict[str, int] | None
    data: str
    arguments: dict[str, Any]
    processes: int
    mixed_precision: str
    device: str
    seconds: dict[str, float]
    finished: str
    versions: dict[str, str]
    retrain_losses: list[float] = field(default_factory=list)
    optimizer_steps: int | None = None
    untrained: list[str] = field(default_factory=list)
    kind: str = KIND


Record = DreamBoothRecord | VtabRecord


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(record))


def record_file(folder: Path) -> Path | None:
    """The record in a folder, the full result before one of val200 alone; None where there is none."""
    return next((folder / name for name in RECORDS if (folder / name).is_file()), None)


@contextmanager
def replacing_adapter(folder: Path, again: str) -> Iterator[None]:
    """While the adapter of a finished run and its record are replaced: where that does not come to its end, the record
    is not read before it was done again. again: what the user is to do then."""
    marker = folder / REPLACING
    if (folder / RUN).is_file():
        write_text(marker, f"the adapter in this folder was being replaced when the command was stopped; {again}\n")
    yield
    marker.unlink(missing_ok=True)


def read_record(path: Path, torn: bool = False) -> Record:
    """The record in a file. Raises InputError when it is missing, cut short or of another version of dash-vision, and
    where the run's adapter was left half replaced. torn: it may be."""
    if not torn and (path.parent / REPLACING).is_file():
        raise InputError(f"{path.parent} cannot be used: {_told(path.parent / REPLACING)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); finish the run again") from None
    kinds = {cls.KIND: cls for cls in (DreamBoothRecord, VtabRecord)}
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{path} is no record of a run of dash-vision; give the output folder of a run")
    try:
        record: Record = typed(kinds[kind], content)
        _check(record)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path} is of another version of dash-vision ({error}); make the run again") from None
    return record


def _told(marker: Path) -> str:
    try:
        return " ".join(marker.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return "its adapter is being replaced; run the command that does it again"


def _check(record: Record) -> None:
    """Raises ValueError for numbers that no run can have."""
    if isinstance(record, VtabRecord):
        accuracies = [record.val_accuracy, *([] if record.test_accuracy is None else [record.test_accuracy])]
        if not all(0 <= accuracy <= 100 for accuracy in accuracies):
            raise ValueError("accuracies are percentages, 0 to 100")
        curves, candidate = record.selection["curves"], record.selection["candidate"]
        if not curves[candidate]:
            raise ValueError("the curve of the selected candidate is empty")
    if record.launch is not None and record.launch.step < 1:
        raise ValueError(f"the launch was after step {record.launch.step}")
    if not record.method.strip():
        raise ValueError("the method has no name")
