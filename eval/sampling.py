"""Pictures from a pipeline: its settings, its device, its memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dash_vision.files.errors import InputError
from dash_vision.runs.seeds import stream

from .blocks import Sampler
from .runs import DreamBoothRun


def generate(
    pipeline: Any, prompts: Sequence[str], seed: int, numbers: Sequence[int], side: int, settings: Mapping[str, Any]
) -> list[Any]:
    """A picture of side x side pixels for each prompt, from the noise of (seed, its number), which is that of column
    `number` in a run's samples.png. settings: of the sampler. Raises InputError where memory does not suffice."""
    # Each picture has its own generator, on the CPU: its noise is the same for every method, batch, process and device.
    noises = [stream(seed, "sample", number) for number in numbers]
    # In float32 whatever the pipeline computes in: random numbers of half precision would be others.
    shape = (1, pipeline.unet.config.in_channels, side // pipeline.vae_scale_factor, side // pipeline.vae_scale_factor)
    latents = torch.cat([torch.randn(shape, generator=noise) for noise in noises]).to(pipeline.unet.dtype)
    what = f"{len(prompts)} pictures of {side} x {side} at once"
    with within_memory(what, "--dtype float16, a smaller --batch_size where there is one, or --device cpu"):
        made = pipeline(list(prompts), generator=noises, latents=latents, width=side, height=side, **settings)
    return list(made.images)


@contextmanager
def within_memory(what: str, instead: str) -> Iterator[None]:
    """Raises InputError where the GPU's memory does not suffice for `what`; instead: the flags to give then."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise InputError(f"the GPU's memory does not suffice for {what}; give {instead}") from None


def move(pipeline: Any, device: str, dtype: str) -> None:
    """A pipeline to a device and a dtype of torch's. Raises InputError where the memory does not suffice."""
    with within_memory("the base", "--dtype float16, or --device cpu"):
        pipeline.to(device, getattr(torch, dtype))


def usable_device(name: str | None = None) -> str:
    """The device of that name; None: the GPU where there is one. Raises InputError where torch cannot use it."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"--device is {name}, which cannot be used here ({reason}); give cpu, or leave it out"
        ) from None
    return name


def sampler_settings(run: DreamBoothRun, sampler: Sampler) -> dict[str, Any]:
    """The sampler's steps and guidance: those given, else the run's."""
    steps, guidance = sampler.steps, sampler.guidance
    return {
        "num_inference_steps": int(run.argument("num_inference_steps")) if steps is None else steps,
        "guidance_scale": float(run.argument("guidance_scale")) if guidance is None else guidance,
    }
