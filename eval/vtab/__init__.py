"""The accuracy table of VTAB-1k papers.

Prints the table of the results in RESULTS, with means over seeds. A column's best is bold where two rows have two
seeds or more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

NAME, HELP = "vtab", "table of accuracies, laid out as in VTAB-1k papers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULTS", help="result.json files, or folders of them"
    )
    parser.add_argument("--style", choices=("markdown", "latex", "csv"), default="markdown", help="default: markdown")
    parser.add_argument("--published", action="store_true", help="add rows of the literature, marked as such")
    parser.add_argument("--compact", action="store_true", help="leave out the columns without a measured number")
    parser.add_argument(
        "--against", metavar="ROW", help="set the other rows against this one, by task and seed (not in csv)"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write to a file instead of the terminal")


def run(arguments: argparse.Namespace) -> list[str]:
    """Print or write the table; a sentence for each result that was left out. Raises InputError."""
    from dash_vision.files.atomic import write_text

    from ..saving import check_output
    from .table import table

    a = arguments
    if a.out is not None:
        check_output(a.out)
    text, remarks, problems = table(a.results, a.style, a.published, a.compact, a.against)
    if a.out or a.style == "csv":  # else the terminal shows them in the table
        for remark in remarks:
            print(f"note: {remark}", file=sys.stderr)
    if a.out is None:
        print(text, end="")
        return problems
    write_text(a.out, text)
    print(f"wrote {a.out}")
    return problems
