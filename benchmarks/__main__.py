"""python -m benchmarks NAME [--device cpu|cuda] [--dtype float32|bfloat16] [--json FILE]

NAME is layer, step, memory, launch, dreambooth, vtab, load, scale, exactness or gpu; `python -m benchmarks NAME --help`
lists each one's settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dash_vision.bases.quantization import QUANTIZATIONS
from dash_vision.files.errors import InputError

from .measure import DTYPES, Settings, Table, publish

HELP = {
    "layer": "forward and backward of one adapted projection",
    "step": "a whole training step",
    "memory": "peak memory of a training step",
    "launch": "how long training stands still at the launch",
    "dreambooth": "pictures a second of train_dreambooth.py",
    "vtab": "seconds of a whole task of train_vtab.py",
    "load": "size of adapter files, and time to load them",
    "scale": "time against tokens, width, rank, k, layers and processes",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a benchmark and print its tables."""
    args = make_parser().parse_args(arguments)
    try:
        if args.name == "exactness":
            from .exactness import report

            report(args.width, args.rank, args.dash_k)
            return 0
        if args.name == "gpu":
            from .gpu import measure

            return 0 if measure(args.device, args.minutes, args.out) else 1
        rounds = args.rounds or (15 if args.device == "cpu" else 50)
        word = getattr(args, "quantize", "none")
        settings = Settings(torch.device(args.device), DTYPES[args.dtype], rounds, args.clock, word)
        publish(args.name, _measure(args, settings), settings, args.json)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        flag = "out" if args.name == "gpu" else "json"
        print(
            f"error: cannot write {getattr(args, flag)}: {error.strerror or error}; give another --{flag}",
            file=sys.stderr,
        )
        return 2
    return 0


def _measure(args: argparse.Namespace, settings: Settings) -> list[Table]:
    # Each needs other libraries; only those of the one asked for are loaded.
    if args.name == "layer":
        from . import layer

        return layer.measure(settings, args.rank, args.dash_k, args.tokens, args.shapes or list(layer.SHAPES))
    if args.name == "scale":
        from . import scale

        return scale.measure(settings, args.tokens, args.processes)
    if args.name in ("dreambooth", "vtab"):
        from . import trainers

        if args.name == "dreambooth":
            given = (args.base, args.shape, args.width, args.side, args.rank, args.dash_k, args.steps, args.compile)
            return trainers.dreambooth(settings, *given)
        words = (args.task, args.data_root, args.model, args.rank, args.dash_k, args.epochs, args.workers)
        return trainers.vtab(settings, *words)
    from .models import Size

    size = Size(args.width, args.depth, args.batch, args.side)
    if args.name == "launch":
        from . import launch

        return launch.measure(settings, args.models, size, args.rank, args.dash_k, args.ways)
    if args.name == "load":
        from . import load

        return load.measure(settings, size, args.rank, args.dash_k, not args.sizes)
    from . import step

    run = step.measure_time if args.name == "step" else step.measure_memory
    return run(settings, args.models, size, args.rank, args.dash_k)


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements, one command each.")
    commands = parser.add_subparsers(dest="name", required=True)
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        _add_common(command)
        if name in ("layer", "scale"):
            command.add_argument("--tokens", type=_share, default=1.0, metavar="X", help="share of the real tokens")
        if name == "scale":
            command.add_argument("--processes", type=_positive, nargs="*", default=[1, 2], metavar="N")
        else:
            command.add_argument("--rank", type=_positive, default=8)
            command.add_argument("--dash_k", type=_positive, default=8)
        _ADD.get(name, _add_models)(command, name)
    exactness = commands.add_parser(
        "exactness", help="how far stock loaders' outputs are from the trained model's, SD- and SDXL-shaped"
    )
    exactness.add_argument("--width", type=float, default=0.5, help="share of the real channels (default: 0.5)")
    exactness.add_argument("--rank", type=int, default=4)
    exactness.add_argument("--dash_k", type=int, default=8)
    gpu = commands.add_parser("gpu", help="what there is to know of one GPU, in some minutes")
    gpu.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="cpu: a try with tiny networks")
    gpu.add_argument("--minutes", type=_positive, default=5, metavar="N", help="begin no part later (default: 5)")
    gpu.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="DIR", help="default: gpu-results")
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="of the frozen weights")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the tables there too")
    command.add_argument("--rounds", type=_positive, metavar="N", help="rounds to take medians of; 15, on CUDA 50")
    command.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine in use")


def _add_layer(command: argparse.ArgumentParser, name: str) -> None:
    from .layer import SHAPES

    command.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="NAME", help=f"of {', '.join(SHAPES)}")


def _add_models(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument("--width", type=_share, default=1.0, help="share of the UNets' channels")
    command.add_argument("--side", type=_positive, default=64, help="of the latents; at full size 128 for all but sd15")
    command.add_argument("--depth", type=_positive, default=12, help="blocks of the ViT")
    command.add_argument("--batch", type=_positive, default=8, help="pictures for the ViT")
    if name == "load":
        command.add_argument("--sizes", action="store_true", help="sizes of the files alone, which takes no launch")
    else:
        models = ("vit", "sd15", "sdxl", "flux2", "z-image", "qwen-image")
        command.add_argument("--models", nargs="+", choices=models, default=list(models[:3]))
    if name in ("step", "memory"):
        command.add_argument("--quantize", choices=QUANTIZATIONS, default="none", help="how linear layers are kept")
    if name == "launch":
        from .launch import WAYS

        help_ = "SVDs of the largest weights take many minutes"
        command.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help=help_)


def _add_dreambooth(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument("--base", metavar="NAME", help="hub id, folder or file; the miniature where left out")
    command.add_argument("--shape", choices=("sd15",), help="random weights in this shape instead of --base")
    command.add_argument("--width", type=_share, default=1.0, help="with --shape: share of the UNet's channels")
    command.add_argument("--side", type=_positive, default=64, help="with --shape: of the latents")
    command.add_argument("--steps", type=_positive, default=20, help="steps timed at once")
    command.add_argument("--compile", action="store_true", help="the trainer with --compile")


def _add_vtab(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument("--task", default="caltech101", help="a task on disk")
    command.add_argument("--data_root", metavar="DIR", help="$VTAB_ROOT or data/vtab-1k where left out")
    command.add_argument("--model", default="miniature", help="miniature, or a timm name (random weights)")
    command.add_argument("--epochs", type=_positive, default=4)
    command.add_argument("--workers", type=int, default=0, help="of the plain loop's DataLoader")


def _add_nothing(command: argparse.ArgumentParser, name: str) -> None:
    """The command has the common settings only."""


# What a command has beside the common settings; the others take models and their sizes.
_ADD = {"layer": _add_layer, "scale": _add_nothing, "dreambooth": _add_dreambooth, "vtab": _add_vtab}


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it takes a whole number of 1 or more, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"it takes a number above 0 and up to 1, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
