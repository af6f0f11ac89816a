"""How the benchmarks measure: side by side in one run, interleaved in both orders, and compared round by round."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dash_vision.files.atomic import write_json
from dash_vision.files.errors import InputError
from dash_vision.runs.versions import installed_versions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PACKAGES = ("torch", "peft", "diffusers", "timm", "bitsandbytes", "torchao")
TURN = 0.05  # s: what a turn of short calls lasts
MOST = 100  # calls a turn


@dataclass(frozen=True)
class Settings:
    """Where and how often to measure. clock: "wall", or "cpu" for processor time of this process, which other work on
    the machine disturbs less; it says nothing about threads that wait, so use it with one thread. quantize: a word of
    quantization.QUANTIZATIONS, for the frozen linear layers."""

    device: torch.device
    dtype: torch.dtype
    rounds: int
    clock: str = "wall"
    quantize: str = "none"

    def __post_init__(self) -> None:
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError("--device is cuda, and this torch finds no CUDA device; take --device cpu")
        if self.clock == "cpu" and self.device.type == "cuda":
            raise InputError("--clock cpu does not see what a GPU does; leave it out with --device cuda")


@dataclass(frozen=True)
class Table:
    """Rows under a title; the first column says what was measured."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def __str__(self) -> str:
        lines = [self.title, "", f"| {' | '.join(self.columns)} |"]
        lines.append(f"| --- | {' | '.join('---:' for _ in self.columns[1:])} |")
        lines += [f"| {' | '.join(_text(cell) for cell in row)} |" for row in self.rows]
        return "\n".join(lines)


def _text(cell: str | float) -> str:
    return cell if isinstance(cell, str) else f"{cell:.3g}" if cell < 100 else f"{cell:.0f}"


def autocast(settings: Settings) -> AbstractContextManager:
    """bf16 autocast where that is measured, as mixed precision trains: frozen weights in bfloat16, what is trained in
    float32. Every way is measured under it."""
    if settings.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(settings.device.type, settings.dtype)


def interleaved(calls: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, list[float]]:
    """Seconds of every call by name, one number a round: the mean of two turns, one in each order of the calls.

    A turn repeats a call until it has lasted TURN, as a network calls layer after layer of a kind: a short one alone
    would be measured with the caches that the others leave.
    """
    repeats = {name: _repeats(call, settings) for name, call in calls.items()}
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(settings.rounds):
        found = dict.fromkeys(names, 0.0)
        for name in [*names, *reversed(names)]:
            found[name] += seconds(calls[name], settings, repeats[name]) / 2
        for name in names:
            times[name].append(found[name])
    return times


def _repeats(call: Callable[[], object], settings: Settings) -> int:
    """How many calls make a turn, found by calling."""
    took = seconds(call, settings)  # the first call pays for what the others find ready
    if took < 1:  # s; a longer one fills a turn whatever the next one takes
        took = seconds(call, settings)
    return max(1, round(TURN / max(took, TURN / MOST)))


def seconds(call: Callable[[], object], settings: Settings, repeats: int = 1) -> float:
    """How long one call takes, the mean of `repeats`; on CUDA between two events on its stream."""
    if settings.device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / repeats
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter
    begin = clock()
    for _ in range(repeats):
        call()
    return (clock() - begin) / repeats


def ratio(times: Mapping[str, Sequence[float]], name: str, peer: str) -> float:
    """Median over the rounds of `name`'s time over `peer`'s in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))


def milliseconds(times: Sequence[float]) -> float:
    """The median, in ms."""
    return 1000 * statistics.median(times)


def machine(settings: Settings) -> dict[str, str]:
    """What the numbers were measured on and with."""
    device = torch.cuda.get_device_name() if settings.device.type == "cuda" else _processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    place = {"device": device, "threads": f"{torch.get_num_threads()} on {cores} cores", "clock": settings.clock}
    return {**place, "system": f"{platform.system()} {platform.machine()}", **installed_versions(_PACKAGES)}


def _processor() -> str:
    """The processor with the vector instructions that torch uses of it."""
    return f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def publish(name: str, tables: Sequence[Table], settings: Settings, file: Path | None) -> None:
    """Print the tables under the command and the machine; write the same to a JSON file."""
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    about = machine(settings)
    number = str(settings.dtype).removeprefix("torch.")
    print(f"`{command}`\n\n{number}, {settings.rounds} rounds; {', '.join(f'{k} {v}' for k, v in about.items())}")
    for table in tables:
        print(f"\n{table}")
    if file is not None:
        content: dict[str, Any] = {"benchmark": name, "command": command, "dtype": number, "rounds": settings.rounds}
        write_json(file, {**content, "machine": about, "tables": [asdict(table) for table in tables]})
