"""`dash-vision merge`: a trained adapter put into the weights of its base, as the base's own library loads them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.errors import InputError
from . import adapters
from .folders import find_run

if TYPE_CHECKING:
    import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `merge`."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="output folder of a run, or a file in it")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder to write; of a classifier a .safetensors file")
    parser.add_argument(
        "--checkpoint", "--base", metavar="ID|PATH", help="where the base is now, of a classifier its local weights"
    )
    parser.add_argument(
        "--dtype",
        choices=adapters.DTYPES,
        help="number format of a pipeline's networks (default: as the base has each)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the pipeline of a DreamBooth run, the classifier of a VTAB run, or the model that transformers' Trainer has
    trained. Raises InputError."""
    folder = find_run(args.adapter)
    if folder is not None:
        _merge_pipeline(folder, args.adapter, args.out, args.checkpoint, args.dtype)
    elif (language := _language_folder(args.adapter)) is not None:
        _merge_language(language, args.out, args.checkpoint, args.dtype)
    elif args.dtype is not None:
        raise InputError(f"--dtype {args.dtype} is of pipelines, and a classifier is written in float32; leave it out")
    else:
        adapters.classify(args)


def _language_folder(adapter: Path) -> Path | None:
    """The folder of a plain LoRA for a model of transformers, if `adapter` is one or lies in one."""
    folder = adapter if adapter.is_dir() else adapter.parent
    try:
        about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return folder if about["task_type"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _merge_language(folder: Path, out: Path, place: str | None, dtype: str | None) -> None:
    """With PEFT, from the plain LoRA of rank r + k, which holds everything, trained heads too; integrations.peft writes
    it into a folder of its own."""
    import torch
    from peft import PeftModel

    from ..bases.pretrained import load_pretrained
    from ..files.atomic import new_folder

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} is there already; give a new folder for the merged model")
    folder = max(folder.glob("plain-lora/rank-*"), key=lambda f: int(f.name.rpartition("-")[2]), default=folder)
    base = load_pretrained(folder, place)
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    merged = merged.to(getattr(torch, adapters.DTYPES[dtype])) if dtype else merged
    with new_folder(out) as temporary:
        merged.save_pretrained(temporary)
    print(f"wrote {out}: the base with the adapter in its weights; {type(merged).__name__}.from_pretrained loads it")


def _merge_pipeline(folder: Path, adapter: Path, out: Path, place: str | None, dtype: str | None) -> None:
    """Whatever the dtype, the update is added in float32 at least, and the sum is rounded once."""
    import torch

    from ..bases.recorded import check_recorded, load_recorded
    from ..files.atomic import new_folder
    from ..files.native import NATIVE_NAME
    from ..runs.record import RUN, DreamBoothRecord, read_record

    record = read_record(folder / RUN)
    if not isinstance(record, DreamBoothRecord):
        raise InputError(f"{folder / RUN} is of no DreamBooth run; give the output folder of one")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} is there already; give a new folder for the merged pipeline")
    base = load_recorded(record.base, folder, place, quantize="none")
    for note in check_recorded(base, record.base, folder, place):
        print(note)
    merged = _put_in(base.components(), adapter if adapter.is_file() else adapter / NATIVE_NAME)
    formats = {}
    for name, network in base.components().items():
        formats[name] = getattr(torch, adapters.DTYPES[dtype]) if dtype else base.stored_dtype(name)
        torch.nn.Module.to(network, formats[name])  # diffusers' own warns of networks that list no exception
    with new_folder(out) as temporary:
        base.pipeline.save_pretrained(temporary)
    kind = base.family.pipeline_class
    said = " and ".join(f"{name} ({str(formats[name]).removeprefix('torch.')})" for name in merged)
    print(f"wrote {out}: the base with the adapter in its {said}; {kind}.from_pretrained loads it")


def _put_in(networks: dict[str, torch.nn.Module], adapter: Path) -> list[str]:
    """Put the adapters of a native file into the weights of the networks that they are of, and name these."""
    from ..core.adapter import fold_in
    from ..core.loading import load_adapter, read_adapters

    names = list(read_adapters(adapter))
    for name in names:
        if name not in networks:
            raise InputError(f"{adapter} has an adapter of a {name}, which the base does not have; give its own base")
        load_adapter(networks[name], adapter, component=name)
        try:
            fold_in(networks[name])
        except RuntimeError as error:  # the base has no unquantized weights, or shares them
            raise InputError(f"{adapter}: {error}") from None
    return names
