"""Bases in single files: of all networks, of a transformer alone, and GGUF files."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..files.errors import InputError
from . import reasons
from .families import class_of
from .family import Family
from .folders import Loaded, Wanted, load_repository, refusal
from .networks import NetworkFiles, SingleFile, quiet, read_single_file, single_file_class
from .quantization import INSTALL, check_installed
from .reasons import explained


def load_file(
    path: Path, family: Family, config: str | None, wanted: Wanted, dtype: torch.dtype
) -> tuple[Any, dict[str, SingleFile]]:
    """The pipeline of a file that holds all its networks, and where its denoiser lies."""
    word, options = wanted.words["quantize"], family.loading_options()
    check_installed(word, "--quantize")
    if wanted.words["quantize_text_encoder"] != "none":
        raise InputError("--quantize_text_encoder takes bases in folders, and this one is a single file; leave it out")
    kind = single_file_class(class_of(family), family.denoiser)
    with explained(lambda error: refusal(str(path), reasons.of_file(path, error, config))), quiet():
        if word != "none":
            place = {"config": config, "subfolder": family.denoiser} if config else {}
            options[family.denoiser] = read_single_file(kind, path, word, dtype, **place)
        pipeline = class_of(family).from_single_file(
            str(path),
            torch_dtype=torch.float32,
            **options,
            **({"config": config} if config else {}),
            **wanted.hub,
        )
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    if any(tensor.is_meta for network in networks for tensor in network.parameters()):
        raise InputError(refusal(str(path), reasons.incomplete_file()))
    denoiser = getattr(pipeline, family.denoiser)
    return pipeline, {family.denoiser: SingleFile(path, kind.__name__, dict(cast(Any, denoiser).config), word)}


def load_transformer(path: Path, config: str | None, wanted: Wanted) -> Loaded:
    """The pipeline of `config`, a hub id or folder, with the transformer that a file holds."""
    with opened(path) as file:
        keys = list(file.keys())
    if config is None or any("lora" in key for key in keys):
        unknown(path, keys)
    if Path(config).is_dir() and not (Path(config) / reasons.INDEX).is_file():
        raise InputError(f"--single_file_config {config} has no {reasons.INDEX}; give the folder of a whole base")
    loaded = load_repository(config, replace(wanted, denoiser=path))
    if loaded[1].single_files:
        raise InputError(
            f"{path} holds no whole base of {loaded[1].name}, which --single_file_config {config} is of; give a file "
            "with all its networks"
        )
    return loaded


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A single file, to look at. Raises InputError where it is none that is safe, or is damaged."""
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a .safetensors file; other formats can run code when they are opened: convert it first"
        )
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no complete .safetensors file ({error}); fetch it again") from None


def unknown(path: Path, keys: list[str]) -> NoReturn:
    raise InputError(
        f"{path} holds no whole base of Stable Diffusion 1, 2 or XL (its tensors are called {', '.join(keys[:2])}, "
        "...); for a file of a transformer alone add --single_file_config with the hub id or folder of its base, and "
        "for a LoRA give the base model instead"
    )


def load_gguf(
    path: Path, config: str | None, wanted: Wanted, dtype: torch.dtype
) -> tuple[Any, Family, dict[str, NetworkFiles], dict[str, SingleFile]]:
    """The pipeline at `config`, its denoiser from a GGUF file."""
    if config is None:
        raise InputError(
            f"{path} holds a denoiser alone; give --single_file_config with the folder or hub id of a base of its "
            "kind, which has the other parts"
        )
    word = wanted.words["quantize"]
    if word != "none":
        raise InputError(f"--quantize {word}: {path} is quantized already (gguf); leave it out")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{path} needs gguf, which is not installed: {INSTALL}")
    pipeline, family, files = load_repository(config, wanted)
    found = files.pop(family.denoiser)
    with explained(lambda error: _not_of(path, family, config, error)), quiet():
        kind = type(getattr(pipeline, family.denoiser))
        place = {"config": str(found.folder.parent), "subfolder": family.denoiser}
        denoiser = read_single_file(kind, path, "gguf", dtype, **place)
        if any(tensor.is_meta for tensor in denoiser.parameters()):
            raise ValueError("it lacks some of its tensors")
    pipeline.register_modules(**{family.denoiser: denoiser})
    single = SingleFile(path, kind.__name__, dict(cast(Any, denoiser).config), "gguf")
    return pipeline, family, files, {family.denoiser: single}


def _not_of(path: Path, family: Family, config: str, error: Exception) -> str:
    """What to say of a GGUF file that does not fit."""
    general = reasons.needed(error) or reasons.disk(error)
    why = "it lacks some of its tensors" if "meta tensor" in str(error) else reasons.quoted(error)
    return general or (
        f"{path} is no GGUF file of the {family.denoiser} of {config}, a {family.name} ({why}); give "
        "--single_file_config with a base of the file's own family and size"
    )
