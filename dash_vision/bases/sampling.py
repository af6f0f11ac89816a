"""Pictures from prompts, for samples.png and for prior preservation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..diffusion.data import generator
from .families import Base, decode_latents

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How to sample. size: (width, height) in pixels."""

    steps: int
    guidance: float
    size: tuple[int, int]
    batch_size: int = 4


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[str],
    noise_seeds: Sequence[tuple[int, int]],
    how: Sampling,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    tick: Callable[[int], object] = lambda n: None,
) -> list[Image.Image]:
    """One picture per prompt, by the base's own sampler.

    noise_seeds: (seed, number) of each picture's starting noise; equal pairs give equal noise, whatever the batch and
    the device. The UNet computes in `dtype`; the VAE decodes in float32. The text encoders are on the device only
    before the UNet is. When memory does not suffice for a batch, it is halved. `tick(n)` is called for every n
    pictures done.
    """
    pictures: list[Image.Image] = []
    size = how.batch_size
    conditions = _conditions(base, prompts, device)
    with _placed([base.pipeline.vae, base.pipeline.unet], device):
        while len(pictures) < len(prompts):
            rest = slice(len(pictures), len(pictures) + size)
            try:
                latents = _denoise(base, conditions[rest], noise_seeds[rest], how, device, dtype)
                pictures += to_pictures(decode_latents(base, latents))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                if size == 1:
                    raise
                size = max(1, size // 2)
                log.warning("not enough memory for %d pictures at once; going on with %d", 2 * size, size)
                continue
            tick(len(prompts[rest]))
    return pictures


def starting_noise(base: Base, seeds: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Standard normal latents [N, C, H, W], each from its own (seed, number)."""
    shape = (int(base.pipeline.unet.config.in_channels), size[1] // base.factor, size[0] // base.factor)
    return torch.stack([torch.randn(shape, generator=generator(seed, "sample", n)) for seed, n in seeds])


def _conditions(base: Base, prompts: Sequence[str], device: torch.device) -> list[dict[str, Tensor]]:
    """What the pipeline is told for each prompt: encoded once each, on the device."""
    encoded: dict[str, dict[str, Tensor]] = {}
    # The pipeline takes its first network's device for its own, so the VAE goes along.
    with _placed([base.pipeline.vae, *base.text_encoders()], device):
        for prompt in dict.fromkeys(prompts):
            encoded[prompt] = base.family.sampler_inputs(base.pipeline, [prompt], device)
    return [encoded[prompt] for prompt in prompts]


def _denoise(
    base: Base,
    conditions: Sequence[dict[str, Tensor]],
    seeds: Sequence[tuple[int, int]],
    how: Sampling,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    # Samplers that add noise on the way draw it from this generator: per batch, so that the same call repeats itself.
    extra = generator(seeds[0][0], "sampler", seeds[0][1])
    noise = starting_noise(base, seeds, how.size).to(device, dtype)
    enabled = dtype != torch.float32
    with torch.autocast(device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled):
        return base.pipeline(
            **{key: torch.cat([one[key] for one in conditions]).to(dtype) for key in conditions[0]},
            width=how.size[0],
            height=how.size[1],
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            latents=noise,
            generator=extra,
            output_type="latent",
        ).images


class _placed:
    """Networks on a device while inside, back where they were after."""

    def __init__(self, networks: Sequence[nn.Module], device: torch.device) -> None:
        self.networks, self.device = networks, device
        self.before: list[torch.device] = []

    def __enter__(self) -> None:
        self.before = [network.device for network in self.networks]  # type: ignore[misc]
        for network in self.networks:
            network.to(self.device)

    def __exit__(self, *error: object) -> None:
        for network, device in zip(self.networks, self.before, strict=True):
            network.to(device)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """[N, 3, height, width] in [0, 1] -> RGB pictures. Raises FloatingPointError when a value is not finite."""
    if not torch.isfinite(pixels).all():
        raise FloatingPointError("the sampled pictures hold values that are not finite")
    values = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(v)) for v in values]
