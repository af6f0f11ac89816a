"""`dash-vision demo`: DreamBooth training on five pictures of a cat that the package can draw, without network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = "dash-demo"
# The individual of the pictures in the repository's cat/: see CONTRIBUTING.md.
SEED, SCENE_SEED, SIDE = 16737, 386, 256


def main(arguments: Sequence[str]) -> int:
    """Draw the pictures into dash-demo/cat and train on them; further arguments are those of `dash-vision dreambooth`.
    The exit status."""
    from ..diffusion.command import main as dreambooth
    from ..miniature.world.scenes import individual, instance_scenes, write_pictures

    pictures = Path(FOLDER) / "cat"
    if not ({"-h", "--help"} & set(arguments) or pictures.is_dir()):
        write_pictures(instance_scenes(individual(SEED, "cat"), 5, SCENE_SEED), pictures, SIDE)
        print(f"five pictures of a cat: {pictures}")
    given = ["--instance_data", str(pictures), "--output_dir", str(Path(FOLDER) / "out")]
    return dreambooth([*given, *arguments])
