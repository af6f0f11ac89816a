"""The denoising loss: targets, signal-to-noise ratios, min-SNR weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class NoiseSchedule:
    """The forward process of a base: z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise, and what the base predicts of it.

    alphas_cumprod: abar, float32 [timesteps]. prediction_type: "epsilon" or "v_prediction".
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str) -> None:
        self.alphas_cumprod, self.prediction_type = alphas_cumprod.float(), prediction_type

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """The process a diffusers scheduler's configuration describes, whatever sampler it is."""
        from diffusers import DDPMScheduler

        training = DDPMScheduler.from_config(scheduler.config)
        return cls(training.alphas_cumprod, training.config.prediction_type)

    @property
    def timesteps(self) -> int:
        """How many there are."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device) -> NoiseSchedule:
        """The same on a device."""
        return NoiseSchedule(self.alphas_cumprod.to(device), self.prediction_type)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t for latents and noise [N, C, H, W] at integer timesteps [N]."""
        signal, spread = self._roots(timesteps, latents)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should say: the noise, or v = sqrt(abar) noise - sqrt(1 - abar) z (arXiv 2202.00512)."""
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._roots(timesteps, latents)
        return signal * noise - spread * latents

    def weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor:
        """Loss weights [N]: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (arXiv 2303.09556); None gives ones.

        At a zero terminal SNR the epsilon formula has no value; there the weight is 1.
        """
        if snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        abar = self.alphas_cumprod[timesteps]
        snr = abar / (1 - abar)
        capped = snr.clamp(max=snr_gamma)
        if self.prediction_type == "v_prediction":
            return capped / (snr + 1)
        return torch.where(snr > 0, capped / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))

    def _roots(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod[timesteps].view(-1, *[1] * (like.dim() - 1))
        return abar.sqrt(), (1 - abar).sqrt()


def denoising_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Per picture [N]: weight x mean squared error, in float32."""
    error = (predicted.float() - target.float()).square()
    return weights * error.flatten(1).mean(1)
