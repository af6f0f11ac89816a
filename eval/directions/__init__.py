"""The directions of a run, beside those of random updates.

Shows the change rate of every singular value and, with --truth, how well the run's directions predict those of another
run or of full fine-tuning. Beside each result stands what random updates of the same rank give.
"""

from __future__ import annotations

import argparse
from pathlib import Path

NAME, HELP = "directions", "change rates of a run, and which directions two runs share, compared with random updates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run of LoRA or LoRA-Dash")
    parser.add_argument(
        "--truth", type=Path, metavar="PATH", help="a run, or the folder or .safetensors file of a fully tuned model"
    )
    parser.add_argument(
        "--layer", action="append", default=[], metavar="PART", help="show layers with PART in their name; repeatable"
    )
    parser.add_argument(
        "--draws", type=int, default=100, metavar="N", help="random updates a layer, 20 or more (default: 100)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random updates (default: 0)")
    parser.add_argument("--base", help="where the base is now (default: as the run says)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .png or .pdf to write")


def run(arguments: argparse.Namespace) -> list[str]:
    """Draw the analysis. Raises InputError."""
    from .analysis import Question, make_directions

    a = arguments
    make_directions(Question(a.run_folder, a.truth, tuple(a.layer), a.draws, a.seed, a.base), a.out)
    return []
