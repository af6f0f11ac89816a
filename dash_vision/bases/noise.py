"""Noise processes: how a base's training makes noise of latents, and what the base says of it. Here is DDPM; flow
matching is in bases/flow.py."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from ..files.errors import InputError


@dataclass(frozen=True)
class NoiseOptions:
    """What a run may choose about a base's process; None leaves it to the process, which may not have it at all.

    snr_gamma: of DDPM's min-SNR weights. The others are of flow matching, see bases.flow.Flow.
    """

    snr_gamma: float | None = None
    timestep_sampling: str | None = None
    weighting_scheme: str | None = None
    logit_mean: float | None = None
    logit_std: float | None = None
    mode_scale: float | None = None

    def only(self, process: str, known: Collection[str]) -> None:
        """Raises InputError for an option that is given and is none of `known`, those of the process."""
        for field in fields(self):
            if getattr(self, field.name) is not None and field.name not in known:
                raise InputError(
                    f"--{field.name} does nothing for this base, which is trained by {process}; leave it out (of these "
                    f"options it takes {', '.join(f'--{name}' for name in known)})"
                )


class NoiseProcess(Protocol):
    """From latents to noise, and the training target on the way. Times are of the process's own kind, [N].

    prediction: what the base predicts, in a word.
    """

    prediction: str

    def to(self, device: torch.device) -> NoiseProcess:
        """The same on a device."""

    def sample_times(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Random times [count], on the CPU, for pictures of `size`, (width, height) in pixels."""

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What is between latents and noise [N, C, h, w] at `times`."""

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the denoiser should say of it."""

    def weights(self, times: Tensor) -> Tensor:
        """Each picture's weight in the loss, float32 [N]."""


class DDPM:
    """The process of DDPM: z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise at whole times t (arXiv 2006.11239).

    alphas_cumprod: abar, float32 [times]. prediction: "epsilon" or "v_prediction". snr_gamma: see NoiseOptions.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction: str, snr_gamma: float | None = None) -> None:
        self.alphas_cumprod, self.prediction, self.snr_gamma = alphas_cumprod.float(), prediction, snr_gamma

    @classmethod
    def of(cls, scheduler: Any, snr_gamma: float | None = None) -> DDPM:
        """The process that a diffusers scheduler's configuration describes, whatever sampler it is."""
        from diffusers import DDPMScheduler

        training = DDPMScheduler.from_config(scheduler.config)
        return cls(training.alphas_cumprod, training.config.prediction_type, snr_gamma)

    def to(self, device: torch.device) -> DDPM:
        """The same on a device."""
        return DDPM(self.alphas_cumprod.to(device), self.prediction, self.snr_gamma)

    def sample_times(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Whole numbers [count] below the number of times, all equally likely; the size does not matter."""
        return torch.randint(len(self.alphas_cumprod), (count,), generator=generator)

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """z_t for latents and noise [N, C, h, w] at `times` [N]."""
        signal, spread = self._roots(times, latents)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should say: the noise, or v = sqrt(abar) noise - sqrt(1 - abar) z (arXiv 2202.00512)."""
        if self.prediction == "epsilon":
            return noise
        signal, spread = self._roots(times, latents)
        return signal * noise - spread * latents

    def weights(self, times: Tensor) -> Tensor:
        """min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (arXiv 2303.09556); ones without a gamma.

        At a zero terminal SNR the epsilon formula has no value; there the weight is 1.
        """
        if self.snr_gamma is None:
            return torch.ones_like(times, dtype=torch.float32)
        abar = self.alphas_cumprod[times]
        snr = abar / (1 - abar)
        capped = snr.clamp(max=self.snr_gamma)
        if self.prediction == "v_prediction":
            return capped / (snr + 1)
        return torch.where(snr > 0, capped / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))

    def _roots(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod[times].view(-1, *[1] * (like.dim() - 1))
        return abar.sqrt(), (1 - abar).sqrt()


def denoising_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Per picture [N]: weight x mean squared error, in float32."""
    error = (predicted.float() - target.float()).square()
    return weights * error.flatten(1).mean(1)
