"""A whole training step, in time and in memory, beside the frozen network and PEFT's LoRA."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from dash_vision.diffusion.metering import Meter, imagine, imagined, size_of

from .measure import Settings, Table, interleaved, milliseconds, ratio
from .models import TARGETS, TITLES, Size, bytes_of, dashed, network, peft_lora, training_step


def measure_time(settings: Settings, models: list[str], size: Size, rank: int, k: int) -> list[Table]:
    """Step times over those of PEFT's LoRA and of the frozen network with the gradient of its input only."""
    rows = [
        _times(name, what, target, settings, size, rank, k) for name in models for what, target in TARGETS[name].items()
    ]
    columns = ("network", "size", "LoRA-Dash, ms", "/ PEFT LoRA", "/ frozen", "PEFT LoRA / frozen")
    return [Table(f"A whole training step (AdamW), rank {rank}, k = {k}", columns, rows)]


def _times(name: str, what: str, target: str, settings: Settings, size: Size, rank: int, k: int) -> list[str | float]:
    """One row. Its networks are gone before the next row makes its own: those of two rows would fill a machine."""
    ways = {
        "LoRA-Dash": dashed(network(name, size, settings), target, rank, k),
        "frozen": network(name, size, settings),
        "PEFT LoRA": peft_lora(network(name, size, settings), target, rank),
    }
    steps = {way: training_step(name, model, size, settings)[0] for way, model in ways.items()}
    times = interleaved(steps, settings)
    over = [ratio(times, "LoRA-Dash", peer) for peer in ("PEFT LoRA", "frozen")]
    over.append(ratio(times, "PEFT LoRA", "frozen"))
    return [f"{TITLES[name]}, {what}", size.of(name), milliseconds(times["LoRA-Dash"]), *over]


def measure_memory(settings: Settings, models: list[str], size: Size, rank: int, k: int) -> list[Table]:
    """Peak memory of a step over that of PEFT's LoRA."""
    rows: list[list[str | float]] = []
    for name in models:
        for what, target in TARGETS[name].items():

            def ours(model: nn.Module, target: str = target) -> nn.Module:
                return dashed(model, target, rank, k)

            def peers(model: nn.Module, target: str = target) -> nn.Module:
                return peft_lora(model, target, rank)

            own, own_beside = peak(name, ours, size, settings)
            peer, peer_beside = peak(name, peers, size, settings)
            ratios = [own / peer, own_beside / peer_beside]
            if settings.quantize == "none":  # else libraries make weights of which plan knows the bits alone
                ratios.append(planned(name, ours, size, settings) / own)
            rows.append([f"{TITLES[name]}, {what}", size.of(name), own / 2**20, *ratios])
    columns = ["network", "size", "LoRA-Dash, MiB", "/ PEFT LoRA", "/ PEFT LoRA, without the frozen weights"]
    if settings.quantize == "none":
        columns.append("planned")
    return [Table(f"Peak memory of a training step (AdamW), rank {rank}, k = {k}", columns, rows)]


def peak(name: str, adapt: Callable[[nn.Module], nn.Module], size: Size, settings: Settings) -> tuple[int, int]:
    """Bytes at the peak of a step that is not the first: (all, without the frozen weights)."""
    gc.collect()
    frozen = network(name, size, settings)
    weights = sum(bytes_of(p) for p in frozen.parameters())
    model = adapt(frozen)
    step, optimizer = training_step(name, model, size, settings)
    step()  # makes the optimizer's state
    if settings.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        total = torch.cuda.max_memory_allocated()
        return total, total - weights
    tensors = [*model.parameters(), *model.buffers()]
    assert optimizer is not None
    tensors += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    total = sum(bytes_of(t) for t in tensors) + allocated_on_cpu(step)
    return total, total - weights


def planned(name: str, adapt: Callable[[nn.Module], nn.Module], size: Size, settings: Settings) -> int:
    """The bytes that `dash-vision plan` counts for such a step: its way to count, on a network without weights."""
    with torch.device("meta"):
        model = network(name, size, replace(settings, device=torch.device("meta")))
    with imagined(settings.dtype, settings.device.type == "cuda"):
        imagine(model)
        model = adapt(model)
        step, optimizer = training_step(name, model, size, replace(settings, device=torch.device("cpu")))
        step()  # makes the optimizer's state
        assert optimizer is not None
        states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        with Meter() as meter:
            step()
    return size_of(model) + sum(t.numel() * t.element_size() for t in states) + meter.peak


def allocated_on_cpu(step: Callable[[], None]) -> int:
    """Most bytes that torch's allocator held during `step` at once, beyond those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
