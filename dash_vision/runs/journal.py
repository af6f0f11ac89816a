"""journal.jsonl: what a run says of itself while it is at work, a line of JSON for each event. The local page reads it.

The lines of a run that was resumed follow those that it had written before. Needs no torch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JOURNAL = "journal.jsonl"
_PAUSE = 1.0  # seconds between lines that say no more than the step


class Journal:
    """Appends to the journal of a run's folder; of None, and of a folder that cannot be written to, nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / JOURNAL
        self._written = 0.0

    def begin(self, words: Sequence[str]) -> None:
        """This process works on the run from here on. words: of its command line, without secrets."""
        here = {"pid": os.getpid(), "host": platform.node(), "folder": os.getcwd()}
        self.write(begin={**here, "program": Path(sys.argv[0]).name, "words": list(words)})

    def write(self, **event: Any) -> None:
        """One line. Trouble with it stops no run."""
        if self._path is None:
            return
        self._written = time.time()
        line = json.dumps({"time": round(self._written, 2), **event}, ensure_ascii=False)
        with suppress(OSError), open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")

    def step(self, step: int, total: int) -> None:
        """The step that has been made, where nothing was written for a while."""
        if self._path is not None and time.time() - self._written > _PAUSE:
            self.write(step=step, total=total)


@dataclass
class Told:
    """What a journal tells. start: of the latest process that the page started; begin: of the latest that began. phase:
    the latest; since, latest: times of the first line of that phase and of the last line. steps: (time, step) of this
    phase. losses: by step. launch: the step before it. pictures: names of sheets in the run's folder, as drawn.
    prompts: of the sheets' columns."""

    start: dict[str, Any] | None = None
    begin: dict[str, Any] | None = None
    phase: str = ""
    since: float = 0.0
    latest: float = 0.0
    step: int = 0
    total: int = 0
    steps: list[tuple[float, int]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    launch: int | None = None
    pictures: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def seconds_a_step(self) -> float | None:
        """By the latest steps of this process; None before there are two times to compare."""
        recent = self.steps[-12:]
        made = recent[-1][1] - recent[0][1] if recent else 0
        return (recent[-1][0] - recent[0][0]) / made if made > 0 else None


def read_journal(folder: Path) -> Told:
    """What the journal in a folder tells; nothing where there is none, and lines that are none are passed over."""
    told = Told()
    try:
        text = (folder / JOURNAL).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return told
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            _take(told, json.loads(line))
    return told


def _take(told: Told, line: dict[str, Any]) -> None:
    told.latest = _number(line["time"])
    for name in ("start", "begin"):
        if isinstance(line.get(name), dict):
            setattr(told, name, line[name])
            told.phase, told.since, told.steps = name, told.latest, []
    if "phase" in line:
        told.phase, told.since, told.steps = str(line["phase"]), told.latest, []
    if "step" in line:
        step, told.total = int(line["step"]), int(line["total"])
        if told.phase == "train" and not told.steps:  # what came after the checkpoint that it went on from is made anew
            told.losses = {s: loss for s, loss in told.losses.items() if s <= step}
            told.launch = None if told.launch is not None and told.launch > step else told.launch
            told.pictures = told.pictures if step else []
        told.step = step
        told.steps.append((told.latest, step))
        losses = [_number(loss) for loss in line.get("losses", ())]
        told.losses.update(enumerate(losses, step - len(losses) + 1))
    if "prompts" in line:
        told.prompts = [str(prompt) for prompt in line["prompts"]]
    if "launch" in line:
        told.launch = int(line["launch"])
    if "picture" in line:
        told.pictures.append(str(line["picture"]))


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number
