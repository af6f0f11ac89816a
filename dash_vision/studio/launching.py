"""The commands that the page runs, each a process of its own that outlives the page.

A training writes into its folder what it says (log.txt) and what it does (journal.jsonl), and is found again by that.
Everything else, such as drawing one picture, is a helper: it is waited for, and what it leaves are files.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import IO

import psutil

import dash_vision

from ..files.errors import InputError, one_line
from ..runs.faults import HIDDEN
from ..runs.journal import Journal
from .found import LOG, FoundRun, find_run, same_process

PROGRAM = "dash-vision"


def shown_command(program: str, words: Sequence[str]) -> str:
    """A command to copy into a shell."""
    return shlex.join([PROGRAM, program, *words])


def _popen(words: Sequence[str], output: IO[bytes], folder: Path | None = None) -> subprocess.Popen[bytes]:
    """`python -m dash_vision WORDS` in a session of its own, so that no signal to the page reaches it."""
    package = str(Path(dash_vision.__file__).parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dash_vision", *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


class Trainings:
    """Starts, stops and resumes trainings. Two pages that ask for the same at once get one process and one sentence."""

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._lock = Lock()
        self._finishing: set[Path] = set()

    def look(self, folder: Path) -> FoundRun:
        """The run in a folder; one that is being finished is at work, also between its two processes."""
        run = self._look(folder)
        between = folder in self._finishing and run.state in ("stopped", "failed")
        return replace(run, state="running", problem="") if between else run

    def _look(self, folder: Path) -> FoundRun:
        """A child that has ended is let go of first."""
        child = self._children.get(folder)
        if child is not None and child.poll() is not None:
            self._children.pop(folder, None)
        return find_run(folder)

    def start(self, folder: Path, words: Sequence[str], directory: Path | None = None) -> None:
        """`dreambooth WORDS`, which writes into `folder`. Raises InputError where a run is at work there."""
        with self._lock:
            if self._look(folder).state == "running":
                raise InputError(f"a run is at work in {folder.name} already; wait for it, or stop it first")
            place = directory or Path.cwd()
            try:
                with open(folder / LOG, "ab") as log:
                    child = _popen(["dreambooth", *words], log, place)
            except OSError as error:
                raise InputError(f"cannot start the training ({error.strerror}); check {folder}") from None
            self._children[folder] = child
            try:
                created = psutil.Process(child.pid).create_time()
            except psutil.Error:
                created = time.time()
            here = {"pid": child.pid, "created": created, "host": platform.node(), "folder": str(place)}
            Journal(folder).write(start={**here, "words": list(words)})

    def stop(self, folder: Path) -> None:
        """Ask the run to write a checkpoint and end. Raises InputError where there is none, or none of this machine."""
        run = self._look(folder)
        if run.state != "running":
            raise InputError(f"no run is at work in {run.name}")
        process = same_process(run.told.start or {}) or _holder(run)
        if process is None:
            raise InputError(f"the run in {run.name} was started on another machine; stop it there")
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.Error:
            raise InputError(f"the run in {run.name} belongs to another user, or has ended; look again") from None

    def resume(self, folder: Path, more: Sequence[str] = ()) -> None:
        """The same command again, with `more` in the place of what it said of the same flags. Raises InputError."""
        run = self._look(folder)
        words = without_flags(run.words, more)
        if not run.words:
            raise InputError(f"{run.name} does not say by which command it was started; resume it by that command")
        if any(HIDDEN in word for word in words):
            raise InputError(f"{run.name} was started with a token, which is kept nowhere; resume it by its command")
        directory = Path(run.directory) if Path(run.directory).is_dir() else Path.cwd()
        if not _writes_to(words, directory, folder):
            raise InputError(f"the command of {run.name} writes to another folder; resume it by that command")
        self.start(folder, [*words, *more], directory)

    def finish_now(self, folder: Path) -> None:
        """End the training at the step that it has reached, with everything that a run leaves: stop it, and give the
        same command as many steps as are done. Raises InputError."""
        with self._lock:
            if folder in self._finishing:
                raise InputError(f"{folder.name} is being finished already")
            self._finishing.add(folder)
        try:
            if self._look(folder).state == "running":
                self.stop(folder)
                self._wait(folder)
            run = self._look(folder)
            if run.state == "finished":
                return
            if not run.saved:
                raise InputError(f"{run.name} has no checkpoint yet; resume it, and finish it later")
            self.resume(folder, ["--max_train_steps", str(run.saved[-1])])
        finally:
            self._finishing.discard(folder)

    def _wait(self, folder: Path, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while self._look(folder).state == "running":
            if time.monotonic() > end:
                raise InputError(f"{folder.name} was asked to stop and is at work still; try again later")
            time.sleep(0.2)


def _holder(run: FoundRun) -> psutil.Process | None:
    """The process that began last, which holds the folder: it began after it had locked it."""
    begin = run.told.begin or {}
    try:
        return psutil.Process(int(begin["pid"])) if begin.get("host") == platform.node() else None
    except (psutil.Error, LookupError, TypeError, ValueError):
        return None


def without_flags(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """The words of a command line without the flags, and their values, that are among `others`."""
    gone = {_flag(word) for word in others if word.startswith("--")} | {"overwrite"}
    kept, leave_out = [], False
    for word in words:
        if re.match(r"--?[^\W\d]", word):
            leave_out = _flag(word) in gone
        if not leave_out:
            kept.append(word)
    return kept


def _flag(word: str) -> str:
    return word.partition("=")[0].lstrip("-").replace("-", "_")


def _writes_to(words: Sequence[str], directory: Path, folder: Path) -> bool:
    """Whether a command given in `directory` has `folder` as its --output_dir."""
    output = value_of(words, "output_dir")
    return output is not None and (directory / Path(output).expanduser()).resolve() == folder.resolve()


def value_of(words: Sequence[str], flag: str) -> str | None:
    """What a command line says of a flag, the last time; None where it does not name it."""
    value = None
    for place, word in enumerate(words):
        if word.startswith("--") and _flag(word) == flag:
            value = word.partition("=")[2] if "=" in word else next(iter(words[place + 1 :]), None)
    return value


@dataclass
class Helper:
    """A command that is waited for. title: what it does. started: by the clock of time.time."""

    title: str
    process: subprocess.Popen[bytes]
    output: Path
    started: float
    text: str = ""

    def poll(self) -> int | None:
        """Its exit status; None while it is at work. What it has printed is then in `text`."""
        status = self.process.poll()
        if self.output.exists():
            self.text = self.output.read_text(encoding="utf-8", errors="replace")
        if status is not None:
            self.output.unlink(missing_ok=True)
        return status

    @property
    def share(self) -> float | None:
        """How far its latest progress bar is, 0 to 1; None where it shows none."""
        found = re.findall(r"(\d+)%\|", self.text)
        return int(found[-1]) / 100 if found else None

    @property
    def sentence(self) -> str:
        """What went wrong, as the command says it."""
        errors = re.findall(r"(?:^|: )error: (.*)", self.text, re.MULTILINE)
        lines = [line for line in self.text.splitlines() if line.strip()]
        return one_line(errors[-1] if errors else lines[-1] if lines else "the command ended without a word")


class Helpers:
    """One helper at a time under each key; a key is looked at again after the page was loaded anew."""

    def __init__(self) -> None:
        self._helpers: dict[str, Helper] = {}

    def start(self, key: str, title: str, words: Sequence[str]) -> Helper:
        """Raises InputError where the last one of that key is at work."""
        last = self._helpers.get(key)
        if last is not None and last.poll() is None:
            raise InputError(f"{last.title} is at work already; wait for it")
        handle, name = tempfile.mkstemp(prefix="dash-vision-studio-")
        try:
            with os.fdopen(handle, "wb") as output:
                helper = Helper(title, _popen(words, output), Path(name), time.time())
        except OSError:
            Path(name).unlink()
            raise
        self._helpers[key] = helper
        return helper

    def look(self, key: str) -> Helper | None:
        """The latest of that key."""
        helper = self._helpers.get(key)
        if helper is not None:
            helper.poll()
        return helper
