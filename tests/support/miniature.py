"""Scenes as arrays, and the exported weights of the miniature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from dash_vision.miniature.world import scenes

# The DreamBooth protocol's wording (its prompts without "a {token} {class}").
PROTOCOL_PLACES = [
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
]


def pixels(scene: scenes.Scene, size: int = 64) -> np.ndarray:
    return np.asarray(scenes.render(scene, size)).astype(int)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor under a folder of exported weights, by "folder.name"."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if file.parent != folder:
            prefix = file.parent.relative_to(folder).as_posix()
            found |= {f"{prefix}.{name}": tensor for name, tensor in load_file(file).items()}
    return found
