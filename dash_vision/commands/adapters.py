"""`dash-vision export`, `inspect` and `predict`: look at adapters, convert them, use trained classifiers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..bases.quantization import QUANTIZATIONS
from ..files.errors import InputError, one_line
from . import rounding

if TYPE_CHECKING:
    from ..files.low_rank import Export
    from ..files.native import AdapterState

FORMATS = ("diffusers", "kohya", "peft")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_SHORT = {long: short for short, long in DTYPES.items()}  # torch's names are taken too
_ALL = 0.9999  # of the energy, which is written as 100.0 %


def add_export(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument(
        "native", type=Path, metavar="ADAPTER", help="run folder, or an adapter or checkpoint file of a run"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    parser.add_argument("--to", choices=FORMATS, required=True, help="kohya is what ComfyUI and A1111 read")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        type=lambda word: _SHORT.get(word, word),
        default="fp32",
        help="number format of the file (default: fp32)",
    )
    parser.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="rank of the file's layers, by the nearest matrix of that rank (default: r + k, which is exact)",
    )


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Arguments of `inspect`."""
    parser.add_argument("file", type=Path, metavar="ADAPTER", help="run folder, or an adapter or checkpoint file")
    parser.add_argument(
        "--as",
        choices=[word for word in QUANTIZATIONS if word != "none"],
        dest="word",
        help="print how much of each update survives a merge into such a base (needs the pip extra quantization)",
    )
    parser.add_argument("--base", metavar="ID|PATH", help="the base, for --as (default: as the file says)")


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Arguments of `predict`."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="run folder of train_vtab.py, or a file in it")
    parser.add_argument("--checkpoint", metavar="FILE", help="local weights of the base (default: as trained)")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=5, help="classes to print (default: 5)")


def export(args: argparse.Namespace) -> None:
    """Write a native adapter as a plain LoRA, and say which readers would leave a part of it out."""
    import torch

    from ..core.loading import read_adapters
    from ..files.lora import export_states
    from ..files.readers import infer_about, remarks

    if args.rank is not None and args.rank < 1:
        raise InputError(f"--rank is {args.rank}; it takes 1 or more")
    _check_no_own_file(args.out)
    native = _file(args.native)
    states = read_adapters(native)
    # Names of layers alone do not tell FLUX from others; the trainer noted what the adapter is of.
    about = infer_about(states) if args.to == "kohya" and _has_kohya(native) else None
    try:
        written = export_states(
            states, args.out, args.to, getattr(torch, DTYPES[args.dtype]), about=about, rank=args.rank
        )
    except ValueError as error:  # an adapter that the format cannot hold
        raise InputError(str(error)) from None
    print(f"wrote {written.path}")
    for line in _left(written, args.rank, DTYPES[args.dtype]):
        print(line)
    layers = {("unet" if name == "model" else name): state.kinds for name, state in states.items()}
    for remark in remarks(layers, args.to, infer_about(states)):
        print(f"note: {remark}")


def _check_no_own_file(out: Path) -> None:
    """Raises InputError where an export would take the place of what a run wrote of its own adapter, which its model
    card and its record tell of."""
    from ..diffusion.checkpoints import KEPT
    from ..files.lora import DIFFUSERS_NAME
    from .folders import find_run

    run = find_run(out) if out.is_dir() else None
    if run is None:
        return
    place, root = out.resolve(), run.resolve()
    files = {root: DIFFUSERS_NAME, root / KEPT / place.name: DIFFUSERS_NAME}
    files |= {root / layout: "*.safetensors" for layout in FORMATS}
    if place in files and any(out.glob(files[place])):
        raise InputError(f"{out} holds the adapter that the run in {run} wrote; give another folder to export into")


def _file(path: Path) -> Path:
    """The adapter file: `path`, or that in a run's folder."""
    from ..files.native import NATIVE_NAME

    return path / NATIVE_NAME if (path / NATIVE_NAME).is_file() else path


