"""An adapter at several strengths, as a loader scales it.

Loads the plain LoRA of a run in the stock pipeline and draws the same prompts from the same noise at every scale.
Writes a sheet (a row for each scale), curves of likeness, agreement with the prompt, drift and leak, and a table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dash_vision.measures.names import CLIP, DINOV2, NONE

from ..blocks import add_sampler, sampler_of

NAME, HELP = "strength", "an adapter at several strengths: a sheet, curves and a table"
SCALES = (0.0, 0.5, 0.75, 1.0, 1.25)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="output folder of a run of train_dreambooth.py")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=list(SCALES),
        metavar="S",
        help=f"strengths; 1 is the adapter as it was trained (default: {' '.join(f'{s:g}' for s in SCALES)})",
    )
    parser.add_argument("--prompts", nargs="+", metavar="PROMPT", help="columns of the sheet (default: the run's)")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="pictures of the subject to compare with (default: the run's own)"
    )
    parser.add_argument(
        "--eval_encoders",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"what measures: hub ids or folders, or {NONE} (default: {DINOV2} and {CLIP}; the miniature's own for it)",
    )
    add_sampler(parser)
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder of sheet, curves and table"
    )


def run(arguments: argparse.Namespace) -> list[str]:
    """Draw and measure; a sentence for each part that was left out. Raises InputError."""
    from dash_vision.runs.settings import typed_prompts

    from .make import make_strength

    a = arguments
    prompts = typed_prompts(a.prompts or [], "--prompts")
    return make_strength(a.folder, a.scales, prompts, a.pictures, a.eval_encoders, a.out, sampler_of(a))
