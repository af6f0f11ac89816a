"""Which checkpoint of a run to take.

Draws every adapter that the run kept with the same prompts from the same noise, measures likeness to held-out pictures
and drift from the base, and recommends one. --apply puts it in the place of the last one.
"""

from __future__ import annotations

import argparse

from dash_vision.runs.evaluation import PREFERENCES
from dash_vision.runs.settings import typed_prompts

from ..blocks import add_measuring, sampler_of

NAME, HELP = "checkpoints", "compare all adapters that a run kept, and recommend one"
LAST_STEP = "recommended"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_measuring(parser, NAME)
    parser.add_argument(
        "--prefer", choices=PREFERENCES, help="which checkpoint is recommended (default: as the run was told)"
    )
    parser.add_argument(
        "--apply",
        nargs="?",
        const=LAST_STEP,
        metavar="STEP",
        help="put the recommended adapter, or that of a step, where the last one is, which stays in RUN/adapters",
    )


def run(arguments: argparse.Namespace) -> list[str]:
    """Draw, measure and recommend; a sentence for each thing that was left out. Raises InputError."""
    from ..runs import read_run
    from .make import Wanted, compare_checkpoints

    a = arguments
    if a.seed is None:
        a.seed = read_run(a.folder, torn=a.apply is not None).record.seed
    wanted = Wanted(
        prompts=tuple(typed_prompts(a.prompts, "--prompts")),
        prefer=a.prefer,
        apply=a.apply,
        holdout=a.holdout,
        encoders=None if a.eval_encoders is None else tuple(a.eval_encoders),
        sampler=sampler_of(a),
        output=a.out,
    )
    return compare_checkpoints(a.folder, wanted)
