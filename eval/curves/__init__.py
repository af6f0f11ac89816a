"""Loss and accuracy of runs against the step; what the dash learned, and where.

Everything comes from run.json, result.json and the native adapter files; no model is loaded. One method has one colour
in all charts, and a run of the same method has other dashes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

NAME, HELP = "curves", "curves of loss and accuracy, and which singular values changed in which layers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUNS", help="output folders of runs, or folders that hold some"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .png or .pdf to write")


def run(arguments: argparse.Namespace) -> list[str]:
    """Draw the curves; a sentence for each run that was left out. Raises InputError."""
    from .make import make_curves

    return make_curves(arguments.runs, arguments.out)