def _left(written: Export, rank: int | None, dtype: str) -> list[str]:
    """What a file keeps of the update, where it was asked for less than everything."""
    lines = []
    for name, (share, worst) in written.kept().items() if rank is not None else ():
        least = f"; least of {worst.name}, {_percent(worst.kept)}" if worst.kept < _ALL else ""
        lines.append(f"{name}: rank {written.rank} keeps {_percent(share)} of the update's energy{least}")
    if dtype != "float32":
        layer = written.most_rounded()
        lines.append(f"{dtype} moves a layer's update by {_percent(layer.rounded)} at most ({layer.name})")
    return lines


def _percent(share: float) -> str:
    """To four digits: a share of less than everything never reads 100 %."""
    return f"{100 * share:.4g} %" if share < _ALL else "all" if share > 1 - 1e-9 else f"{100 * share:.6g} %"


def _has_kohya(native: Path) -> bool:
    """Whether the file says that it is of a family with a kohya layout; False where it says nothing. Raises InputError
    for a family without one."""
    from ..bases.families import FAMILIES
    from ..files.native import read_notes

    name = read_notes(native).get("family")
    family = next((family for family in FAMILIES if family.name == name), None)
    if family is not None and "kohya" not in family.layouts:
        raise InputError(f"{native} is of {name}, for which no kohya layout is known; export it --to diffusers")
    return family is not None


def inspect(args: argparse.Namespace) -> None:
    """Print what a native adapter holds, or what a merge into few bits would keep of it."""
    file = _file(args.file)
    if args.word is None:
        if args.base is not None:
            raise InputError("--base does nothing without --as; add that, or leave it out")
        print("\n".join(map(one_line, describe(file))), flush=True)
        return
    for line in rounding.lines(file, args.base, args.word):
        print(one_line(line), flush=True)


def classify(args: argparse.Namespace) -> None:
    """`predict`, and `merge` of a classifier, which need timm."""
    from ..classification.trained import command_lines

    print("\n".join(map(one_line, command_lines(args))), flush=True)


def describe(file: Path) -> list[str]:
    """The lines that `inspect` prints."""
    from ..core.loading import read_adapters
    from ..files.checkpoint import CHECKPOINT
    from ..files.container import kind_of
    from ..files.native import read_notes

    states = read_adapters(file)
    what = "checkpoint of a run" if kind_of(file) == CHECKPOINT.name else "native dash-vision adapter"
    lines = [f"{file}: {what}, {file.stat().st_size / 1e6:.2f} MB"]
    lines += [f"  {key}: {_cut(str(value))}" for key, value in sorted(read_notes(file).items())]
    for name, state in states.items():
        lines += ["", *_describe_component(name, state)]
    return lines


def _describe_component(name: str, state: AdapterState) -> list[str]:
    phase = "dash (launched)" if state.launched else "pre-launch" if state.dash_k else "plain LoRA"
    compact = "compact, " if state.compact else ""
    parameters = sum(state.tensors[f"{m}.{key}"].numel() for m in state.kinds for key in ("A", "B", "dsigma"))
    lines = [
        f"{name}: {compact}{len(state.kinds)} layers, rank {state.rank}, scaling {state.scaling:g}, "
        f"dash_k {state.dash_k}, eps {state.eps:g}, {phase}",
        f"  {parameters:,} trained numbers; base fingerprint {state.fingerprint}",
    ]
    width = max(len(m) for m in state.kinds)
    if not state.launched:
        return lines + [f"  {m:<{width}}  {_shape(state, m)}" for m in state.kinds]
    lines.append(
        f"  {'layer':<{width}}  {'shape':>11}  largest |dsigma|  "
        "chosen directions (index of singular value, 0 = largest)"
    )
    for m in state.kinds:
        largest = state.tensors[f"{m}.dsigma"].abs().max().item() if state.size(m)[3] else 0.0
        chosen = " ".join(map(str, state.tensors[f"{m}.indices"].tolist()))
        lines.append(f"  {m:<{width}}  {_shape(state, m)}  {largest:>16.3g}  {chosen}")
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _shape(state: AdapterState, module: str) -> str:
    out, in_, _, _ = state.size(module)
    return f"{f'{out} x {in_}':>11}"
