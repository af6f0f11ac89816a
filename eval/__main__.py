"""python -m eval figure --subject DIR --adapter lora=OUT1 --adapter dash=OUT2 --prompts "a {} in the snow" -o OUT.png
python -m eval vtab RESULTS... [--style markdown|latex|csv] [--published] [-o FILE]
python -m eval curves RUNS... -o OUT.png
python -m eval report RUNS... -o report.html
python -m eval subject --subject DIR --adapter lora=OUT1 --adapter dash=OUT2 -o OUT
python -m eval directions RUN [--truth RUN_OR_FULL] -o OUT.png

Exit status: 0; 1 when something was left out, one sentence for each on stderr; 2 when nothing could be made.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash_vision.files.atomic import write_text

from .prompts import CLIP, DINO, PICTURES_PER_PROMPT, PROMPT_LISTS
from .runs import InputError, check_output


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


def make_parser(prog: str = "python -m eval") -> argparse.ArgumentParser:
    """What the commands take. prog: what the program calls itself."""
    top = argparse.ArgumentParser(prog=prog, description="Figures and tables from what runs left on disk.")
    commands = top.add_subparsers(dest="command", required=True)
    figure = commands.add_parser(
        "figure",
        help="inputs and, per prompt, one tile per method",
        description="The paper's figure of visual results. Repeat --subject with its --adapter and --prompts to stack "
        "subjects; {} in a prompt stands for the subject's name.",
    )
    _add_sampling(figure, "one tile per method for each")
    figure.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .png or .pdf to write")
    figure.set_defaults(run=_figure)
    vtab = commands.add_parser("vtab", help="the accuracy table of VTAB-1k papers")
    vtab.add_argument("results", type=Path, nargs="+", metavar="RESULTS", help="result.json files, or folders of them")
    vtab.add_argument("--style", choices=("markdown", "latex", "csv"), default="markdown", help="default: markdown")
    vtab.add_argument("--published", action="store_true", help="add rows of the literature, marked as such")
    vtab.add_argument("--compact", action="store_true", help="leave out the columns without a measured number")
    vtab.add_argument(
        "--against", metavar="ROW", help="set the other rows against this one, by task and seed (not in csv)"
    )
    vtab.add_argument("-o", "--out", type=Path, metavar="FILE", help="write to a file instead of the terminal")
    vtab.set_defaults(run=_vtab)
    _add_curves(commands)
    _add_report(commands)
    _add_subject(commands)
    _add_directions(commands)
    return top


def _add_sampling(parser: argparse.ArgumentParser, prompts: str) -> None:
    """What to sample, from which adapters, and how."""
    parser.add_argument("--subject", action=_Begin, dest="blocks", metavar="DIR", help="folder of the input pictures")
    parser.add_argument(
        "--adapter", action=_Into, dest="adapters", metavar="NAME=OUT", help="a run, and its method's name"
    )
    parser.add_argument("--prompts", action=_Into, nargs="+", metavar="PROMPT", help=prompts)
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")
    parser.add_argument("--base", help="where the base is now (default: as the run says)")
    parser.add_argument("--num_inference_steps", type=int, help="sampling steps (default: the run's)")
    parser.add_argument("--guidance_scale", type=float, help="guidance (default: the run's)")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the weights while drawing; half of it takes half of a GPU's memory (default: float32)",
    )


def _add_subject(commands: Any) -> None:
    subject = commands.add_parser(
        "subject",
        help="the DreamBooth protocol: DINO, CLIP-I and CLIP-T",
        description="Draws 4 pictures for each of the protocol's 25 prompts with every adapter and with the base "
        "alone, and scores them. Pictures that are there already are kept. Under `accelerate launch -m eval subject "
        "...` the processes share the work.",
    )
    _add_sampling(subject, "instead of the protocol's list; {} stands for the subject")
    subject.add_argument("--prompt_list", choices=tuple(PROMPT_LISTS), help="default: live for cats and dogs")
    subject.add_argument(
        "--images_per_prompt", type=int, default=PICTURES_PER_PROMPT, metavar="N", help="default: %(default)s"
    )
    subject.add_argument("--batch_size", type=int, default=4, metavar="N", help="pictures at once (default: 4)")
    subject.add_argument(
        "--clip", metavar="NAME", help=f"hub id or folder (default: {CLIP}; the miniature's own for it)"
    )
    subject.add_argument(
        "--dino", metavar="NAME", help=f"timm model, or none (default: {DINO}; the miniature's own ViT for it)"
    )
    subject.add_argument("--dino_checkpoint", metavar="FILE", help="its weights (.safetensors), instead of the hub's")
    subject.add_argument(
        "--keep_token", action="store_true", help="compare CLIP-T with the prompt that has the rare word"
    )
    subject.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of pictures and result")
    subject.set_defaults(run=_subject)


def _add_curves(commands: Any) -> None:
    curves = commands.add_parser("curves", help="loss and accuracy against step; what the dash learned, and where")
    curves.add_argument(
        "runs", type=Path, nargs="+", metavar="RUNS", help="output folders of runs, or folders that hold some"
    )
    curves.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .png or .pdf to write")
    curves.set_defaults(run=_curves)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="one page of pictures, tables, curves and settings")
    report.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUNS",
        help="output folders of runs and of `eval subject`, folders that hold some, and .png files of `eval figure`",
    )
    report.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .html to write")
    report.set_defaults(run=_report)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m eval") -> int:
    """Run a command; the exit status."""
    args = make_parser(prog).parse_args(arguments)
    # What libraries say that is no news to the user; before they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    first = os.environ.get("RANK", "0") == "0"  # every process finds the same; one of them says it
    try:
        if args.out is not None:
            check_output(args.out, folder=args.command == "subject")
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


def _add_directions(commands: Any) -> None:
    directions = commands.add_parser(
        "directions",
        help="change rates, recall and accuracy, each beside its null baseline",
        description="Change rate against singular index and, with --truth, how well the run's directions predict those "
        "of another run or of full fine-tuning; beside each what random updates of the same rank give.",
    )
    directions.add_argument("run_folder", type=Path, metavar="RUN", help="a run of LoRA or LoRA-Dash")
    directions.add_argument(
        "--truth", type=Path, metavar="PATH", help="a run, or the folder or .safetensors file of a fully tuned model"
    )
    directions.add_argument(
        "--layer", action="append", default=[], metavar="PART", help="show layers with PART in their name; repeatable"
    )
    directions.add_argument(
        "--draws", type=int, default=100, metavar="N", help="random updates a layer, 20 or more (default: 100)"
    )
    directions.add_argument("--seed", type=int, default=0, help="of the random updates (default: 0)")
    directions.add_argument("--base", help="where the base is now (default: as the run says)")
    directions.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .png or .pdf to write")
    directions.set_defaults(run=_directions)


def _directions(args: argparse.Namespace) -> list[str]:
    from .directions import make_directions

    make_directions(args.run_folder, args.out, args.truth, args.layer, args.draws, args.seed, args.base)
    return []


def _subject(args: argparse.Namespace) -> list[str]:
    blocks = args.blocks or []
    if len(blocks) != 1:
        raise InputError(f"{len(blocks)} subjects given; this takes one --subject DIR with its --adapter NAME=OUT ...")
    import torch

    from .figure import Block
    from .subject import Protocol, evaluate

    (b,) = blocks
    prompts = tuple(b["prompts"])
    how = Protocol(
        prompts=prompts,
        prompt_list=args.prompt_list,
        images_per_prompt=args.images_per_prompt,
        seed=args.seed,
        steps=args.num_inference_steps,
        guidance=args.guidance_scale,
        batch_size=args.batch_size,
        base=args.base,
        device=args.device,
        dtype=getattr(torch, args.dtype),
        clip=args.clip,
        dino=args.dino,
        dino_checkpoint=args.dino_checkpoint,
        keep_token=args.keep_token,
    )
    return evaluate(Block(b["subject"], tuple(b["adapters"]), prompts), args.out, how)


def _curves(args: argparse.Namespace) -> list[str]:
    from .curves import make_curves

    return make_curves(args.runs, args.out)


def _report(args: argparse.Namespace) -> list[str]:
    from .report import make_report

    return make_report(args.runs, args.out)


def _figure(args: argparse.Namespace) -> list[str]:
    if not args.blocks:
        raise InputError("no --subject; give --subject DIR --adapter NAME=OUT --prompts PROMPT ... -o OUT.png")
    import torch

    from .figure import Block, make_figure

    blocks = [Block(b["subject"], tuple(b["adapters"]), tuple(b["prompts"])) for b in args.blocks]
    return make_figure(
        blocks,
        args.out,
        args.seed,
        args.base,
        args.num_inference_steps,
        args.guidance_scale,
        args.device,
        getattr(torch, args.dtype),
    )


def _vtab(args: argparse.Namespace) -> list[str]:
    from .vtab import table

    text, remarks, problems = table(args.results, args.style, args.published, args.compact, args.against)
    if args.out or args.style == "csv":  # else the terminal shows them in the table
        for remark in remarks:
            print(f"note: {remark}", file=sys.stderr)
    if args.out is None:
        print(text, end="")
        return problems
    write_text(args.out, text)
    print(f"wrote {args.out}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
