"""What a run measured of itself on pictures that it does not learn from: evaluation.json while it goes on, and a part
of run.json when it is done."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.atomic import write_json
from .values import typed

EVALUATION, PROGRESS = "evaluation.json", "progress.png"
PREFERENCES = ("likeness", "balanced", "faithful")

COMPARED = "checkpoints/checkpoints.json"  # what `eval checkpoints` leaves in a run's folder
# Measure -> what it says, in the order of tables and charts.
MEASURES = {
    "likeness": "likeness to the held-out pictures",
    "adherence": "agreement with the prompt",
    "drift": "change of unrelated prompts",
    "leak": "likeness of the class to the subject, above the base's own",
    "loss": "denoising loss of the held-out pictures",
}


@dataclass(frozen=True)
class Evaluated:
    """What was measured after `step` optimizer steps; step 0 is the base without an adapter.

    adapter: the folder in the run's that keeps the adapter of this step; None for step 0. values: for each of MEASURES
    that could be measured one value a picture or prompt, in the same order at every step. seconds: that it took.
    digest: of what was measured, where the run itself did not measure it.
    """

    step: int
    adapter: str | None
    values: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    digest: str = ""

    def mean(self, measure: str) -> float | None:
        """The mean of a measure's values; None where it was not measured."""
        values = self.values.get(measure)
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Recommendation:
    """The checkpoint that a rule recommends. alike: steps of others that the measured pictures cannot tell from it.
    rule, sentence: in words, for the reader."""

    step: int
    prefer: str
    alike: list[int]
    rule: str
    sentence: str


@dataclass(frozen=True)
class Evaluation:
    """All evaluations of a run.

    heldout: names of the pictures that were kept out. captions: their prompts. folder: that they are in. every: steps
    between evaluations. encoders: measure -> what measured it. prompts: of the subject, of the class, and unrelated
    ones, by these names. sampler: steps, guidance, seed and side of the pictures. checkpoints: by step, the base first.
    stopped: the step after which --early_stop ended the training. applied: the step whose adapter was put in the place
    of the last one. notes: what could not be measured, and why. digest: of the held-out pictures' files. learned: the
    run learned from these pictures, since it held none out.
    """

    heldout: list[str]
    captions: list[str]
    folder: str
    every: int
    encoders: dict[str, str]
    prompts: dict[str, list[str]]
    sampler: dict[str, float]
    checkpoints: list[Evaluated] = field(default_factory=list)
    recommended: Recommendation | None = None
    stopped: int | None = None
    applied: int | None = None
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    learned: bool = False

    @property
    def which(self) -> str:
        """What charts and tables call the pictures that it was measured on."""
        return "training" if self.learned else "held-out"

    def meaning(self, measure: str) -> str:
        """What a measure says."""
        return MEASURES[measure].replace("held-out", self.which)

    @property
    def base(self) -> Evaluated | None:
        """The base without an adapter."""
        return next((one for one in self.checkpoints if one.step == 0), None)

    @property
    def trained(self) -> list[Evaluated]:
        """Every checkpoint but the base, by step."""
        return sorted((one for one in self.checkpoints if one.step > 0), key=lambda one: one.step)

    def measured_as(self, other: Evaluation) -> bool:
        """Whether the values of both may stand side by side."""
        names = ("heldout", "digest", "captions", "encoders", "prompts", "sampler")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def with_checkpoint(self, new: Evaluated) -> Evaluation:
        """The same with one more checkpoint, which replaces one of its step."""
        kept = [one for one in self.checkpoints if one.step != new.step]
        return dataclasses.replace(self, checkpoints=sorted([*kept, new], key=lambda one: one.step))


def measures_of(checkpoints: Sequence[Evaluated]) -> list[str]:
    """Those of MEASURES that any of the checkpoints has."""
    return [name for name in MEASURES if any(one.values.get(name) for one in checkpoints)]


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write it as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(evaluation))


def compared(folder: Path, recorded: Evaluation | None, steps: int) -> Evaluation | None:
    """What `eval checkpoints` measured of a run of so many steps, whose record has `recorded`; None where nothing is
    there, or the run was trained further since."""
    found = read_evaluation(folder / COMPARED)
    if found is None or all(one.step != steps for one in found.checkpoints):
        return None
    return found if recorded is None else dataclasses.replace(found, applied=recorded.applied)


def read_evaluation(path: Path) -> Evaluation | None:
    """The evaluation in a file; None where there is none, or one that is cut short or of another version."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        found: Evaluation = typed(Evaluation, content)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, ArithmeticError):
        return None
    return found
