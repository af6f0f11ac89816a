"""Memory that grows."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from dash_vision import DashConfig, inject, load_adapter
from tests.soak.runs import PATIENCE, UNDISTURBED, Tally, fork, wait
from tests.support.bases import save_base
from tests.support.models import sd_unet, trained
from tests.support.pictures import save_pictures


def memory(folder: Path, cycles: int, steps: int) -> Tally:
    """Tensors alive and memory held after many load/unload cycles, as many launches, and many steps."""
    tally = Tally(f"memory, {cycles} load/unload cycles, {cycles} launches and {steps} steps")
    jobs = {
        "cycles": lambda: load_and_unload(folder, cycles),
        "launches": lambda: launch_and_remove(cycles),
        "steps": lambda: many_steps(folder, steps),
    }
    for name, work in jobs.items():
        report = folder / f"{name}.json"
        log = folder / f"{name}.txt"
        status = wait(
            fork(lambda work=work, report=report: report.write_text(json.dumps(work())) and 0, log), PATIENCE + steps
        )
        if status != UNDISTURBED:
            tally.count([f"{name}: {log.read_text()[-500:]}"])
            continue
        more_tensors, more_bytes = json.loads(report.read_text())
        print(f"  {name}: {more_tensors:+d} tensors, {more_bytes / 1e6:+.1f} MB", flush=True)
        problems = [f"{more_tensors} more tensors"] if more_tensors > 0 else []
        tally.count(problems + ([f"{more_bytes / 1e6:.1f} MB more"] if more_bytes > 16e6 else []))
    return tally


def held() -> tuple[int, int]:
    """(tensors alive, bytes of memory) of this process."""
    gc.collect()
    tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return tensors, pages * os.sysconf("SC_PAGE_SIZE")


def growth(work: Callable[[int], None], count: int) -> list[int]:
    """[more tensors, more bytes] between the first tenth and the end of `count` calls."""
    for number in range(max(3, count // 10)):
        work(number)
    before = held()
    for number in range(max(3, count // 10), count):
        work(number)
    after = held()
    return [after[0] - before[0], after[1] - before[1]]


def load_and_unload(folder: Path, cycles: int) -> list[int]:
    """Load two adapters, switch, merge, unmerge, remove both."""
    files = []
    for number in range(2):
        files.append(folder / f"adapter-{number}.safetensors")
        trained(sd_unet(), DashConfig(rank=2, dash_k=3), scale=0.1 + number).save(files[-1])
    unet = sd_unet()
    weight = {name: p.detach().clone() for name, p in unet.named_parameters()}

    def cycle(number: int) -> None:
        first, second = (load_adapter(unet, file, name) for file, name in zip(files, "ab", strict=True))
        first.disable()
        second.merge()
        second.unmerge()
        second.remove()
        first.enable()
        first.remove()

    found = growth(cycle, cycles)
    for name, parameter in unet.named_parameters():
        if not torch.equal(parameter, weight[name]):
            raise RuntimeError(f"the base is not what it was: {name}")
    return found


def launch_and_remove(cycles: int) -> list[int]:
    """A launch frees all that it used but what it chose: U, V and the indices, which were there before as zeros."""
    unet = sd_unet()

    def cycle(number: int) -> None:
        adapter = inject(unet, DashConfig(rank=2, dash_k=3))
        looked = number % 20 == 2  # which takes longer than the launch
        before = held()[0] if looked else 0
        adapter.launch()
        if looked and held()[0] > before:
            raise RuntimeError(f"launch {number} left {held()[0] - before} tensors")
        adapter.remove()

    return growth(cycle, cycles)


def many_steps(folder: Path, steps: int) -> list[int]:
    """DreamBooth steps through the launch and beyond."""
    from dash_vision.diffusion.config import DreamBoothConfig
    from dash_vision.diffusion.setup import prepare
    from dash_vision.runs.loop import train
    from dash_vision.runs.runtime import make_runtime
    from dash_vision.runs.settings import parse
    from dash_vision.runs.signals import StopRequest

    save_base(folder / "sd")
    save_pictures(folder / "cat", count=3)
    words = ["--instance_data", folder / "cat", "--pretrained_model_name_or_path", folder / "sd"]
    words += ["--output_dir", folder / "out", "--max_train_steps", 10 * steps, "--prelaunch_steps", 2]
    config = parse(DreamBoothConfig, "", "", [str(word) for word in words])
    job = prepare(config, make_runtime("no", "cpu"), lambda line: None)

    def step(number: int) -> None:
        train(job, job.training, job.runtime, job.training.step + 1, StopRequest())

    return growth(step, steps)
