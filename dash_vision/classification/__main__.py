"""python -m dash_vision.classification build-vit --work DIR: train the ViT that this package ships."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .backbones import MINIATURE_WEIGHTS


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="python -m dash_vision.classification", description="The embedded miniature ViT."
    )
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build-vit", help="draw its scenes and train it from a seed (resumable)")
    one.add_argument("--work", type=Path, required=True, help="folder for scenes (600 MB) and checkpoint")
    one.add_argument("--output", type=Path, default=MINIATURE_WEIGHTS, help="file to write (default: the package's)")
    one.add_argument("--scenes", type=int, default=48000, help="scenes to train on (default: 48000)")
    one.add_argument("--heldout", type=int, default=2000, help="scenes to measure on (default: 2000)")
    one.add_argument("--steps", type=int, default=2400, help="optimizer steps (default: 2400)")
    one.add_argument("--batch_size", type=int, default=128, help="pictures per step (default: 128)")
    one.add_argument("--seed", type=int, default=0, help="seed of scenes, weights and batches (default: 0)")
    one.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    one.add_argument("--processes", type=int, help="processes that draw (default: one per core)")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 on success, 1 with one sentence on stderr otherwise."""
    values = vars(parser().parse_args(arguments))
    del values["command"]
    from .build_vit import BuildPlan, build

    try:
        accuracies = build(BuildPlan(**values))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {values['output']} ({values['output'].stat().st_size / 1e6:.2f} MB); accuracy on held-out scenes:")
    print("\n".join(f"  {question}: {value} %" for question, value in accuracies.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
