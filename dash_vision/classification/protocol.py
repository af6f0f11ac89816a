"""Who may see which images when: the epoch is chosen on val200, and the test images are opened once, afterwards.

A `SealedTest` gives its images to nobody before a `Selection` exists, scores one model, and is then used up. A
`Selection` is a decision together with the validation curves it follows from, and cannot be made from anything else.
Code that has only these two cannot report the best test epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .cache import Images


class ProtocolError(RuntimeError):
    """An attempt to use test images before the selection is made, or a second time."""


@dataclass(frozen=True)
class EpochScore:
    """One epoch: mean training loss, and accuracy (percent) and mean loss on val200; None where it was not measured."""

    epoch: int
    train_loss: float
    val_accuracy: float | None = None
    val_loss: float | None = None
    launched: bool = False


Curve = Sequence[EpochScore]


def choose(rule: str, curves: Sequence[Curve]) -> tuple[int, int]:
    """(candidate, epoch) by `rule`: the best validation accuracy over all epochs ("best_val") or last epochs ("last").

    Equal accuracies (val200 has steps of 0.5 %) go to the lower validation loss, then to the earlier candidate.
    """

    def merit(entry: tuple[int, EpochScore]) -> tuple[float, float]:
        score = entry[1]
        if score.val_accuracy is None or score.val_loss is None:
            raise ProtocolError(f"epoch {score.epoch} has no validation score to be chosen by")
        return score.val_accuracy, -score.val_loss

    entries = [(i, score) for i, curve in enumerate(curves) for score in (curve if rule == "best_val" else curve[-1:])]
    if not entries or any(not curve for curve in curves):
        raise ProtocolError("there is no finished validation curve to choose from")
    candidate, score = max(entries, key=merit)
    return candidate, score.epoch


@dataclass(frozen=True)
class Selection:
    """What was chosen (epoch counts from 1), by which rule, from which curves. Raises ProtocolError if it does not
    follow from them."""

    rule: str
    candidate: int
    epoch: int
    curves: tuple[tuple[EpochScore, ...], ...]

    def __post_init__(self) -> None:
        if (self.candidate, self.epoch) != choose(self.rule, self.curves):
            raise ProtocolError("a selection has to follow from its validation curves")

    @property
    def score(self) -> EpochScore:
        """The chosen epoch's score."""
        return self.curves[self.candidate][self.epoch - 1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `Selection.from_dict` is its inverse."""
        curves = [[asdict(score) for score in curve] for curve in self.curves]
        return {"rule": self.rule, "candidate": self.candidate, "epoch": self.epoch, "curves": curves}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Selection:
        """From a checkpoint; raises ProtocolError if the decision does not follow from the curves beside it."""
        curves = tuple(tuple(EpochScore(**score) for score in curve) for curve in values["curves"])
        return cls(values["rule"], values["candidate"], values["epoch"], curves)


def select(rule: str, curves: Sequence[Curve]) -> Selection:
    """The selection that follows from the candidates' validation curves."""
    frozen = tuple(tuple(curve) for curve in curves)
    return Selection(rule, *choose(rule, frozen), frozen)


class SealedTest:
    """The test split. `load` decodes nothing until `score` calls it, which it does once."""

    def __init__(self, load: Callable[[], Images], labels: Tensor) -> None:
        self.__load, self.__labels = load, labels
        self.__opened = False

    def __len__(self) -> int:
        return len(self.__labels)

    @property
    def opened(self) -> bool:
        return self.__opened

    def score(self, selection: Selection, predict: Callable[[Tensor], Tensor]) -> float:
        """Accuracy in percent of `predict` ([n, 3, s, s] uint8 -> [n] int64 classes). The one chance there is.

        Raises ProtocolError without a Selection, or when the split was scored before.
        """
        if not isinstance(selection, Selection):
            raise ProtocolError("the test images stay closed until the epoch is selected on val200")
        if self.__opened:
            raise ProtocolError("the test images were used already; a second look would be a choice made on them")
        self.__opened = True
        correct = seen = 0
        for pixels in self.__load().chunks():
            truth = self.__labels[seen : seen + len(pixels)]
            correct += int((predict(pixels).cpu() == truth).sum())
            seen += len(pixels)
        if seen != len(self.__labels):
            raise ProtocolError(f"{seen} test images for {len(self.__labels)} labels")
        return 100 * correct / seen


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of rows of `logits` [n, classes] whose largest entry is at the label [n]."""
    return 100 * int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def mean_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of `logits` [n, classes], in float32."""
    return torch.nn.functional.cross_entropy(logits.float(), labels).item()
