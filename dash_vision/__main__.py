"""python -m dash_vision export NATIVE --to diffusers|kohya|peft OUT
python -m dash_vision inspect FILE
python -m dash_vision predict ADAPTER IMAGE...      (classifiers of train_vtab.py)
python -m dash_vision merge ADAPTER OUT.safetensors (likewise, into a plain timm checkpoint)"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .core.loading import read_adapters
from .files.errors import InputError, one_line
from .files.lora import FORMATS, export_states
from .files.native import AdapterState, read_notes
from .runs.settings import reader_gone

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dash_vision", description="Look at and convert dash-vision adapters."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a native adapter as a plain LoRA of rank r + k")
    export.add_argument("native", type=Path, metavar="NATIVE", help="dash_adapter.safetensors of a run")
    export.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    export.add_argument("--to", choices=FORMATS, required=True, help="kohya is what ComfyUI and A1111 read")
    export.add_argument("--dtype", choices=DTYPES, default="fp32", help="number format of the file (default: fp32)")
    inspect = commands.add_parser("inspect", help="print what a native adapter holds")
    inspect.add_argument("file", type=Path, metavar="FILE")
    predict = commands.add_parser("predict", help="print the likeliest classes of images")
    merge = commands.add_parser("merge", help="write a trained classifier as one plain timm checkpoint")
    for command in (predict, merge):
        command.add_argument(
            "adapter", type=Path, metavar="ADAPTER", help="run folder of train_vtab.py, or a file in it"
        )
        command.add_argument("--checkpoint", metavar="FILE", help="local weights of the base (default: as trained)")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    predict.add_argument("--top", type=int, default=5, help="classes to print (default: 5)")
    merge.add_argument("out", type=Path, metavar="OUT", help="the .safetensors file to write")
    args = parser.parse_args(arguments)
    try:
        if args.command == "export":
            print(f"wrote {export_states(read_adapters(args.native), args.out, args.to, DTYPES[args.dtype])}")
        elif args.command in ("predict", "merge"):
            # Kept apart: converting adapters needs no timm.
            from .classification.trained import command_lines

            print("\n".join(map(one_line, command_lines(args))), flush=True)
        else:
            print("\n".join(map(one_line, describe(args.file))), flush=True)
    except (InputError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return reader_gone()
    except OSError as error:
        place = f"write {args.out}" if "out" in args else f"read {args.file if 'file' in args else args.adapter}"
        print(one_line(f"error: cannot {place}: {error.strerror or error}"), file=sys.stderr)
        return 2
    return 0


def describe(file: Path) -> list[str]:
    """The lines that `inspect` prints."""
    states = read_adapters(file)
    lines = [f"{file}: native dash-vision adapter, {file.stat().st_size / 1e6:.2f} MB"]
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


if __name__ == "__main__":
    sys.exit(main())
