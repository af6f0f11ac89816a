"""Runs spread over processes, and processes that are lost."""

from __future__ import annotations

import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

import train_dreambooth
from dash_vision.files.native import NATIVE_NAME
from tests.soak.runs import (
    PATIENCE,
    UNDISTURBED,
    Tally,
    Trainer,
    incomplete,
    log_of,
    sentence,
    steps_kept,
    undisturbed,
    wait,
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Way:
    """How many gloo processes make a run, and whether FSDP splits the model over them."""

    world: int
    fsdp: bool = False

    def __str__(self) -> str:
        return f"{self.world} by FSDP" if self.fsdp else str(self.world)

    def start(self, trainer: Trainer, out: Path, *more: str) -> list[int]:
        """The process ids of one run, whose batches are those of the undisturbed one."""
        out.parent.mkdir(parents=True, exist_ok=True)
        if self.world == 1:
            return [trainer.start(out, *more)]
        common = {"WORLD_SIZE": str(self.world), "LOCAL_WORLD_SIZE": str(self.world), "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": str(free_port())} | (FSDP if self.fsdp else {})
        places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self.world)]
        more = (*more, "--train_batch_size", str(trainer.batch // self.world))
        return [trainer.start(out, *more, **common, **place) for place in places]


# What `accelerate launch` tells the processes when its configuration is that of docs/fsdp.yaml.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def different(trainer: Trainer, out: Path) -> list[str]:
    """Where a run's adapter differs from the undisturbed one's: in directions at all, in numbers by more than 1e-5."""
    name = next(name for name in trainer.results if name.endswith(NATIVE_NAME))
    if not (out / name).is_file():
        return [f"there is no {name}"]
    one, two = load_file(trainer.reference / name), load_file(out / name)
    problems = []
    for key, tensor in one.items():
        exact = not tensor.is_floating_point()
        close = torch.equal(tensor, two[key]) if exact else torch.allclose(tensor, two[key], atol=1e-5, rtol=0)
        if not close:
            problems.append(f"{key} differs")
    return problems


def spread(trainer: Trainer, folder: Path, ways: tuple[Way, ...]) -> Tally:
    """Directions and parameters of one process, from several that share its batches."""
    tally = Tally(f"processes {', '.join(map(str, ways))}, {trainer.name}")
    undisturbed(trainer)
    for way in ways:
        out = folder / str(way) / "out"
        # A split model's checkpoint is hundreds of exchanges: not after every step.
        rarely = ("--checkpointing_steps", "6") if way.fsdp and trainer.main is train_dreambooth.main else ()
        statuses = [wait(pid) for pid in way.start(trainer, out, *rarely)]
        problems = [] if not any(statuses) else [f"status {statuses}: {log_of(out).read_text()[-500:]}"]
        tally.count(problems or [f"{way}: {text}" for text in different(trainer, out)])
    return tally


def worker_lost(trainer: Trainer, folder: Path, ways: tuple[Way, ...]) -> Tally:
    """One of several processes is killed: the others end within a minute, and another number of processes goes on; the
    last number goes to the end, with the parameters of the undisturbed run."""
    tally = Tally(f"a worker killed, processes {', then '.join(map(str, ways))}, {trainer.name}")
    undisturbed(trainer)
    out = folder / "out"
    for number, way in enumerate(ways[:-1], 1):
        *others, victim = way.start(trainer, out)
        end = time.monotonic() + PATIENCE
        while steps_kept(trainer, out) < (0, 3 * number) and time.monotonic() < end:
            time.sleep(0.05)
        started, place = time.monotonic(), len(log_of(out).read_text(errors="replace"))
        os.kill(victim, signal.SIGKILL)
        wait(victim)
        statuses = [wait(pid, max(1, started + 60 - time.monotonic())) for pid in others]
        problems = incomplete(out)
        if None in statuses:
            problems.append("the other processes did not end within a minute")
        elif UNDISTURBED in statuses:
            problems.append("it was done before the kill")
        else:
            problems += sentence(log_of(out), max(0, place - 2000))
        print(f"  the others of {way} ended after {time.monotonic() - started:.1f} s, status {statuses}", flush=True)
        tally.count(problems)
    statuses = [wait(pid) for pid in ways[-1].start(trainer, out)]
    problems = [] if not any(statuses) else [f"{ways[-1]} do not go on: {log_of(out).read_text()[-500:]}"]
    tally.count(problems or different(trainer, out))
    return tally
