"""Stochastic depth that does not depend on how many processes share a batch."""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn


class SharedDropPath(DropPath):
    """timm's DropPath (arXiv 1603.09382) with the factors of a step drawn beforehand, for the images of this process.

    timm draws while it computes, for the images that it sees: of a batch that is split, each process would have to
    skip what the others draw. factors: [images], 0 or 1 / (1 - drop_prob).
    """

    factors: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.factors is None or len(self.factors) != len(x):
            result: Tensor = super().forward(x)  # evaluation; or not one path an image, as in windowed attention
            return result
        return x * self.factors.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class DropPaths:
    """All stochastic depth of `model`, whose DropPath modules are replaced."""

    def __init__(self, model: nn.Module) -> None:
        self.paths: list[SharedDropPath] = []
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if type(child) is DropPath and child.drop_prob:
                    path = SharedDropPath(child.drop_prob, child.scale_by_keep).train(child.training)
                    setattr(parent, name, path)
                    self.paths.append(path)

    def draw(
        self, images: int, rank: int, world: int, device: torch.device, generator: torch.Generator | None = None
    ) -> None:
        """Draw for a batch of `images` from `generator`, on the CPU (None: the default one), and keep the part of
        process `rank`, images rank, rank + world, ...; a process with none of the batch computes one image that does
        not count."""
        for path in self.paths:
            keep = 1 - path.drop_prob
            factors = torch.empty(images).bernoulli_(keep, generator=generator).to(device)
            if path.scale_by_keep:
                factors.div_(keep)
            mine = factors[rank::world]
            path.factors = mine if len(mine) else torch.ones(1, device=device)
