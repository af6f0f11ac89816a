"""An adapter at several strengths, as a loader scales it.

Loads the plain LoRA of a run in the stock pipeline and draws the same prompts from the same noise at every strength.
Writes a sheet (a row for each), curves of likeness, agreement with the prompt, drift and leak, and a table.
"""

from __future__ import annotations

import argparse

from dash_vision.runs.settings import typed_prompts

from ..blocks import add_measuring, sampler_of

NAME, HELP = "strength", "draw and measure an adapter at several strengths"
SCALES = (0.0, 0.5, 0.75, 1.0, 1.25)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_measuring(parser, NAME)
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=list(SCALES),
        metavar="S",
        help=f"strengths; 1 is the adapter as it was trained (default: {' '.join(f'{s:g}' for s in SCALES)})",
    )


def run(arguments: argparse.Namespace) -> list[str]:
    """Draw and measure; a sentence for each part that was left out. Raises InputError."""
    from ..runs import read_run
    from .make import Wanted, make_strength

    a = arguments
    if a.seed is None:
        a.seed = read_run(a.folder).record.seed
    prompts = typed_prompts(a.prompts, "--prompts")
    return make_strength(a.folder, Wanted(a.scales, prompts, a.holdout, a.eval_encoders, sampler_of(a), a.out))
