"""A run in PEFT's benchmark of image generation.

Scores a run by the protocol of PEFT's method_comparison/image-gen and writes a record in its format. --prepare fetches
the benchmark's pictures first, split as its own code splits them. docs/benchmark.md has every command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dash_vision.files.errors import InputError

NAME, HELP = "peft-benchmark", "score a run by the protocol of PEFT's benchmark of image generation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "folder", type=Path, nargs="?", metavar="RUN", help="output folder of a run of train_dreambooth.py"
    )
    parser.add_argument(
        "--params",
        type=Path,
        required=True,
        metavar="FILE",
        help="the benchmark's default_training_params.json: prompts and settings",
    )
    parser.add_argument(
        "--prepare",
        type=Path,
        metavar="DIR",
        help="write the benchmark's pictures there instead (needs the pip extra datasets)",
    )
    parser.add_argument("--test", type=Path, metavar="DIR", help="folder of the test pictures that --prepare wrote")
    parser.add_argument("--name", help="of the record (default: from the run's method, rank and seed)")
    parser.add_argument(
        "--text_encoder_out_layers",
        type=int,
        nargs="+",
        metavar="N",
        help="of FLUX.2's text encoder, while pictures are drawn (default: those of its pipeline, as in the training)",
    )
    parser.add_argument("--base", help="where the base is now (default: as the run says)")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder of the record and the sample pictures")


def run(arguments: argparse.Namespace) -> list[str]:
    """Prepare, or score and write. Raises InputError."""
    a = arguments
    if (a.prepare is None) == (a.folder is None):
        raise InputError("give a RUN to score, with --test and -o, or --prepare DIR to fetch the benchmark's pictures")
    from .params import read_params

    params = read_params(a.params)
    if a.prepare is not None:
        from .pictures import prepare

        prepare(params, a.prepare)
        return []
    for flag, given in (("--test", a.test), ("-o", a.out)):
        if given is None:
            raise InputError(f"{flag} is missing; a RUN is scored with --test DIR and -o DIR")
    from .record import score_run

    score_run(a.folder, params, a.test, a.out, a.name, a.text_encoder_out_layers, a.base, a.device)
    return []
