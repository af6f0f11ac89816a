"""What the families with Qwen-Image's autoencoder share: it is one of videos, here of a single frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .flow_transformer import FlowTransformer, latents_of, tokens_of


class WithQwenVae(FlowTransformer):
    """Latents [N, 16, h, w] are normalised channel by channel; pipelines take and give them in squares of 2 x 2."""

    def channels(self, pipeline: Any) -> int:
        """See FlowTransformer."""
        return int(pipeline.vae.config.z_dim)

    def encode_picture(self, pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See Family."""
        distribution = pipeline.vae.encode(pixels[:, :, None]).latent_dist
        middle, spread = _statistics(pipeline.vae, pixels)
        return (distribution.mean[:, :, 0] - middle) / spread, distribution.std[:, :, 0] / spread

    def decode(self, pipeline: Any, latents: Tensor) -> Tensor:
        """See Family."""
        middle, spread = _statistics(pipeline.vae, latents)
        return pipeline.vae.decode((latents * spread + middle)[:, :, None]).sample[:, :, 0]

    def pack(self, latents: Tensor) -> Tensor:
        """See FlowTransformer."""
        return tokens_of(latents, self.patch)

    def unpack(self, drawn: Tensor, pipeline: Any, size: tuple[int, int]) -> Tensor:
        """See FlowTransformer."""
        factor = self.factor(pipeline)
        return latents_of(drawn, self.patch, (size[1] // factor, size[0] // factor))


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) [C, 1, 1] of the latents, which the VAE's configuration holds."""
    config = vae.config
    middle, spread = (
        torch.tensor(values).view(-1, 1, 1).to(like) for values in (config.latents_mean, config.latents_std)
    )
    return middle, spread
