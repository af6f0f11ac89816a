"""The command `dash-vision`, and `python -m dash_vision`: every program of the package under one name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .commands import adapters, generate, merge
from .files.errors import InputError, RunError
from .runs.cores import choose_threads
from .runs.faults import fail, printable_streams, report
from .runs.settings import SentenceParser
from .runs.words import underscored

Run = Callable[[Sequence[str]], int]
NAME = "dash-vision"


def _dreambooth(arguments: Sequence[str]) -> int:
    from .diffusion.command import main

    return main(arguments)


def _plan(arguments: Sequence[str]) -> int:
    from .diffusion.planning import main

    return main(arguments)


def _vtab(arguments: Sequence[str]) -> int:
    from .classification.command import main

    return main(arguments)


def _demo(arguments: Sequence[str]) -> int:
    from .commands.demo import main

    return main(arguments)


def _studio(arguments: Sequence[str]) -> int:
    from .studio.command import main

    return main(arguments)


def _eval(arguments: Sequence[str]) -> int:
    package = Path(__file__).resolve().parent
    if (package / "evaluation").is_dir():  # as it is installed
        from .evaluation.__main__ import main
    else:  # a checkout has it beside the package; another one that is installed is not asked
        sys.path.insert(0, str(package.parent))
        from eval.__main__ import main

    return int(main(arguments, f"{NAME} eval"))


# Programs with command lines of their own: name -> (what it does, its main).
PROGRAMS: dict[str, tuple[str, Run]] = {
    "demo": ("train the built-in model on five pictures of a cat, offline", _demo),
    "dreambooth": ("teach a diffusion model your subject", _dreambooth),
    "plan": ("estimate the memory of a DreamBooth run, and find flags that make it fit", _plan),
    "studio": ("train and look at results on a page in your browser", _studio),
    "vtab": ("fine-tune a vision transformer on VTAB-1k", _vtab),
    "eval": ("make figures, tables and a report from the files of runs", _eval),
}


def make_parser() -> argparse.ArgumentParser:
    top = SentenceParser(prog=NAME, description="LoRA-Dash for diffusion models and vision transformers.")
    commands = top.add_subparsers(dest="command", required=True)
    for name, (help_, _) in PROGRAMS.items():
        commands.add_parser(name, help=help_, add_help=False)
    for name, help_, add, run in (
        ("generate", "draw pictures with a trained adapter", generate.add_arguments, generate.run),
        (
            "export",
            "write an adapter as a plain LoRA of rank r + k, for other programs",
            adapters.add_export,
            adapters.export,
        ),
        ("inspect", "print what an adapter file holds", adapters.add_inspect, adapters.inspect),
        ("merge", "write the base of a run with the adapter merged into its weights", merge.add_arguments, merge.run),
        ("predict", "classify images with a trained adapter", adapters.add_predict, adapters.classify),
    ):
        parser = commands.add_parser(name, help=help_, description=help_)
        add(parser)
        parser.set_defaults(action=run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] and words[0] in PROGRAMS:
        sys.argv = [f"{NAME} {words[0]}", *words[1:]]  # what the program calls itself in its help and its errors
        return PROGRAMS[words[0]][1](words[1:])
    args = make_parser().parse_args(underscored(words))
    # What libraries say that is no news to the user; before they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    choose_threads()
    with printable_streams():
        try:
            return _act(args)
        except Exception as error:
            return fail(report(error, None, words), 1)


def _act(args: argparse.Namespace) -> int:
    try:
        args.action(args)
    except InputError as error:
        return fail(error, 2)
    except RunError as error:
        return fail(error, 1)
    except OSError as error:
        read = next((getattr(args, name) for name in ("file", "adapter", "run") if hasattr(args, name)), "")
        place = f"write {args.out}" if "out" in args else f"read {read}"
        return fail(f"cannot {place}: {error.strerror or error}", 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
