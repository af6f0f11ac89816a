"""The figure of visual results.

Shows the input pictures and, for every prompt, one tile of the base and one per method, from the same noise. Repeat
--subject with its --adapter and --prompts to stack subjects; {} in a prompt stands for the subject's name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dash_vision.files.errors import InputError

from ..blocks import add_sampling, blocks_of, sampler_of

NAME, HELP = "figure", "the training pictures, and drawings of the base and of each method for every prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sampling(parser, "one tile per method for each")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .png or .pdf to write")


def run(arguments: argparse.Namespace) -> list[str]:
    """Draw the figure; a sentence for each part that was left out. Raises InputError."""
    blocks = blocks_of(arguments)
    if not blocks:
        raise InputError("no --subject; give --subject DIR --adapter NAME=OUT --prompts PROMPT ... -o OUT.png")
    from .make import make_figure

    return make_figure(blocks, arguments.out, sampler_of(arguments))
