"""Everything that is worth knowing of one GPU, in a few minutes: the single benchmarks at sizes that fit together, and
what --offload group takes of time and memory. Random weights, bfloat16 with what is trained in float32."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dash_vision import DashConfig, inject
from dash_vision.bases.offloading import Offload, keeping_little
from dash_vision.bases.stable_diffusion import StableDiffusion
from dash_vision.files.atomic import write_json

from . import flows, trainers
from .measure import Settings, Table, machine, seconds
from .models import TARGETS, TITLES, Size, network, set_launched, training_step

MODELS = ["sd15", "sdxl", "flux2"]
RANK, DASH_K = 8, 8
# The whole depth of FLUX.2 klein 4B, for what is too large to be measured in two blocks.
_WHOLE = {"num_layers": 5, "num_single_layers": 20}
_TINY = {"num_attention_heads": 1, "joint_attention_dim": 64}
_LAYERS = ("ViT-B/16 qkv", "SD 1.5 to_q, 320", "SD 1.5 to_q, 1280", "SDXL to_q, 640", "SDXL to_q, 1280")


def measure(device: str, minutes: float, folder: Path) -> bool:
    """Write what was measured to gpu.json and gpu.md in `folder`, after every part; whether every part gave its tables.

    device: on a CPU networks have next to no size, which tries whether everything runs. Parts that have not begun after
    `minutes` are left out. Raises InputError where there is no such device.
    """
    tiny = device == "cpu"
    settings = Settings(torch.device(device), torch.float32 if tiny else torch.bfloat16, 1)
    folder.mkdir(parents=True, exist_ok=True)
    start, parts = time.perf_counter(), list[dict[str, Any]]()
    about = {"machine": machine(settings), "dtype": str(settings.dtype).removeprefix("torch."), "tiny": tiny}
    with _small() if tiny else nullcontext():
        for name, work in _parts(settings, tiny).items():
            begin = time.perf_counter()
            part: dict[str, Any] = {"part": name, "tables": []}
            if begin - start > 60 * minutes:
                part["left_out"] = f"not begun within {minutes:g} minutes"
            else:
                try:
                    part["tables"] = [asdict(table) for table in work()]
                except Exception as error:  # the other parts are worth having all the same
                    part["failed"] = f"{type(error).__name__}: {error}"
                    traceback.print_exc()
            part["seconds"] = round(time.perf_counter() - begin, 1)
            parts.append(part)
            _release()
            write_json(folder / "gpu.json", {"benchmark": "gpu", **about, "parts": parts})
            (folder / "gpu.md").write_text(_text(about, parts))
            print(f"{name}: {part['seconds']} s{', ' + part['failed'] if 'failed' in part else ''}", flush=True)
    return all(part["tables"] for part in parts)


def _parts(settings: Settings, tiny: bool) -> dict[str, Callable[[], list[Table]]]:
    """What is measured, the most wanted first."""
    from . import launch, layer, step

    few = replace(settings, rounds=1 if tiny else 7)
    once = replace(settings, rounds=1)
    size = Size(width=0.1, side=8) if tiny else Size(side=64)
    large = Size(width=0.1, side=8) if tiny else Size(side=128)  # 1024 pixels
    share = 0.02 if tiny else 1.0
    shape = (0.1, 16) if tiny else (1.0, 64)
    return {
        "step, 512 pixels": lambda: step.measure_time(few, MODELS[:1], size, RANK, DASH_K),
        "step, 1024 pixels": lambda: step.measure_time(few, MODELS[1:], large, RANK, DASH_K),
        "offload": lambda: [offloading(few, large, RANK, DASH_K)],
        "memory, 512 pixels": lambda: step.measure_memory(few, MODELS[:1], size, RANK, DASH_K),
        "dreambooth": lambda: trainers.dreambooth(few, None, None, 1.0, 64, RANK, DASH_K, 1 if tiny else 20, False),
        "dreambooth, SD 1.5": lambda: trainers.dreambooth(
            once, None, "sd15", *shape, RANK, DASH_K, 1 if tiny else 20, False
        ),
        "layer": lambda: layer.measure(few, RANK, DASH_K, share, list(_LAYERS)),
        "memory, 1024 pixels": lambda: step.measure_memory(few, MODELS[1:], large, RANK, DASH_K),
        "launch": lambda: launch.measure(once, MODELS[:1], size, RANK, DASH_K),
    }


def offloading(settings: Settings, size: Size, rank: int, k: int) -> Table:
    """Steps with gradient checkpointing, with the whole network on the device and with its blocks waiting."""
    rows: list[list[str | float]] = []
    for name in ("sdxl", "flux2"):
        found: dict[str, tuple[float, int]] = {}
        whole = replace(flows.FLOWS["flux2"], config=flows.FLOWS["flux2"].config | _WHOLE)
        with mock.patch.dict(flows.FLOWS, {"flux2": whole}):
            for way in ("none", "group"):
                found[way] = _offloaded(name, way, size, settings, rank, k)
        title = TITLES[name] if name == "sdxl" else f"{TITLES[name]}, all {sum(_WHOLE.values())} blocks"
        for way, (took, peak) in found.items():
            rows.append([f"{title}, --offload {way}", 1000 * took, took / found["none"][0], peak / 2**20])
    columns = ("network", "step, ms", "times the step with none", "peak memory, MiB")
    return Table(f"Steps with gradient checkpointing, all block linears, rank {rank}, k = {k}", columns, rows)


def _offloaded(name: str, way: str, size: Size, settings: Settings, rank: int, k: int) -> tuple[float, int]:
    """(seconds a step, bytes of the device at the peak; 0 on a CPU)."""
    _release()
    cuda = settings.device.type == "cuda"
    model: Any = network(name, size, settings)
    model.enable_gradient_checkpointing()
    units = flows.FLOWS[name].family.units if name in flows.FLOWS else StableDiffusion().units
    offload = Offload(model, settings.device, units) if way == "group" else None
    set_launched(inject(model, DashConfig(rank=rank, dash_k=k, target=TARGETS[name]["all block linears"])))
    if offload is not None:
        offload.place(model)
    step, _ = training_step(name, model, size, settings, partial(keeping_little, model))
    step()  # makes the optimizer's state
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = [seconds(step, settings) for _ in range(settings.rounds)]
    return statistics.median(times), torch.cuda.max_memory_allocated() if cuda else 0


def _release() -> None:
    """Let go of what the part before has made."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _small() -> ExitStack:
    """Transformers and a Stable Diffusion of next to no size while inside."""
    stack = ExitStack()
    small = replace(flows.FLOWS["flux2"], config=flows.FLOWS["flux2"].config | _TINY, text=64)
    stack.enter_context(mock.patch.dict(flows.FLOWS, {"flux2": small}))
    stack.enter_context(mock.patch.dict(_WHOLE, {"num_layers": 1, "num_single_layers": 2}))
    stack.enter_context(mock.patch.dict(trainers.VAE, {"block_out_channels": (32, 32, 32, 32)}))
    stack.enter_context(mock.patch.dict(trainers.TEXT, {"num_hidden_layers": 1}))
    return stack


def _text(about: dict[str, Any], parts: list[dict[str, Any]]) -> str:
    """The tables as markdown."""
    said = ", ".join(f"{key} {value}" for key, value in about["machine"].items())
    lines = ["# Measured on one GPU", "", f"{about['dtype']}{', tiny networks' if about['tiny'] else ''}; {said}"]
    for part in parts:
        why = part.get("failed") or part.get("left_out")
        lines += ["", f"## {part['part']} ({part['seconds']} s)", *(["", str(why)] if why else [])]
        for table in part["tables"]:
            lines += ["", str(Table(**table))]
    return "\n".join(lines) + "\n"
