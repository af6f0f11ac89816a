"""What the commands that draw pictures are given: subjects with their adapters and prompts, and how to sample."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dash_vision.bases.quantization import QUANTIZATIONS
from dash_vision.runs.settings import typed_prompts


@dataclass(frozen=True)
class Block:
    """One subject: its pictures, adapters by method name in order, and prompts; "{}" stands for the subject."""

    subject: Path
    adapters: tuple[tuple[str, Path], ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Sampler:
    """How to sample. steps, guidance: None takes those of a block's first run. base: where the base is now; None: where
    the run's record says. device: None takes the GPU where there is one. dtype: of the weights, by torch's name.
    quantize: of the denoiser's; None: as the run's."""

    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    base: str | None = None
    device: str | None = None
    dtype: str = "float32"
    quantize: str | None = None


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


def add_sampling(parser: argparse.ArgumentParser, prompts: str) -> None:
    """What to sample, from which adapters, and how. prompts: the help of --prompts."""
    parser.add_argument("--subject", action=_Begin, dest="blocks", metavar="DIR", help="folder of the input pictures")
    parser.add_argument(
        "--adapter", action=_Into, dest="adapters", metavar="NAME=OUT", help="a run, and its method's name"
    )
    parser.add_argument("--prompts", action=_Into, nargs="+", metavar="PROMPT", help=prompts)
    add_sampler(parser)


def add_sampler(parser: argparse.ArgumentParser, seed: int | None = 0) -> None:
    """How to sample. seed: the default; None: the run's."""
    usual = "the run's" if seed is None else seed
    parser.add_argument("--seed", type=int, default=seed, help=f"of the starting noise (default: {usual})")
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
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="the denoiser's weights; none draws with the unquantized base (default: the run's)",
    )


def blocks_of(arguments: argparse.Namespace) -> list[Block]:
    """The blocks that were given. Raises InputError for prompts without quotes, and a file of them that is none."""
    given: Sequence[Mapping[str, Any]] = arguments.blocks or []
    return [Block(b["subject"], tuple(b["adapters"]), tuple(typed_prompts(b["prompts"], "--prompts"))) for b in given]


def sampler_of(arguments: argparse.Namespace) -> Sampler:
    """How to sample, as it was given."""
    a = arguments
    return Sampler(a.seed, a.num_inference_steps, a.guidance_scale, a.base, a.device, a.dtype, a.quantize)


def add_measuring(parser: argparse.ArgumentParser, name: str) -> None:
    """What the commands take that draw and measure a run's adapters; `name` is of their folder in the run's."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="the output folder of a run of train_dreambooth.py")
    parser.add_argument(
        "--prompts", nargs="+", default=[], metavar="PROMPT", help="of the sheet's columns (default: of samples.png)"
    )
    parser.add_argument(
        "--holdout", type=Path, metavar="DIR", help="pictures to measure on (default: those that the run held out)"
    )
    parser.add_argument(
        "--eval_encoders", nargs="+", metavar="ID|PATH", help="what measures pictures (default: as in the run)"
    )
    add_sampler(parser, seed=None)
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help=f"default: RUN/{name}")
