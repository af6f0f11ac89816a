"""Run the parts, and count."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.soak.disks import full, full_disk, read_only
from tests.soak.kills import killed, stopped
from tests.soak.memory import memory
from tests.soak.processes import Way, spread, worker_lost
from tests.soak.runs import Tally, trainers


@dataclass(frozen=True)
class Extent:
    """How much of everything."""

    kills: int
    stops: int
    sizes: tuple[int, ...]
    cycles: int
    steps: int
    spread: tuple[Way, ...]
    lost: tuple[Way, ...]
    mount: bool


_TWO, _FOUR, _SPLIT, _SPLIT_FOUR = Way(2), Way(4), Way(2, fsdp=True), Way(4, fsdp=True)
LONG = Extent(
    50,
    12,
    (20_000, 70_000, 120_000, 170_000, 300_000),
    200,
    2000,
    (_TWO, _FOUR, _SPLIT, _SPLIT_FOUR),
    (_TWO, _SPLIT_FOUR, _FOUR, _SPLIT),
    True,
)
SHORT = Extent(2, 1, (50_000,), 20, 20, (_FOUR, _SPLIT), (_TWO, Way(1)), False)


def possible(ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """FSDP needs a gloo that averages, which PyTorch has from 2.8 on."""
    recent = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 8)
    return tuple(way for way in ways if recent or not way.fsdp)


PARTS = ("kill", "stop", "disk", "memory", "processes", "worker")


def soak(folder: Path, parts: list[str], extent: Extent, minutes: float, seed: int) -> Iterator[Tally]:
    """The tally of every part, as it is done."""
    draw = random.Random(seed)
    both = trainers(folder / "base")
    for trainer in both:
        place = folder / trainer.name
        if "kill" in parts:
            share = 60 * minutes / len(both)
            yield killed(trainer, place / "kill", draw, extent.kills, time.monotonic() + share)
        if "stop" in parts:
            yield stopped(trainer, place / "stop", draw, extent.stops)
        if "disk" in parts:
            yield full(trainer, place / "full", extent.sizes)
            if extent.mount:
                yield full_disk(trainer, place / "disk", tuple(2 * size for size in extent.sizes))
            yield read_only(trainer, place / "read-only")
        if "processes" in parts:
            yield spread(trainer, place / "processes", possible(extent.spread))
        if "worker" in parts:
            yield worker_lost(trainer, place / "worker", possible(extent.lost))
    if "memory" in parts:
        (folder / "memory").mkdir()
        yield memory(folder / "memory", extent.cycles, extent.steps)


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Does a run lose anything?")
    parser.add_argument("--minutes", type=float, default=0, help="go on killing for this long (default: 50 kills each)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--short", action="store_true", help="a few of each, as .ci/run does")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = make_parser().parse_args(arguments)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="dash-vision-soak-"))
    folder.chmod(0o755)  # for the child that gives up its rights
    lost, started = 0, time.monotonic()
    for tally in soak(folder, list(args.parts), SHORT if args.short else LONG, args.minutes, args.seed):
        print(f"{tally} ({time.monotonic() - started:.0f} s)", flush=True)
        print("".join(f"  lost: {text}\n" for text in tally.lost), end="", flush=True)
        lost += len(tally.lost)
    print(f"lost in all: {lost}" + (f"; what is left of the runs: {folder}" if lost else ""))
    if not lost:
        shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
