"""The runs in the folder, told from what they left there: the journal, checkpoints, the record and the log."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ..diffusion.checkpoints import checkpoints
from ..files.atomic import in_use
from ..files.errors import InputError, one_line
from ..runs.journal import JOURNAL, Told, read_journal
from ..runs.record import RUN, DreamBoothRecord, read_record

LOG = "log.txt"
_END = 20_000  # characters of a log that are looked at
PHASES = {
    "": "starting",
    "start": "starting",
    "begin": "starting",
    "load": "loading the base",
    "class pictures": "drawing pictures of the class",
    "encode": "encoding pictures and prompts",
    "train": "training",
    "adapters": "writing the adapter",
    "samples": "drawing the samples",
    "done": "finished",
}


@dataclass(frozen=True)
class FoundRun:
    """A run. state: "running", "finished", "stopped" (the same command resumes it), "failed" (the same with a sentence)
    or "empty". problem: the command's sentence, or why the record cannot be read. saved: steps of its checkpoints."""

    name: str
    folder: Path
    state: str
    told: Told
    record: DreamBoothRecord | None = None
    problem: str = ""
    saved: list[int] = field(default_factory=list)

    @property
    def phase(self) -> str:
        """What it is doing, in words."""
        return PHASES.get(self.told.phase, self.told.phase)

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self.record.steps if self.record and self.state == "finished" else self.told.step

    @property
    def total(self) -> int:
        """Optimizer steps in all; 0 where it has not said so yet."""
        return self.record.steps if self.record and self.state == "finished" else self.told.total

    @property
    def losses(self) -> dict[int, float]:
        """The loss by step."""
        return dict(enumerate(self.record.losses, 1)) if self.record and not self.told.losses else self.told.losses

    @property
    def launch(self) -> int | None:
        """The step before the launch."""
        return self.record.launch.step if self.record and self.record.launch else self.told.launch

    @property
    def words(self) -> list[str]:
        """The words of its command line; none where it did not say them."""
        told = self.told.begin or self.told.start or {}
        words = told.get("words")
        return [str(word) for word in words] if isinstance(words, list) else []

    @property
    def directory(self) -> str:
        """The folder in which its command was given."""
        return str((self.told.begin or self.told.start or {}).get("folder", ""))

    @property
    def sheet(self) -> str | None:
        """The latest sheet that it drew, by its name in the folder."""
        names = [name for name in self.told.pictures if _SHEET.fullmatch(name)]
        names += ["samples.png"] if self.state == "finished" else []
        return next((name for name in reversed(names) if (self.folder / name).is_file()), None)

    def seconds_left(self) -> float | None:
        """Of the training, by its latest steps."""
        each = self.told.seconds_a_step()
        return None if each is None or self.told.phase != "train" else each * max(0, self.total - self.step)


_BAR = re.compile(r"\d+%\|")
_SHEET = re.compile(r"samples\.png|validation/step-\d+\.png")


def find_run(folder: Path) -> FoundRun:
    """What is in a run's folder."""
    told = read_journal(folder)
    saved = [int(path.stem.removeprefix("checkpoint-")) for path in checkpoints(folder)]
    record, problem = None, ""
    if (folder / RUN).is_file():
        try:
            read = read_record(folder / RUN)
            record = read if isinstance(read, DreamBoothRecord) else None
        except InputError as error:
            problem = str(error)
    if at_work(folder, told):
        state = "running"
    elif record is not None:
        state = "finished"
    elif told.begin or told.start or saved or problem:
        problem = problem or last_error(folder)
        state = "failed" if problem else "stopped"
    else:
        state = "empty"
    return FoundRun(folder.name, folder, state, told, record, problem, saved)


def is_run(folder: Path) -> bool:
    """Whether a folder looks like that of a DreamBooth run."""
    return any((folder / name).is_file() for name in (JOURNAL, RUN)) or bool(checkpoints(folder))


def at_work(folder: Path, told: Told) -> bool:
    """Whether a process trains in the folder, or was started to and has not come so far yet."""
    return in_use(folder) or same_process(told.start or {}) is not None


def same_process(start: dict[str, Any]) -> psutil.Process | None:
    """The process that the page has started, if it is at work: its id may be another one's by now."""
    try:
        process = psutil.Process(int(start["pid"]))
        alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - float(start["created"])) < 1
    except (psutil.Error, LookupError, TypeError, ValueError):
        return None
    return process if alive and start.get("host") == platform.node() else None


def last_error(folder: Path) -> str:
    """The command's last sentence, if it was an error."""
    match = re.search(r"(?:^|: )error: (.*)", _last_line(folder))
    return match[1] if match else ""


def _last_line(folder: Path) -> str:
    lines = [line for line in log_of(folder).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def log_of(folder: Path) -> str:
    """The end of what the command printed, progress bars left out."""
    try:
        with open(folder / LOG, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _END))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = (line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))
    return "\n".join(one_line(line).rstrip() for line in lines if line.strip() and not _BAR.search(line))
