"""Pictures from a base: its settings, its device, its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from dash_vision.bases.devices import cast_network, within_memory
from dash_vision.bases.loading import Base
from dash_vision.bases.sampling import Sampling, pictures_at_once, sample
from dash_vision.files.errors import InputError, RunError
from dash_vision.measures.encoders import Encoders, find_encoders
from dash_vision.measures.names import SAMPLING_STEPS

from .blocks import Sampler
from .runs import DreamBoothRun


def generate(
    base: Base, prompts: Sequence[str], seed: int, numbers: Sequence[int], side: int, settings: Mapping[str, Any]
) -> list[Image.Image]:
    """A picture of side x side pixels for each prompt, from the noise of (seed, its number), which is that of column
    `number` in a run's samples.png. settings: of the sampler. The base is where `move` put it. Raises InputError where
    memory does not suffice, or a picture holds values that are not finite."""
    steps, guidance = int(settings["num_inference_steps"]), float(settings["guidance_scale"])
    how = Sampling(steps, guidance, (side, side), batch_size=len(prompts))
    place, dtype = _place(base)
    instead = "--dtype float16, a smaller --batch_size where there is one, or --device cpu"
    try:
        with within_memory(f"{len(prompts)} pictures of {side} x {side} at once", instead):
            return sample(base, prompts, seed, numbers, how, place, dtype)
    except RunError as error:
        raise InputError(f"{error}; give --dtype float32, or make the run again") from None


def _place(base: Base) -> tuple[torch.device, torch.dtype]:
    """Where the denoiser is, and what it computes in."""
    weight = next(base.denoiser.parameters())
    return weight.device, weight.dtype


def move(base: Base, device: str, dtype: str) -> None:
    """A base to a device, and its networks to a dtype of torch's; the VAE decodes in float32. Raises InputError where
    the memory does not suffice."""
    with within_memory("the base", "--dtype float16, or --device cpu"):
        for network in (base.denoiser, *base.text_encoders()):
            cast_network(network, getattr(torch, dtype))
        base.pipeline.to(device)


def sampler_settings(run: DreamBoothRun, sampler: Sampler) -> dict[str, Any]:
    """The sampler's steps and guidance: those given, else the run's."""
    steps, guidance = sampler.steps, sampler.guidance
    return {
        "num_inference_steps": int(run.argument("num_inference_steps")) if steps is None else steps,
        "guidance_scale": float(run.argument("guidance_scale")) if guidance is None else guidance,
    }


def measuring_settings(run: DreamBoothRun, sampler: Sampler) -> dict[str, Any]:
    """The same for pictures that are measured and not shown, which take fewer steps unless a number was given."""
    settings = sampler_settings(run, sampler)
    if sampler.steps is None:
        settings["num_inference_steps"] = min(settings["num_inference_steps"], SAMPLING_STEPS)
    return settings


def generate_all(
    base: Base,
    prompts: Sequence[str],
    seed: int,
    numbers: Sequence[int],
    side: int,
    settings: Mapping[str, Any],
    done: Callable[[int], object] | None = None,
) -> list[Image.Image]:
    """As `generate`, as many at once as small pictures allow. done: told how many were drawn, after each batch."""
    at_once = pictures_at_once(side)
    found: list[Image.Image] = []
    for first in range(0, len(prompts), at_once):
        part = slice(first, first + at_once)
        found += generate(base, prompts[part], seed, numbers[part], side, settings)
        if done is not None:
            done(len(prompts[part]))
    return found


def encoders_of(run: DreamBoothRun, names: Sequence[str] | None, sampler: Sampler) -> tuple[Encoders, list[str]]:
    """What measures pictures: the encoders of these names, or those that the run was told; and a sentence for each
    that cannot be had. Without any the miniature's own measure what the miniature draws."""
    wanted = run.record.arguments.get("eval_encoders") or () if names is None else names
    return find_encoders(wanted, run.embedded and sampler.base is None)
