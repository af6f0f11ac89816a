"""Size of adapter files, and the time to load them into a pipeline, beside PEFT's LoRA in diffusers' file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from dash_vision import DashConfig, export_lora, inject, load_adapter

from .exactness import SD15, build, stock, train_at_random
from .measure import Settings, Table, interleaved, milliseconds, ratio
from .models import TARGETS, Size


def measure(settings: Settings, size: Size, rank: int, k: int, timed: bool) -> list[Table]:
    """One table: bytes and milliseconds by file; not timed: bytes alone, of an adapter whose directions are zero."""
    with tempfile.TemporaryDirectory() as name, stock(build(SD15, size.width)) as pipeline:
        folder = Path(name)
        pipeline.unet.to(settings.device)
        peers = {f"PEFT LoRA of rank {r}": peft_file(pipeline, r, folder / f"peft{r}") for r in (rank + k, rank)}
        if timed:
            adapter = train_at_random(pipeline.unet, rank, k)
        else:
            adapter = inject(pipeline.unet, DashConfig(rank=rank, dash_k=k))
            for _, w in adapter.weights():
                w.indices.copy_(torch.arange(w.k))
        adapter.save(folder / "whole.safetensors")
        adapter.save(folder / "compact.safetensors", compact=True)
        exported = export_lora(adapter, folder / "export")
        adapter.remove()
        own = {"native": folder / "whole.safetensors", "native, compact": folder / "compact.safetensors"}
        files = {**own, "export for diffusers": exported, **peers}
        both, lora = peers
        times: dict[str, list[float]] = {}
        if timed:
            calls: dict[str, Callable[[], object]] = {way: partial(_load_own, pipeline, own[way]) for way in own}
            calls |= {way: partial(_load_stock, pipeline, files[way]) for way in files.keys() - own.keys()}
            times = interleaved(calls, settings)
        rows: list[list[str | float]] = []
        for way, path in files.items():
            bytes_ = path.stat().st_size
            sizes = [bytes_ / peers[both].stat().st_size, bytes_ / peers[lora].stat().st_size]
            seconds = [milliseconds(times[way]), ratio(times, way, both)] if timed else []
            rows.append([way, bytes_ / 1e6, *sizes, *seconds])
    columns = ["file", "MB", f"/ {both}", f"/ {lora}", *(["load and unload, ms", f"/ {both}"] if timed else [])]
    title = f"SD 1.5 UNet (width x {size.width:g}), attention, rank {rank}, k = {k}"
    return [Table(title, columns, rows)]


def peft_file(pipeline: Any, rank: int, folder: Path) -> Path:
    """The file that diffusers' DreamBooth script writes: PEFT's LoRA in the UNet, saved by the pipeline's class."""
    pipeline.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS["sd15"]["attention only"]))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    pipeline.unet.delete_adapters("default")
    pipeline.unload_lora_weights()
    return folder / "pytorch_lora_weights.safetensors"


def _load_own(pipeline: Any, path: Path) -> None:
    load_adapter(pipeline.unet, path).remove()


def _load_stock(pipeline: Any, path: Path) -> None:
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.unload_lora_weights()
