"""python -m eval figure --subject DIR --adapter lora=OUT1 --adapter dash=OUT2 --prompts "a {} in the snow" ... OUT.png
python -m eval vtab RESULTS... [--style markdown|latex|csv] [--published] [-o FILE]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash_vision.files import replacing

from .runs import EvalError


class _Begin(argparse.Action):
    """--subject begins a block, which the --adapter and --prompts after it belong to."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        namespace.blocks = [*(namespace.blocks or []), {"subject": Path(values), "adapters": [], "prompts": []}]


class _Into(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        if not namespace.blocks:
            parser.error(f"{option} comes before any --subject; begin with --subject DIR")
        block = namespace.blocks[-1]
        if self.dest == "prompts":
            block["prompts"] += values
            return
        name, equals, folder = values.partition("=")
        if not (name and equals and folder):
            parser.error(f"--adapter is {values!r}; it takes NAME=FOLDER, such as dash=dash-out")
        block["adapters"].append((name, Path(folder)))


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m eval", description="Figures and tables from what runs left on disk.")
    commands = top.add_subparsers(dest="command", required=True)
    figure = commands.add_parser(
        "figure",
        help="inputs and, per prompt, one tile per method",
        description="The paper's figure of visual results. Repeat --subject with its --adapter and --prompts to stack "
        "subjects; {} in a prompt stands for the subject's name.",
    )
    figure.add_argument("--subject", action=_Begin, dest="blocks", metavar="DIR", help="folder of the input pictures")
    figure.add_argument(
        "--adapter", action=_Into, dest="adapters", metavar="NAME=OUT", help="a run, and its method's name"
    )
    figure.add_argument("--prompts", action=_Into, nargs="+", metavar="PROMPT", help="one tile per method for each")
    figure.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")
    figure.add_argument("--base", help="where the base is now (default: as the run says)")
    figure.add_argument("--num_inference_steps", type=int, help="sampling steps (default: the run's)")
    figure.add_argument("--guidance_scale", type=float, help="guidance (default: the run's)")
    figure.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    figure.add_argument("out", type=Path, metavar="OUT", help="the .png or .pdf to write; comes last")
    vtab = commands.add_parser("vtab", help="the accuracy table of VTAB-1k papers")
    vtab.add_argument("results", type=Path, nargs="+", metavar="RESULTS", help="result.json files, or folders of them")
    vtab.add_argument("--style", choices=("markdown", "latex", "csv"), default="markdown", help="default: markdown")
    vtab.add_argument("--published", action="store_true", help="add rows of the literature, marked as such")
    vtab.add_argument("-o", "--out", type=Path, metavar="FILE", help="write to a file instead of the terminal")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0, or 2 with one sentence on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # OUT stands last, after a list of prompts that would swallow it: set it apart.
    if words[:1] == ["figure"] and len(words) > 1 and not words[-1].startswith("-"):
        words = ["figure", *words[1:-1], "--", words[-1]]
    args = _parser().parse_args(words)
    try:
        if args.command == "figure":
            _figure(args)
        else:
            _vtab(args)
    except EvalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or args.out}", file=sys.stderr)
        return 2
    return 0


def _figure(args: argparse.Namespace) -> None:
    if not args.blocks:
        raise EvalError("no --subject; give --subject DIR --adapter NAME=OUT --prompts PROMPT ... OUT.png")
    from .figure import Block, make_figure

    blocks = [Block(b["subject"], tuple(b["adapters"]), tuple(b["prompts"])) for b in args.blocks]
    make_figure(blocks, args.out, args.seed, args.base, args.num_inference_steps, args.guidance_scale, args.device)


def _vtab(args: argparse.Namespace) -> None:
    from .vtab import table

    text, remarks = table(args.results, args.style, args.published)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    if args.out is None:
        print(text, end="")
        return
    with replacing(args.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    sys.exit(main())
