"""The measures of PEFT's benchmark of image generation: what is drawn, from which seeds, and what is made of it.

One generator goes through all pictures of a measure, so that their order counts. A picture is drawn by the stock
pipeline, called as a user calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

REPEATS = 3  # of the test pictures
# Added to the run's seed, so that no picture begins with a noise of the training.
_SIMILARITY, _DRIFT = 100_000, 100_000_000

Draw = Callable[[Sequence[str], torch.Generator], list[Image.Image]]
"""Prompts, and the generator whose next numbers are their noise."""


class Eyes(Protocol):
    """What compares pictures, see measures.encoders."""

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d], unit rows."""


def similarity(
    draw: Draw, eyes: Eyes, real: Sequence[Image.Image], prompts: Sequence[str], seed: int, device: str, at_once: int
) -> float:
    """The mean cosine of each real picture with one that is drawn for its prompt, over REPEATS rounds."""
    generator = torch.Generator(device).manual_seed(seed + _SIMILARITY)
    seen = eyes.pictures(real)
    rounds = [drawn_in_turn(draw, prompts, generator, at_once) for _ in range(REPEATS)]
    return float(torch.stack([(eyes.pictures(drawn) * seen).sum(1).mean() for drawn in rounds]).mean())


def drift(
    draw: Draw,
    off: Callable[[], AbstractContextManager[object]],
    eyes: Eyes,
    prompts: Sequence[str],
    seed: int,
    device: str,
    at_once: int,
) -> float:
    """(1 - mean cosine) / 2 of pictures of unrelated prompts with the adapter and without it, from the same noise. off:
    the adapter is off while inside."""

    def features() -> Tensor:
        generator = torch.Generator(device).manual_seed(seed + _DRIFT)
        return eyes.pictures(drawn_in_turn(draw, prompts, generator, at_once))

    with off():
        without = features()
    return float(1 - (features() * without).sum(1).mean()) / 2


def sample_pictures(draw: Draw, prompts: Sequence[str], seed: int, device: str) -> list[Image.Image]:
    """One picture of each prompt, to look at."""
    generator = torch.Generator(device).manual_seed(seed + _SIMILARITY)
    return drawn_in_turn(draw, prompts, generator, 1)


def drawn_in_turn(draw: Draw, prompts: Sequence[str], generator: torch.Generator, at_once: int) -> list[Image.Image]:
    """A picture of each prompt, so many at once."""
    found: list[Image.Image] = []
    for start in range(0, len(prompts), at_once):
        found += draw(prompts[start : start + at_once], generator)
    return found
