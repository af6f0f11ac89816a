"""SIGKILL and SIGTERM."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import dash_vision.classification.trained
import dash_vision.diffusion.outputs
import dash_vision.files.container
from dash_vision import Adapter
from tests.soak.runs import (
    STEPS,
    STOPPED,
    UNDISTURBED,
    Tally,
    Trainer,
    fork,
    incomplete,
    log_of,
    steps_kept,
    tell,
    undisturbed,
    wait,
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(tensors: Any, path: Any, *rest: Any) -> None:
    """save_file, killed in the middle of the file."""
    _SAVE_FILE(tensors, path, *rest)
    os.truncate(path, os.path.getsize(path) // 2)
    die()


_SAVE_FILE = dash_vision.files.container.save_file


# Moments at which a run kills itself: (object, attribute, before or after the call).
MOMENTS: dict[str, tuple[Any, str, bool]] = {
    "before a rename": (os, "replace", True),
    "after a rename": (os, "replace", False),
    "before a sync": (os, "fsync", True),
    "at a removal": (Path, "unlink", True),
    "before the launch": (Adapter, "launch", True),
    "after the launch": (Adapter, "launch", False),
    "in the export to diffusers or kohya": (dash_vision.diffusion.outputs, "export_states", True),
    "in the export to PEFT": (dash_vision.classification.trained, "export_states", True),
}
for _place, _name, _ in MOMENTS.values():
    getattr(_place, _name)  # --short comes to few of the moments, and would not see that a name is gone


def arm(moment: str, number: int) -> None:
    """Let this process die at the `number`-th time that it comes to `moment`."""
    left = number

    def now() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    if moment == "in the middle of a checkpoint":
        dash_vision.files.container.save_file = lambda *a: (half_written if now() else _SAVE_FILE)(*a)
        return
    place, name, before = MOMENTS[moment]
    original = getattr(place, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        last = now()
        if last and before:
            die()
        result = original(*args, **kwargs)
        if last:
            die()
        return result

    setattr(place, name, patched)


def killed(trainer: Trainer, folder: Path, draw: random.Random, least: int, deadline: float) -> Tally:
    """SIGKILL at drawn moments, by the clock and at chosen places in the code; resume; repeat, to the end."""
    tally = Tally(f"SIGKILL, {trainer.name}")
    expected, seconds = undisturbed(trainer)
    round_ = 0
    while tally.tried < least or time.monotonic() < deadline:
        round_ += 1
        out = folder / str(round_) / "out"
        for _ in range(draw.randrange(1, 6)):
            before = steps_kept(trainer, out)
            if before[0]:
                break
            status = kill_once(trainer, out, draw, seconds)
            if status == UNDISTURBED:  # it was done before the moment came
                break
            problems = incomplete(out)
            if status != -signal.SIGKILL:
                problems.append(f"status {status}: {log_of(out).read_text()[-300:]}")
            if not problems and steps_kept(trainer, out) < before:
                problems.append(f"an earlier checkpoint was lost: {before}")
            tally.count(problems)
        status = wait(trainer.start(out))
        same = status == UNDISTURBED and trainer.contents(out) == expected
        tally.count([] if same else [f"round {round_}: the finished run differs (status {status}), see {log_of(out)}"])
    return tally


def kill_once(trainer: Trainer, out: Path, draw: random.Random, seconds: float) -> int | None:
    """Start a run, kill it at a drawn moment; its status."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if draw.random() < 0.5:
        pid = trainer.start(out)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        return wait(pid)
    moment = draw.choice([*MOMENTS, "in the middle of a checkpoint"])
    number = draw.randrange(1, 3 if "launch" in moment or "export" in moment else STEPS)

    def work() -> int:
        arm(moment, number)
        return trainer.run(out)

    return wait(fork(work, log_of(out)))


def stopped(trainer: Trainer, folder: Path, draw: random.Random, least: int) -> Tally:
    """SIGTERM at drawn moments, as a cluster sends it; resume; repeat, to the end."""
    tally = Tally(f"SIGTERM, {trainer.name}")
    expected, seconds = undisturbed(trainer)
    statuses: list[int | None] = []
    round_ = 0
    while tally.tried < least:
        round_ += 1
        out = folder / str(round_) / "out"
        out.parent.mkdir(parents=True)
        status: int | None = None
        while status != UNDISTURBED and tally.tried < least:
            pid = trainer.start(out)
            time.sleep(draw.uniform(0, seconds))
            os.kill(pid, signal.SIGTERM)
            status = wait(pid)
            statuses.append(status)
            problems = [] if status in STOPPED else [f"status {status}: {log_of(out).read_text()[-300:]}"]
            tally.count(problems + incomplete(out))
        status = wait(trainer.start(out))
        same = status == UNDISTURBED and trainer.contents(out) == expected
        tally.count([] if same else [f"round {round_}: the finished run differs (status {status}), see {log_of(out)}"])
    tell(statuses)
    return tally
