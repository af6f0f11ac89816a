"""Command line of the miniature: `python -m dash_vision.miniature build | individual | report`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.errors import InputError, RunError, Stopped, one_line
from .world.scenes import KINDS, heldout_scenes, individual, instance_scenes, write_pictures

if TYPE_CHECKING:
    from .train.data import Settings

# Stages whose number of steps can be given, and what they train.
_TRAINED = {
    "vae": "autoencoder",
    "decoder": "autoencoder's decoder against its critic",
    "unet": "denoiser and text encoder",
    "clip": "vision tower",
    "flow": "flow-matching transformer",
}


def _individual(args: argparse.Namespace) -> None:
    if args.heldout < 0:
        raise InputError(f"--heldout takes a number of pictures, 0 or more, got {args.heldout}")
    subject = individual(args.seed, args.kind)
    scene_seed = args.seed if args.scene_seed is None else args.scene_seed
    seen = instance_scenes(subject, args.instances, scene_seed)
    heldout = heldout_scenes(subject, seen, args.heldout, scene_seed)
    write_pictures(seen, args.output / "instance", args.size)
    write_pictures(heldout, args.output / "heldout", args.size, captions=True)
    print(f"{args.output}: {len(seen)} instance and {len(heldout)} held-out pictures of a {subject.kind}: {subject}")


def _build_settings(args: argparse.Namespace) -> Settings:
    from .train.data import Settings

    settings = Settings(args.work, args.output or Path(__file__).parent / "weights", args.device, seed=args.seed)
    settings.compile, settings.init = args.compile, args.init
    settings.scenes = args.scenes or settings.scenes
    settings.processes = args.processes or settings.processes
    for name in _TRAINED:
        steps = getattr(args, f"{name}_steps")
        if steps is not None:
            if steps < 1:
                raise InputError(f"--{name}-steps takes a number of steps, 1 or more, got {steps}")
            setattr(settings, name, replace(getattr(settings, name), steps=steps))
    if args.vit_steps is not None:
        if args.vit_steps < 1:
            raise InputError(f"--vit-steps takes a number of steps, 1 or more, got {args.vit_steps}")
        settings.vit_steps = args.vit_steps
    return settings


def _build(args: argparse.Namespace) -> None:
    from .train.build import STAGES, build, snapshot

    settings = _build_settings(args)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    if args.snapshot:
        snapshot(settings)
    else:
        build(settings, args.stages or tuple(STAGES))


def _report(args: argparse.Namespace) -> None:
    from .train.report import report

    report(args.work, args.docs, args.weights, args.images)


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m dash_vision.miniature", description="The embedded miniature base.")
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser("individual", help="render pictures of one new individual: a ground truth for DreamBooth")
    _add_individual(one)
    _add_build(commands.add_parser("build", help="train the miniature from seeds (resumable)"))
    measure = commands.add_parser("report", help="measure the miniature; write docs/miniature.md and its contact sheet")
    _add_report(measure)
    return top


def _add_individual(one: argparse.ArgumentParser) -> None:
    one.add_argument("output", type=Path, metavar="OUT", help="folder for instance/ and heldout/")
    one.add_argument("--seed", type=int, default=0, help="which individual (default: 0)")
    one.add_argument("--scene-seed", type=int, help="which places and poses (default: as --seed)")
    one.add_argument("--kind", help=f"its class: {', '.join(KINDS)} (default: drawn from the seed)")
    one.add_argument("--instances", type=int, default=5, help="instance pictures (default: 5)")
    one.add_argument("--heldout", type=int, default=15, help="held-out pictures in other places (default: 15)")
    one.add_argument("--size", type=int, default=64, help="side in pixels (default: 64)")
    one.set_defaults(run=_individual)


def _add_build(train: argparse.ArgumentParser) -> None:
    train.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and logs")
    train.add_argument("--output", type=Path, help="folder for the exported weights (default: the package's)")
    train.add_argument(
        "--stages",
        nargs="+",
        metavar="STAGE",
        help="only these: data tokenizer vae latents decoder unet clip flow export vit",
    )
    train.add_argument("--init", type=Path, metavar="FOLDER", help="go on from exported weights instead of random ones")
    train.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    train.add_argument(
        "--compile",
        action="store_true",
        help="compile the steps of VAE, its decoder and UNet (minutes first, then faster)",
    )
    train.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    train.add_argument("--processes", type=int, help="processes that render (default: one per core)")
    train.add_argument("--scenes", type=int, help="training scenes (default: 64000)")
    for name, what in _TRAINED.items():
        train.add_argument(f"--{name}-steps", type=int, help=f"steps of the {what} (default: the recipe's)")
    train.add_argument("--vit-steps", type=int, help="steps of the classifier's ViT (default: the recipe's)")
    train.add_argument("--seed", type=int, default=0, help="seed of all training (default: 0)")
    train.add_argument("--snapshot", action="store_true", help="only export what the denoisers' trainings have reached")
    train.set_defaults(run=_build)


def _add_report(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("--work", type=Path, required=True, help="folder for the judges and intermediate results")
    measure.add_argument("--docs", type=Path, default=Path("docs"), help="folder to write to (default: docs)")
    measure.add_argument("--weights", type=Path, help="exported weights to measure (default: the package's)")
    measure.add_argument("--images", type=int, default=1000, help="generated pictures to judge (default: 1000)")
    measure.set_defaults(run=_report)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status, as every command of the package has it."""
    args = make_parser().parse_args(arguments)
    try:
        args.run(args)
    except Stopped as stopped:
        print(f"{stopped}; run the same command again to go on", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        return 130
    except RunError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:  # the world's functions raise ValueError for what they do not draw
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
