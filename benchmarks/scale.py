"""How time and memory grow: with tokens, width, rank, k, the number of adapted layers, and processes at the launch."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from dash_vision import DashConfig, inject

from .measure import Settings, Table, autocast, interleaved, milliseconds, ratio, seconds
from .models import dashed
from .step import allocated_on_cpu

WIDTHS, TOKENS, RANKS, KS, LAYERS = (
    (320, 640, 1280),
    (256, 512, 1024, 2048),
    (4, 8, 16, 32),
    (0, 8, 16, 32),
    (1, 2, 4, 8),
)
_WIDTH, _TOKENS, _RANK, _K, _LAYERS = 640, 1024, 8, 8, 2  # where the others are varied


def measure(settings: Settings, share: float, processes: list[int]) -> list[Table]:
    """One table for the quantities of a training step, one for the launch."""
    rows: list[list[str | float]] = []
    for quantity, values in (("tokens", TOKENS), ("width", WIDTHS), ("rank", RANKS), ("k", KS), ("layers", LAYERS)):
        for value in values:
            point = {"tokens": _TOKENS, "width": _WIDTH, "rank": _RANK, "k": _K, "layers": _LAYERS, quantity: value}
            point["tokens"] = max(1, round(point["tokens"] * share))
            steps = {way: _step(way, point, settings) for way in ("LoRA-Dash", "frozen")}
            times = interleaved(steps, settings)
            memory = {way: _memory(step, settings) for way, step in steps.items()}
            own, frozen = milliseconds(times["LoRA-Dash"]), milliseconds(times["frozen"])
            over = ratio(times, "LoRA-Dash", "frozen")
            rows.append([f"{quantity} {point[quantity]}", own, frozen, over, memory["LoRA-Dash"] / memory["frozen"]])
    title = (
        f"Forward and backward of {_LAYERS} square layers of width {_WIDTH}, {max(1, round(_TOKENS * share))} tokens, "
        f"rank {_RANK}, k = {_K}, one quantity varied"
    )
    columns = ("varied", "LoRA-Dash, ms", "frozen, ms", "time / frozen", "activations / frozen")
    return [Table(title, columns, rows), *([launches(settings, processes)] if processes else [])]


def _step(way: str, point: dict[str, int], settings: Settings) -> Callable[[], None]:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(*[nn.Linear(point["width"], point["width"]) for _ in range(point["layers"])])
    model = model.to(settings.device, settings.dtype).requires_grad_(False)
    if way == "LoRA-Dash":
        model = dashed(model, r"\d+", point["rank"], point["k"])
    x = torch.randn(point["tokens"], point["width"]).to(settings.device, settings.dtype).requires_grad_()
    upstream = torch.ones_like(x)
    trained = [x, *(p for p in model.parameters() if p.requires_grad)]

    def step() -> None:
        with autocast(settings):
            out = model(x)
        torch.autograd.backward(out, upstream)
        for tensor in trained:
            tensor.grad = None

    return step


def _memory(step: Callable[[], None], settings: Settings) -> int:
    if settings.device.type == "cpu":
        return allocated_on_cpu(step)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


# -- processes


def launches(settings: Settings, processes: list[int]) -> Table:
    """Seconds of a launch of 8 layers, shared by several processes on this machine."""
    rows: list[list[str | float]] = []
    for world in processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_launch, (world, folder, settings), nprocs=world)
            found = [float(path.read_text()) for path in Path(folder).glob("*.seconds")]
        rows.append([str(world), max(found), max(found) / rows[0][1] if rows else 1.0])  # type: ignore[operator]
    title = f"Launch of 8 layers of {_WIDTH} x {_WIDTH}, by processes; the slowest one's seconds"
    return Table(title, ("processes", "s", "/ the first row"), rows)


def _launch(rank: int, world: int, folder: str, settings: Settings) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(_WIDTH, _WIDTH) for _ in range(8)]).to(settings.device)
    adapter = inject(model, DashConfig(rank=_RANK, dash_k=_K, target=r"\d+"))
    found = []
    for _ in range(max(2, min(settings.rounds, 5))):
        for _, w in adapter.weights():
            w.indices.fill_(-1)
        dist.barrier()
        found.append(seconds(adapter.launch, settings))
    (Path(folder) / f"{rank}.seconds").write_text(str(statistics.median(found)))
    dist.destroy_process_group()
