"""Flow-matching transformers to measure: random weights at the real widths of public models, a few blocks of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel, QwenImageTransformer2DModel, ZImageTransformer2DModel
from torch import Tensor, nn

from dash_vision.bases.family import Family
from dash_vision.bases.flux2 import Flux2Klein
from dash_vision.bases.qwen_image import QwenImage
from dash_vision.bases.z_image import ZImage

TEXT_TOKENS = 128


@dataclass(frozen=True)
class Flow:
    """A transformer as its family calls it.

    blocks: how many it has here, in words. first: its first block that is adapted. config: what differs from the
    class's defaults. channels, patch: of its latents. text: width of its encoded prompts; lists: they are a list.
    """

    title: str
    blocks: str
    family: Family
    transformer: Callable[..., Any]
    config: dict[str, Any]
    first: str
    channels: int
    patch: int
    text: int
    lists: bool = False

    def targets(self) -> dict[str, str]:
        """What is adapted, by its name in the tables."""
        pipeline = SimpleNamespace(transformer=SimpleNamespace(config=SimpleNamespace(**self.config)))
        names = {"all block linears": "all-linear", "attention only": "attention"}
        return {words: str(self.family.target(pipeline, name)) for words, name in names.items()}

    def network(self) -> nn.Module:
        """It with random weights."""
        torch.manual_seed(0)
        return self.transformer(**self.config)

    def call(self, model: nn.Module, side: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
        """A forward pass on a picture whose latents at factor 8 are `side` x `side`, with a prompt of TEXT_TOKENS."""
        generator = torch.Generator().manual_seed(2)
        prompt = torch.randn(1, TEXT_TOKENS, self.text, generator=generator).to(device, dtype)
        latents = torch.randn(1, self.channels, side // self.patch, side // self.patch, generator=generator)
        conditions = {"prompt_embeds": list(prompt) if self.lists else prompt}
        times = torch.tensor([0.5], device=device)
        return partial(self.family.denoise, model, latents.to(device, dtype), times, conditions)


FLOWS = {
    "flux2": Flow(
        "FLUX.2 klein 4B",
        "1 double block, 1 single block",
        Flux2Klein(),
        Flux2Transformer2DModel,
        {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24, "joint_attention_dim": 7680}
        | {"guidance_embeds": False},
        "transformer_blocks.0",
        128,
        2,
        7680,
    ),
    "z-image": Flow(
        "Z-Image",
        "2 blocks, no refiners",
        ZImage(),
        ZImageTransformer2DModel,
        {"n_layers": 2, "n_refiner_layers": 0},
        "layers.0",
        16,
        1,
        2560,
        lists=True,
    ),
    "qwen-image": Flow(
        "Qwen-Image",
        "2 blocks",
        QwenImage(),
        QwenImageTransformer2DModel,
        {"num_layers": 2},
        "transformer_blocks.0",
        16,
        1,
        3584,
        lists=True,
    ),
}
