"""`dash-vision merge`: a trained adapter put into the weights of its base, as the base's own library loads them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        help="number format of the networks (default: as the base has each)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the pipeline of a DreamBooth run, the classifier of a VTAB run, or the model that transformers' Trainer has
    trained. Raises InputError."""
    from ..files.native import NATIVE_NAME
    from ..runs.record import record_file

    folder = find_run(args.adapter)
    if folder is not None:
        _merge_pipeline(folder, args.adapter, args.out, args.checkpoint, args.dtype)
    elif (language := _language_folder(args.adapter)) is not None:
        _merge_language(language, args.out, args.checkpoint, args.dtype)
    elif args.adapter.is_dir() and not (record_file(args.adapter) or (args.adapter / NATIVE_NAME).is_file()):
        checkpoints = sorted(path.parent.name for path in args.adapter.glob("*/adapter_config.json"))
        said = f"its {checkpoints[-1]}" if checkpoints else "the output folder of a run"
        raise InputError(f"{args.adapter} is a folder without a trained model; give {said}, or a file in it")
    elif args.dtype is not None:
        raise InputError(
            f"--dtype {args.dtype} is for pipelines and language models, and a classifier is written in float32; "
            "leave it out"
        )
    else:
        adapters.classify(args)


def _language_folder(adapter: Path) -> Path | None:
    """The folder of a plain LoRA for a model of transformers, if `adapter` is one or lies in one. Raises InputError for
    one that does not tell which kind of model it is for."""
    folder = adapter if adapter.is_dir() else adapter.parent
    try:
        about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        task, base = about["task_type"], about["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if task is None and base:
        raise InputError(
            f"{folder / 'adapter_config.json'} names no task_type, so that nothing tells which class of transformers "
            'its base has; write it into the file, such as "task_type": "CAUSAL_LM"'
        )
    return folder if task else None


def _merge_language(folder: Path, out: Path, place: str | None, dtype: str | None) -> None:
    """From the native file where there is one, else with PEFT from the plain LoRA of rank r + k, which holds
    everything, trained heads too; integrations.peft writes it into a folder of its own."""
    import torch

    from ..bases.pretrained import load_pretrained
    from ..files.atomic import new_folder
    from ..files.native import NATIVE_NAME

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} is there already; give a new folder for the merged model")
    folder = max(folder.glob("plain-lora/rank-*"), key=lambda f: int(f.name.rpartition("-")[2]), default=folder)
    merged, base_dtype = load_pretrained(folder, place)
    if (folder / NATIVE_NAME).is_file():
        _fold(merged, folder / NATIVE_NAME)
    else:
        merged = _with_peft(merged, folder)
    wanted = getattr(torch, adapters.DTYPES[dtype]) if dtype else base_dtype
    name = type(merged).__name__
    _check_fits(name, merged, wanted)
    merged = merged.to(wanted)
    with new_folder(out) as temporary:
        merged.save_pretrained(temporary)
    said = str(wanted).removeprefix("torch.")
    print(f"wrote {out}: the base with the adapter in its weights ({said}); {name}.from_pretrained loads it")


def _with_peft(base: Any, folder: Path) -> Any:
    """The base with a plain LoRA of PEFT in its weights. PEFT itself says nothing of layers that the base lacks, and of
    another base, and writes an update of one layer into all that share its weight. Raises InputError."""
    from peft import PeftModel

    from ..core.targets import base_of, shared_parameters
    from ..core.weights import matrix_shape, weight_matrix
    from ..files.container import ENTRY, read_safetensors

    path = folder / "adapter_model.safetensors"
    header, tensors = read_safetensors(path)
    modules, begin, end = dict(base.named_modules()), "base_model.model.", ".lora_A.weight"
    names = [key.removeprefix(begin).removesuffix(end) for key in tensors if key.endswith(end)]
    shared = shared_parameters(base)
    for name in names:
        layer = modules.get(name)
        if layer is None or not hasattr(layer, "weight"):
            raise InputError(f"{path} was trained on another base: {_the_base(base)} has no layer {name}")
        up, down = tensors[f"{begin}{name}.lora_B.weight"], tensors[f"{begin}{name}{end}"]
        if tuple(matrix_shape(base_of(layer))) != (len(up), down.shape[1]):
            raise InputError(f"{path} was trained on another base: {name} of {_the_base(base)} has another size")
        if id(layer.weight) in shared:
            raise InputError(
                f"{path}: cannot merge: the weight of {name} is shared with another module of the model, which would "
                "change too; load the LoRA beside the base instead"
            )
    _note_other_base(header.get(ENTRY), {name: weight_matrix(modules[name]) for name in names}, path)
    return PeftModel.from_pretrained(base, folder).merge_and_unload()


def _the_base(base: Any) -> str:
    return base.config.name_or_path or f"the {type(base).__name__}"


def _note_other_base(provenance: str | None, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Say where the base has other weights than those that the file was trained on, in whatever format it was loaded
    then; a file of others does not tell."""
    import torch

    from ..files.fingerprints import fingerprint, probe_matrix

    try:
        (about,) = json.loads(provenance or "{}").values()
        expected = about["base_fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if fingerprint({name: probe_matrix(weight.to(dtype)) for name, weight in weights.items()}) == expected:
            return
    print(
        f"note: {path} was trained on other weights than this base has, or on a quantized base; the merged model is "
        "what was trained only in the latter case"
    )


def _check_fits(name: str, network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Raises InputError where a finite number of a network would become infinite in a format."""
    import torch

    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and bool((torch.isfinite(tensor) & ~torch.isfinite(tensor.to(dtype))).any()):
            word = str(dtype).removeprefix("torch.")
            raise InputError(
                f"{key} of the merged {name} holds numbers too large for {word}; give --dtype bf16 or fp32 instead"
            )


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
        _check_fits(name, network, formats[name])
        torch.nn.Module.to(network, formats[name])  # diffusers' own warns of networks that list no exception
    with new_folder(out) as temporary:
        base.pipeline.save_pretrained(temporary)
    kind = base.family.pipeline_class
    said = " and ".join(f"{name} ({str(formats[name]).removeprefix('torch.')})" for name in merged)
    print(f"wrote {out}: the base with the adapter in its {said}; {kind}.from_pretrained loads it")


def _put_in(networks: dict[str, torch.nn.Module], adapter: Path) -> list[str]:
    """Put the adapters of a native file into the weights of the networks that they are of, and name these."""
    from ..core.loading import read_adapters

    names = list(read_adapters(adapter))
    for name in names:
        if name not in networks:
            raise InputError(f"{adapter} has an adapter of a {name}, which the base does not have; give its own base")
        _fold(networks[name], adapter, name)
    return names


def _fold(network: torch.nn.Module, adapter: Path, component: str | None = None) -> None:
    """Put the adapter of a native file into a network's weights. Raises InputError."""
    from ..core.adapter import fold_in
    from ..core.loading import load_adapter

    load_adapter(network, adapter, component=component)
    try:
        fold_in(network)
    except RuntimeError as error:  # the base has no unquantized weights, or shares them
        raise InputError(f"{adapter}: {error}") from None
