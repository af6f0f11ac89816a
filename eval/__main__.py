"""Figures, tables and a report of what runs left: python -m eval COMMAND ...

Every command is a package here with NAME, HELP, add_arguments(parser) and run(arguments), which gives a sentence for
each thing that was left out.

Exit status: 0; 1 when something was left out, one sentence for each on stderr; 2 when nothing could be made.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dash_vision.files.errors import InputError
from dash_vision.runs.settings import SentenceParser
from dash_vision.runs.words import underscored

from . import checkpoints, curves, directions, figure, peft_benchmark, report, strength, subject, vtab

COMMANDS = (figure, subject, checkpoints, strength, peft_benchmark, directions, curves, vtab, report)


def make_parser(prog: str = "python -m eval") -> argparse.ArgumentParser:
    """What the commands take. prog: what the program calls itself."""
    top = SentenceParser(prog=prog, description="Figures and tables from the files of runs.")
    commands = top.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        description = command.__doc__.split("\n\n")[-1].replace("\n", " ").strip() if command.__doc__ else None
        parser = commands.add_parser(command.NAME, help=command.HELP, description=description)
        command.add_arguments(parser)
        parser.set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None, prog: str = "python -m eval") -> int:
    """Run a command; the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    args = make_parser(prog).parse_args(underscored(words))
    # What libraries say that is no news to the user; before they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    first = os.environ.get("RANK", "0") == "0"  # every process finds the same; one of them says it
    try:
        problems = args.run(args)
    except InputError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        named = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{named}", file=sys.stderr)
        return 2
    for problem in problems if first else []:
        print(f"error: left out: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
