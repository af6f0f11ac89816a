"""One HTML page of what runs left on disk, which loads nothing from elsewhere.

The page has pictures, sliders between pictures from the same noise, sortable tables, curves, settings and versions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

NAME, HELP = "report", "one page with pictures, tables, curves and settings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUNS",
        help="output folders of runs and of `eval subject`, folders that hold some, and .png files of `eval figure`",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .html to write")


def run(arguments: argparse.Namespace) -> list[str]:
    """Write the page; a sentence for each thing that was left out. Raises InputError."""
    from .page import make_report

    return make_report(arguments.runs, arguments.out)
