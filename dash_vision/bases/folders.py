"""Bases in folders and under hub ids: the pipeline without weights, and the networks' weights when they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files.errors import InputError
from . import reasons
from .families import class_of, family_of
from .family import Family
from .networks import NetworkFiles, SingleFileNetwork, quiet
from .quantization import check_installed
from .reasons import explained

WITHOUT = "; without --pretrained_model_name_or_path the run trains on the embedded miniature"
_WEIGHTS = ["*.safetensors", "*.bin", "*.ckpt", "*.pt", "*.pth", "*.msgpack", "*.h5", "*.onnx*", "*.gguf", "*.png"]
_LIBRARIES = ("diffusers", "transformers")

# The pipeline, its family, and the files of the networks that have no weights yet.
Loaded = tuple[Any, Family, dict[str, NetworkFiles]]


@dataclass(frozen=True)
class Wanted:
    """How the files of a base are read. revision, variant: of a hub id's files. hub: further arguments of what fetches
    them. bare: networks stay without weights, which are not fetched. denoiser: a file with the weights of that network,
    which need not be among the base's own. words: how networks are quantized, by the flag that says it."""

    revision: str | None = None
    variant: str | None = None
    hub: dict[str, Any] = field(default_factory=dict)
    bare: bool = False
    denoiser: Path | None = None
    words: Mapping[str, str] = field(default_factory=dict)


def load_repository(name: str, wanted: Wanted) -> Loaded:
    import diffusers
    import huggingface_hub

    if Path(name).is_dir():
        return _load_folder(Path(name), name, wanted)
    revision, variant = wanted.revision, wanted.variant
    where = wanted.hub | ({"revision": revision} if revision else {})
    with explained(lambda error: refusal(name, reasons.of_name(name, error, revision, variant))):
        index = diffusers.DiffusionPipeline.load_config(name, **where)
        family = family_of(index, name)
        options = family.loading_options() | ({family.denoiser: None} if wanted.denoiser else {})
        if wanted.bare:
            folder = huggingface_hub.snapshot_download(
                name, revision=revision, ignore_patterns=_WEIGHTS, cache_dir=wanted.hub.get("cache_dir")
            )
        else:
            folder = diffusers.DiffusionPipeline.download(
                name, variant=variant, use_safetensors=True, **options, **where
            )
        if wanted.denoiser:  # what is fetched of it is its configuration
            kind = getattr(diffusers, index[family.denoiser][1])
            kind.load_config(name, subfolder=family.denoiser, **where)
    return _load_folder(Path(folder), name, wanted)


def _load_folder(folder: Path, name: str, wanted: Wanted) -> Loaded:
    """The pipeline in a folder, its networks without weights. name: as the user calls it."""
    import diffusers

    variant = wanted.variant
    with explained(lambda error: refusal(name, reasons.of_folder(folder, error, (), variant))):
        index = diffusers.DiffusionPipeline.load_config(str(folder))
    family = family_of(index, name)
    # diffusers wants to be told of parts that a base was saved without.
    absent = {part: None for part, kind in index.items() if kind == [None, None]}
    lacking = [part for part in ("vae", family.denoiser) if part in absent]
    if lacking:
        raise InputError(refusal(name, f"its model_index.json names no {' and no '.join(lacking)}; give a whole base"))
    options: dict[str, Any] = absent | family.loading_options()
    sources: dict[str, NetworkFiles] = {}
    parts = ("vae", family.denoiser, *(part for part in family.text_encoders if index.get(part, [None])[-1]))
    used = {part: kind for part, kind in index.items() if part not in options}
    with explained(lambda error: refusal(name, reasons.of_folder(folder, error, parts, variant, used))), quiet():
        for part in parts:
            library, kind = index[part]
            if library in _LIBRARIES:  # of others diffusers says what they are; nothing that a file names is imported
                file = wanted.denoiser if part == family.denoiser else None
                lies_here = file is None and not wanted.bare
                fault = reasons.of_part(folder / part, lies_here, variant)  # now, not when the weights are wanted
                if fault:
                    raise InputError(refusal(name, fault))
                flag = _quantized_by(part, family)
                word = wanted.words.get(flag, "none")
                files = NetworkFiles(name, folder / part, library, kind, variant, word)
                if file is not None:
                    files = SingleFileNetwork(str(file), folder / part, library, kind, None, word, file)
                if not wanted.bare:
                    _check_quantized(files, flag)
                options[part] = _empty(files)
                sources[part] = files
        pipeline = class_of(family).from_pretrained(
            str(folder), torch_dtype=torch.float32, use_safetensors=True, **options
        )
    unused = reasons.without_variant(folder, parts, variant) if variant and not wanted.bare else None
    if unused:
        raise InputError(refusal(name, unused))
    return pipeline, family, sources


def _empty(files: NetworkFiles) -> nn.Module:
    """A network without weights. Raises InputError."""
    with explained(lambda error: refusal(files.base, files.why(error))):
        return files.empty()


def _quantized_by(part: str, family: Family) -> str:
    """The flag that says how a network is quantized; "" for one that is not."""
    if part == family.denoiser:
        return "quantize"
    return "quantize_text_encoder" if part in family.text_encoders else ""


def _check_quantized(files: NetworkFiles, flag: str) -> None:
    """Raises InputError where a network is quantized on disk and shall be so once more, or its library is missing."""
    if files.quantize == "none":
        return
    if files.quantized_as is not None:
        raise InputError(
            f"--{flag} {files.quantize}: the {files.folder.name} of the base {files.base} is quantized already "
            f"({files.quantized_as}); leave it out, or give the base that it was made of"
        )
    check_installed(files.quantize, f"--{flag}")


def dtypes_of(part: str, family: Family, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes in which a network may be kept, the first in any case and the others where its files have them. VAEs
    overflow in half precision, and text encoders in float16."""
    if part == family.denoiser:
        return (dtype,)
    if part in family.text_encoders and dtype != torch.float32:
        return torch.float32, torch.bfloat16
    return (torch.float32,)


def read(files: NetworkFiles, dtypes: tuple[torch.dtype, ...]) -> nn.Module:
    """A network with its weights, in the dtype of its files if that is one of `dtypes`, else in the first of these.
    Raises InputError, for lacking tensors too: the libraries would leave random numbers there, with a warning."""
    with explained(lambda error: refusal(files.base, files.why(error))), quiet():
        stored = files.stored_dtype() if len(dtypes) > 1 else dtypes[0]
        network, missing = files.read(stored if stored in dtypes else dtypes[0])
    if missing:
        raise InputError(refusal(files.base, reasons.missing_tensors(files.folder.name, missing)))
    return network


def refusal(name: str, reason: str) -> str:
    return f"cannot load the base {name}: {reason}{WITHOUT}"
