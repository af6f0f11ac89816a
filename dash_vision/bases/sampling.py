"""Pictures and latents of a base: its own sampler, its VAE."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files.errors import InputError, RunError
from ..runs.seeds import stream
from .devices import placed
from .family import Conditions, Sampling, moved
from .loading import Base

__all__ = [
    "Sampling",
    "decode_latents",
    "encode_inputs",
    "encode_picture",
    "pictures_at_once",
    "sample",
    "starting_noise",
    "to_pictures",
]
log = logging.getLogger(__name__)
T = TypeVar("T")


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[str],
    seed: int,
    numbers: Sequence[int],
    how: Sampling,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    tick: Callable[[int], object] = lambda n: None,
) -> list[Image.Image]:
    """One picture per prompt, by the base's own sampler.

    seed, numbers: of each picture's starting noise, see `starting_noise`. The denoiser computes in `dtype`; the VAE
    decodes in float32. The text encoders are on the device only before the denoiser is. When memory does not suffice
    for a batch, it is halved. `tick(n)` is called for every n pictures done. Raises RunError when a picture holds
    values that are not finite.
    """
    latents: list[Tensor] = []
    size = how.batch_size
    alone = [base.denoiser] if how.makes_room else []
    with placed(alone if any(prompt not in base.inputs for prompt in prompts) else [], torch.device("cpu")):
        encoded = encode_inputs(base, prompts, device)
    conditions = [encoded[prompt] for prompt in prompts]
    with placed([base.pipeline.vae, base.denoiser], device):
        while len(latents) < len(prompts):
            rest = slice(len(latents), len(latents) + size)
            try:
                latents += _denoise(base, conditions[rest], seed, numbers[rest], how, device, dtype).cpu()
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                if size == 1:
                    raise
                size = max(1, size // 2)
                log.warning("not enough memory for %d pictures at once; going on with %d", 2 * size, size)
                continue
            tick(len(prompts[rest]))
        with placed(alone, torch.device("cpu")):
            return to_pictures(decode_latents(base, torch.stack(latents)))


def pictures_at_once(side: int) -> int:
    """How many pictures of so many pixels a side to compute at once without gradients: several only where they are
    small, and a batch costs little more than a picture."""
    return 8 if side <= 128 else 1


def starting_noise(base: Base, seed: int, numbers: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Standard normal latents [N, C, h, w], float32 on the CPU, for pictures of `size`, (width, height) in pixels.

    Each follows from the seed and its number alone, whatever the batch and the device: wherever a picture of (seed,
    number) is drawn, it starts from the same noise.
    """
    shape = base.family.latent_shape(base.pipeline, size)
    return torch.stack([torch.randn(shape, generator=stream(seed, "sample", n)) for n in numbers])


@torch.no_grad()
def encode_inputs(base: Base, prompts: Sequence[str], device: torch.device) -> dict[str, Conditions]:
    """What the base's sampler is told, by prompt: encoded once each on `device`, or found in the base's `inputs`."""
    found = {prompt: base.inputs[prompt] for prompt in prompts if prompt in base.inputs}
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
    if not missing:
        return found
    # The pipeline takes its first network's device for its own, so the VAE goes along.
    with placed([base.pipeline.vae, *base.text_encoders()], device):
        for prompt in missing:
            found[prompt] = base.family.sampler_inputs(base.pipeline, [prompt], device, base.prompt_options)
    return found


def _denoise(
    base: Base,
    conditions: Sequence[Conditions],
    seed: int,
    numbers: Sequence[int],
    how: Sampling,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    # Samplers that add noise on the way draw it from these: each picture its own, whatever the batch.
    extra = [stream(seed, "sampler", n) for n in numbers]
    noise = starting_noise(base, seed, numbers, how.size).to(device, dtype)
    inputs = moved(base.family.join(conditions), device, dtype)
    enabled = dtype != torch.float32
    with torch.autocast(device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled):
        return base.family.sample(base.pipeline, inputs, noise, how, extra)


@torch.no_grad()
def encode_picture(base: Base, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of the latents' distribution [C, h, w] of one picture [3, height, width] in [-1, 1].

    The VAE is on `device`. Always float32: SDXL's own VAE overflows in half precision. In tiles where the device's
    memory does not suffice. Raises InputError when the VAE gives values that are not finite.
    """
    pixels = pixels[None].to(device, torch.float32)
    mean, std = _in_tiles_if_need_be(base, lambda: base.family.encode_picture(base.pipeline, pixels))
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise InputError(
            "the VAE gave values that are not finite; for SDXL give the fp16-fix VAE by "
            "--pretrained_vae_model_name_or_path, or check the base's files"
        )
    return mean[0].cpu(), std[0].cpu()


@torch.no_grad()
def decode_latents(base: Base, latents: Tensor) -> Tensor:
    """Latents [N, C, h, w] of the denoiser -> pictures [N, 3, height, width] in [0, 1], float32 on the CPU.

    One at a time, and in tiles where the device's memory does not suffice for one.
    """
    latents = latents.to(device=base.pipeline.vae.device, dtype=torch.float32)
    pictures = torch.cat([_decode(base, one[None]).cpu() for one in latents])
    return (pictures / 2 + 0.5).clamp(0, 1)


def _decode(base: Base, latents: Tensor) -> Tensor:
    return _in_tiles_if_need_be(base, lambda: base.family.decode(base.pipeline, latents))


def _in_tiles_if_need_be(base: Base, work: Callable[[], T]) -> T:
    """What the VAE makes of a picture."""
    vae = base.pipeline.vae
    try:
        return work()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        log.warning("not enough memory for a picture at once in the VAE; going on in tiles")
    vae.enable_tiling()
    try:
        return work()
    finally:
        vae.disable_tiling()


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """[N, 3, height, width] in [0, 1] -> RGB pictures. Raises RunError when a value is not finite."""
    if not torch.isfinite(pixels).all():
        raise RunError("the sampled pictures hold values that are not finite")
    values = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(v)) for v in values]
