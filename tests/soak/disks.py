"""Disks that are full or read-only."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.soak.runs import (
    NOBODY,
    UNDISTURBED,
    Tally,
    Trainer,
    fork,
    incomplete,
    log_of,
    sentence,
    tell,
    undisturbed,
    wait,
)


def full(trainer: Trainer, folder: Path, sizes: tuple[int, ...]) -> Tally:
    """Files that may not grow beyond `sizes` bytes (EFBIG, which every write meets as it would meet ENOSPC)."""
    tally = Tally(f"no room for a file, {trainer.name}")
    expected, _ = undisturbed(trainer)
    statuses: list[int | None] = []
    for size in sizes:
        out = folder / str(size) / "out"
        out.parent.mkdir(parents=True)

        def work(out: Path = out, size: int = size) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            return trainer.run(out)

        status = wait(fork(work, log_of(out)))
        statuses.append(status)
        problems = incomplete(out)
        if status != UNDISTURBED:
            problems += [*sentence(log_of(out), 0), *([] if status in (1, 2) else [f"status {status}"])]
        tally.count(problems)
        status = wait(trainer.start(out))
        same = status == UNDISTURBED and trainer.contents(out) == expected
        tally.count([] if same else [f"{size} bytes: the finished run differs (status {status}), see {log_of(out)}"])
    tell(statuses)
    if not any(statuses):
        tally.count(["no limit was small enough to be met"])
    return tally


def full_disk(trainer: Trainer, folder: Path, sizes: tuple[int, ...]) -> Tally:
    """A file system of `sizes` bytes that runs full, then grows. Tried 0 times where mounting is not permitted."""
    tally = Tally(f"full disk, {trainer.name}")
    expected, _ = undisturbed(trainer)
    statuses: list[int | None] = []
    for size in sizes:
        disk = folder / f"disk-{size}"
        with mounted(disk, size) as there:
            if not there:
                return tally
            out, log = disk / "out", folder / f"{size}.txt"
            status = wait(fork(lambda out=out: trainer.run(out), log))
            statuses.append(status)
            problems = incomplete(out)
            if status != UNDISTURBED:
                problems += [*sentence(log, 0), *([] if status in (1, 2) else [f"status {status}"])]
            tally.count(problems)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            status = wait(fork(lambda out=out: trainer.run(out), log))
            same = status == UNDISTURBED and trainer.contents(out) == expected
            tally.count([] if same else [f"{size} bytes: the finished run differs (status {status}), see {log}"])
    tell(statuses)
    if not any(statuses):
        tally.count(["no disk was small enough to be full"])
    return tally


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of `size` bytes at `folder`, or False."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        there = subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        there = False
    try:
        yield there
    finally:
        if there:
            subprocess.run(["umount", str(folder)], check=True)


def read_only(trainer: Trainer, folder: Path) -> Tally:
    """An output folder without the right to write: refused in one sentence, and nothing in it changes."""
    tally = Tally(f"read-only folder, {trainer.name}")
    out = folder / "out"
    out.mkdir(parents=True)
    (out / "kept.txt").write_text("kept")
    log_of(out).touch()
    log_of(out).chmod(0o666)
    out.chmod(0o555)

    def work() -> int:
        if os.getuid() == 0:  # for whom there are no rights to lack
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return trainer.run(out)

    status = wait(fork(work, log_of(out), HOME=str(out)))
    problems = sentence(log_of(out), 0) + ([] if status == 2 else [f"status {status}"])
    if [p.name for p in out.iterdir()] != ["kept.txt"]:
        problems.append("it was written to")
    out.chmod(0o755)
    tally.count(problems)
    return tally
