"""The lines of Python that load a base in diffusers as a run had it: for the model card."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..miniature import EMBEDDED, FLOW
from .loading import Base
from .reasons import INDEX, read_json

_SINGLE_FILE = ".safetensors"


def loading_lines(base: Base) -> list[str]:
    """Lines that end with the stock pipeline in `pipe`. They name files by the paths that the record has."""
    said = base.specification
    if said["name"] in EMBEDDED:
        loader = "load_flow_pipeline" if said["name"] == FLOW else "load_pipeline"
        return [f"from dash_vision.miniature import {loader}", f"pipe = {loader}()"]
    parts = (base.pipeline, base.pipeline.vae, base.pipeline.scheduler)
    pipeline, vae, scheduler = (type(part).__name__ for part in parts)
    changed = _changed_scheduler(base)
    gguf = _is_gguf(said["name"])
    alone = gguf or (_is_file(said["name"]) and not base.family.single_files)
    denoiser = type(base.denoiser).__name__
    imports = [pipeline, *([denoiser] if alone else []), *([vae] if said["vae"] else [])]
    imports += [*(["GGUFQuantizationConfig"] if gguf else []), *([scheduler] if changed else [])]
    lines = [f"from diffusers import {', '.join(sorted(imports))}"]
    if said["vae"]:
        lines.append(f"vae = {_vae(base, vae)}")
    if alone:
        where = {"config": repr(said["single_file_config"]), "subfolder": repr(base.family.denoiser)}
        if gguf:  # diffusers computes in float32 unless it is told otherwise
            where["quantization_config"] = "GGUFQuantizationConfig()"
        lines.append(f"{base.family.denoiser} = {denoiser}.{_call('from_single_file', said['name'], where)}")
    lines.append(f"pipe = {pipeline}.{_pipeline(base, alone)}")
    if changed:
        options = ", ".join(f"{key}={value!r}" for key, value in changed.items())
        lines.append(f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config, {options})")
    return lines


def _pipeline(base: Base, alone: bool) -> str:
    """alone: whether the base is a file of its denoiser, which is loaded by then."""
    said = base.specification
    options = {"vae": "vae"} if said["vae"] else {}
    absent = dict.fromkeys(_absent(base), "None")
    if alone:
        return _call(
            "from_pretrained",
            said["single_file_config"],
            {base.family.denoiser: base.family.denoiser} | options | absent,
        )
    if _is_file(said["name"]):
        options |= {"config": repr(said["single_file_config"])} if said["single_file_config"] else {}
        return _call("from_single_file", said["name"], options)
    options |= {key: repr(said[key]) for key in ("revision", "variant") if said[key]}
    options |= dict.fromkeys(_lost(Path(said["name"]), base.family.loading_options()), "None") | absent
    return _call("from_pretrained", said["name"], options)


def _absent(base: Base) -> list[str]:
    """Text encoders that the base was saved without, and their tokenizers: diffusers wants to be told of them too."""
    lacking = [name for name in base.family.text_encoders if base.files and name not in base.files]
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in lacking]
    return lacking + [name for name in tokenizers if getattr(base.pipeline, name) is None]


def _lost(folder: Path, unused: Iterable[str]) -> list[str]:
    """The unused parts that a folder's index names and the folder lacks: diffusers wants to be told of them."""
    index = read_json(folder / INDEX) or {}
    named = [part for part in unused if isinstance(index.get(part), list) and index[part][-1]]
    return [part for part in named if not (folder / part).is_dir()]


def _vae(base: Base, kind: str) -> str:
    said = base.specification
    if not _is_file(said["vae"]):
        options = {"revision": repr(said["vae_revision"])} if said["vae_revision"] else {}
        return f"{kind}.{_call('from_pretrained', said['vae'], options)}"
    # Such a file says nothing of its settings. Without a configuration diffusers takes those of SD 1.5.
    config = said["single_file_config"] if _is_file(said["name"]) else said["name"]
    where = {"config": repr(config), "subfolder": repr("vae")} if config else {}
    factor = {"scaling_factor": repr(base.pipeline.vae.config.scaling_factor)}
    return f"{kind}.{_call('from_single_file', said['vae'], where | factor)}"


def _call(method: str, name: str, options: dict[str, str]) -> str:
    arguments = [repr(name), *(f"{key}={value}" for key, value in options.items())]
    return f"{method}({', '.join(arguments)})"


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf")


def _is_file(name: str) -> bool:
    return name.endswith(_SINGLE_FILE) and Path(name).is_file()


def _changed_scheduler(base: Base) -> dict[str, Any]:
    """Settings of the sampler that the base's own files do not have: from flags, from marks of a single file,
    or because their own sampler cannot draw as the base was trained."""
    if "prediction_type" not in base.pipeline.scheduler.config:
        return {}
    said, scheduler = base.specification, base.pipeline.scheduler
    config, other = scheduler.config, type(scheduler).__name__ != base.sampler
    options: dict[str, Any] = {}
    if said["prediction_type"] or _is_file(said["name"]):
        options["prediction_type"] = config.prediction_type
    if config.get("rescale_betas_zero_snr") and (said["zero_terminal_snr"] or _is_file(said["name"]) or other):
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": config.timestep_spacing}
    return options
