"""Plain LoRA files for diffusers, kohya (ComfyUI, A1111) and PEFT, exact for every reader of the layout.

A trained layer is a LoRA layer of rank r + k,
    A' = [A ; V],   B' = [(alpha / r) B, U diag(dsigma)],   scale 1,
and a file may be asked for the best one of a lower rank, which is no longer exact (see low_rank).
Every module of a file gets the same rank (zero-padded) and alpha = rank: the one form that every reader, version
and hot-swap computes alike.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic import write_json
from .container import ENTRY, read_safetensors, write_safetensors
from .flux_names import fuse
from .low_rank import Export, Factors, Layer, best_of_rank, energy_of, in_format, padded, rounded
from .native import AdapterState
from .places import from_root
from .readers import About, infer_about

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
FORMATS = ("diffusers", "kohya", "peft")
_Layers = dict[str, dict[str, Factors]]  # by component and name
_WRAPPING = ("diffusers", "peft")  # whose readers wrap layers; kohya's change weights


def export_states(
    states: Mapping[str, AdapterState],
    folder: str | PathLike[str],
    format: str = "diffusers",
    dtype: torch.dtype = torch.float32,
    whole: Mapping[str, Tensor] | None = None,
    about: About | None = None,
    peft: Mapping[str, Any] | None = None,
    rank: int | None = None,
) -> Export:
    """Write states by component as a plain LoRA of rank r + k, or of a lower rank.

    whole: "module.key" -> tensor of modules that were trained whole (peft only). about: what the file says of its base
    (default: what the tensors tell). peft: further entries of PEFT's configuration. rank: at most so many in each layer
    of the file, by the best approximation; less where the updates have less. See core.loading.export_lora.
    Raises ValueError for an unknown format, a state that the format cannot hold, one that its reader would not apply,
    and values that `dtype` cannot hold.
    """
    _check(states, format, whole, rank)
    full = max(_folded_rank(s, m) for s in states.values() for m in s.kinds)
    if full == 0:
        raise ValueError("the adapter has rank 0 and was not launched: there is nothing to export")
    if format != "peft":
        states = {("unet" if n == "model" else n): s for n, s in states.items()}
    if format == "kohya" and about is None:
        _check_flux(states["transformer"].kinds if "transformer" in states else ())
    fused = format == "kohya" and "transformer" in states
    folded, layers = _whole(states, full, dtype, fused) if rank is None else _cut(states, full, dtype, fused, rank)
    size = full if rank is None else max(len(down) for parts in folded.values() for down, _ in parts.values())
    if format == "peft":
        path = _write_peft(states, folded, Path(folder), size, dtype, whole or {}, peft or {})
    else:
        about = about or infer_about(states)
        provenance = {"format": "pt", ENTRY: json.dumps(_provenance(states), sort_keys=True)}
        if format == "kohya":
            path = _write_kohya(folded, Path(folder), size, dtype, provenance, about)
        else:
            path = _write_diffusers(folded, Path(folder), size, provenance, about)
    return Export(path, size, tuple(layers))


def _check(
    states: Mapping[str, AdapterState], format: str, whole: Mapping[str, Tensor] | None, rank: int | None
) -> None:
    """Raises ValueError for what no file can be written of."""
    if format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, got {format!r}")
    if rank is not None and rank < 1:
        raise ValueError(f"the rank of a file is {rank}; it takes 1 or more")
    if whole and format != "peft":
        raise ValueError(f"the {format} format holds no whole modules; export modules_to_save with format='peft'")
    if any(s.compact for s in states.values()):
        raise ValueError(
            "a compact adapter has no directions to export without its base; load it into the base with load_adapter "
            "and export that"
        )
    bypassed = [module for s in states.values() for module in s.bypassed]
    if bypassed and format in _WRAPPING:
        more = f" and {len(bypassed) - 1} more" if len(bypassed) > 1 else ""
        raise ValueError(
            f"{format} would not apply this adapter to {bypassed[0]}{more}: it adds to what a layer gives when it is "
            "called, and this model reads the layer's weight instead; merge the adapter and save the model, or train "
            "layers that the model calls"
        )


def _check_flux(modules: Iterable[str]) -> None:
    """Raises ValueError for layers of a transformer that need not be one of FLUX, whose other names the kohya format
    has: SD 3 and Qwen-Image call layers of their blocks as FLUX does."""
    names = list(modules)
    if names and not any(name.startswith("single_transformer_blocks.") for name in names):
        raise ValueError(
            f"the kohya format has names for transformers of FLUX alone, and nothing tells that {names[0]} is a layer "
            "of one; export it to diffusers"
        )


def _folded_rank(state: AdapterState, module: str) -> int:
    _, _, rank, k = state.size(module)
    return rank + (k if state.launched else 0)


def _fold(state: AdapterState, module: str) -> Factors:
    """(A' [rank, in], B' [out, rank]) of one layer in float64; a convolution's as matrices."""
    down, up = state.factors(module)
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise ValueError(f"{module} holds NaN or infinity; retrain")
    return down, up


def _whole(
    states: Mapping[str, AdapterState], full: int, dtype: torch.dtype, fused: bool
) -> tuple[_Layers, list[Layer]]:
    """All layers in rank `full` and in `dtype`; and how far rounding moved them, in half precision. fused: those of the
    transformer as kohya's layout for FLUX joins them."""
    written, told = _Layers(), list[Layer]()
    for component, state in states.items():
        written[component] = {}
        for module, kind in state.kinds.items():
            exact = padded(_fold(state, module), full)
            small, moved = rounded(exact, dtype, module)
            written[component][module] = _kernels(small, kind)
            if dtype != torch.float32:
                told.append(Layer(component, module, energy_of(exact), rounded=moved))
    if fused:
        written["transformer"] = fuse(written["transformer"])
    return written, told


def _cut(
    states: Mapping[str, AdapterState], full: int, dtype: torch.dtype, fused: bool, rank: int
) -> tuple[_Layers, list[Layer]]:
    """The same in at most `rank`, all layers of the file in one; and what is left of each."""
    exact = {n: {m: padded(_fold(s, m), full) for m in s.kinds} for n, s in states.items()}
    if fused:
        exact["transformer"] = fuse(exact["transformer"])
    cut = {n: {m: best_of_rank(pair, rank) for m, pair in layers.items()} for n, layers in exact.items()}
    most = max(1, *(len(down) for layers in cut.values() for (down, _), _ in layers.values()))
    written, told = _Layers(), list[Layer]()
    for component, layers in cut.items():
        written[component] = {}
        for name, (pair, kept) in layers.items():
            small, moved = rounded(padded(pair, most), dtype, name)
            written[component][name] = _kernels(small, states[component].kinds.get(name))
            told.append(Layer(component, name, energy_of(exact[component][name]), kept, moved))
    return written, told


def _kernels(factors: Factors, kind: Any) -> Factors:
    """The factors as a file has them: of a convolution, whose kind is the size of its kernel, 4-dimensional ones."""
    down, up = factors
    if isinstance(kind, list):
        down, up = down.view(len(down), -1, *kind), up[:, :, None, None]
    return down.contiguous(), up.contiguous()


def _provenance(states: Mapping[str, AdapterState]) -> dict[str, Any]:
    return {
        n: {"config": s.settings, "launched": s.launched, "base_fingerprint": s.fingerprint} for n, s in states.items()
    }


def _write_diffusers(
    folded: Mapping[str, Mapping[str, Factors]],
    folder: Path,
    rank: int,
    provenance: dict[str, str],
    about: About,
) -> Path:
    tensors: dict[str, Tensor] = {}
    lora: dict[str, Any] = {}
    for component, layers in folded.items():
        for module, (down, up) in layers.items():
            key = f"{component}.{_portable(component, module)}"
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down, up
        lora[f"{component}.r"] = lora[f"{component}.lora_alpha"] = rank
        # transformers 5 calls a text encoder's layers "encoder.layers", 4 "text_model.encoder.layers"; matching is
        # by suffix, so the short name fits both.
        lora[f"{component}.target_modules"] = [_short(component, m) for m in layers]
        lora[f"{component}.rank_pattern"] = lora[f"{component}.alpha_pattern"] = {}
    path = folder / DIFFUSERS_NAME
    metadata = {"lora_adapter_metadata": json.dumps(lora, sort_keys=True), **provenance}
    _write_checked(path, tensors, {**metadata, **_modelspec(about.metadata(rank, _title(folder)))}, 2 * _count(folded))
    return path


def _modelspec(entries: Mapping[str, str]) -> dict[str, str]:
    """The entries that are no reader's own: sd-scripts' would make A1111 take this file for one of kohya's."""
    return {key: value for key, value in entries.items() if key.startswith("modelspec.")}


def _write_kohya(
    folded: Mapping[str, Mapping[str, Factors]],
    folder: Path,
    rank: int,
    dtype: torch.dtype,
    provenance: dict[str, str],
    about: About,
) -> Path:
    if "transformer" in folded:
        return _write_fused(folded, folder, rank, dtype, provenance, about)
    two = "text_encoder_2" in folded or about.base_version.startswith("sdxl")
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if two else "lora_te", "text_encoder_2": "lora_te2"}
    unknown = [c for c in folded if c not in prefixes]
    if unknown:
        raise ValueError(f"the kohya format has no name for component {unknown[0]!r}; it knows {', '.join(prefixes)}")
    tensors = {}
    for component, layers in folded.items():
        for module, (down, up) in layers.items():
            key = f"{prefixes[component]}_{_portable(component, module).replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
            tensors[f"{key}.alpha"] = _alpha(rank, dtype)
    path = folder / f"{_title(folder)}.safetensors"
    _write_checked(path, tensors, {**about.metadata(rank, _title(folder)), **provenance}, 3 * _count(folded))
    return path


def _write_fused(
    folded: Mapping[str, Mapping[str, Factors]],
    folder: Path,
    rank: int,
    dtype: torch.dtype,
    provenance: dict[str, str],
    about: About,
) -> Path:
    """The kohya format of FLUX.1, with its CLIP, and FLUX.2; see flux_names."""
    others = [component for component in folded if component not in ("transformer", "text_encoder")]
    if others:
        raise ValueError(f"the kohya format has no name for component {others[0]!r} beside a transformer")
    tensors: dict[str, Tensor] = {}
    layers = {f"lora_unet_{name}": pair for name, pair in folded["transformer"].items()}
    for module, pair in folded.get("text_encoder", {}).items():
        layers[f"lora_te1_{_portable('text_encoder', module).replace('.', '_')}"] = pair
    for key, (down, up) in layers.items():
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down.contiguous(), up.contiguous()
        tensors[f"{key}.alpha"] = _alpha(len(down), dtype)  # a scale of 1 for each rank
    path = folder / f"{_title(folder)}.safetensors"
    _write_checked(path, tensors, {**about.metadata(rank, _title(folder)), **provenance}, 3 * len(layers))
    return path


def _alpha(rank: int, dtype: torch.dtype) -> Tensor:
    """In float32 where `dtype` would round it: a reader scales by alpha / rank."""
    alpha = torch.tensor(float(rank), dtype=dtype)
    return alpha if alpha.item() == rank else torch.tensor(float(rank))


def _title(folder: Path) -> str:
    """What ComfyUI and A1111 show: the name of the run, also where the file lies in its kohya/ folder."""
    place = from_root(folder)
    return from_root(folder.parent).name if place.name == "kohya" else place.name


def _count(folded: Mapping[str, Mapping[str, Factors]]) -> int:
    return sum(map(len, folded.values()))


def _write_checked(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], expected: int) -> None:
    """Write a LoRA file and read it again: every layer has to be in it under a name of its own, unchanged.

    Raises ValueError where two layers have one name in the format, OSError where the file does not hold what was
    written.
    """
    if len(tensors) != expected:
        raise ValueError(
            f"{expected} tensors have {len(tensors)} names in {path.name}: layers whose names differ in dots and "
            "underscores alone cannot be told apart in this format; export in another one"
        )
    write_safetensors(path, tensors, metadata)
    _, written = read_safetensors(path)
    if written.keys() != tensors.keys() or not all(torch.equal(written[key], t) for key, t in tensors.items()):
        raise OSError(errno.EIO, "does not hold what was written to it", str(path))


def _write_peft(
    states: Mapping[str, AdapterState],
    folded: Mapping[str, Mapping[str, Factors]],
    folder: Path,
    rank: int,
    dtype: torch.dtype,
    whole: Mapping[str, Tensor],
    entries: Mapping[str, Any],
) -> Path:
    if len(folded) != 1:
        raise ValueError(f"the PEFT format holds one model's adapter, got {', '.join(folded)}; export each by itself")
    ((state,), (layers,)) = states.values(), folded.values()
    tensors = {}
    for module, (down, up) in layers.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    whole = state.whole | dict(whole)
    for key, tensor in whole.items():
        counted = not tensor.is_floating_point()  # counters stay as they are
        tensors[f"base_model.model.{key}"] = tensor if counted else in_format(tensor, dtype, key)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(kind == "conv1d" for kind in state.kinds.values()),
        "target_modules": _targets(layers),
        "modules_to_save": sorted({key.rpartition(".")[0] for key in whole}) or None,
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        **entries,
    }
    path = folder / "adapter_model.safetensors"
    provenance = json.dumps(_provenance(states), sort_keys=True)
    _write_checked(path, tensors, {"format": "pt", ENTRY: provenance}, 2 * len(layers) + len(whole))
    write_json(folder / "adapter_config.json", config)
    return path


def _targets(modules: Iterable[str]) -> list[str] | str:
    """PEFT's target_modules for just these modules. A list is matched by the ends of names, so that "fc" means
    "block.fc" too: names of one part alone need a regular expression."""
    names = list(modules)
    if all("." in name for name in names):
        return names
    return f"(?:{'|'.join(re.escape(name) for name in names)})"


def _portable(component: str, module: str) -> str:
    """The module's name as files have it: text encoders with the "text_model." of transformers 4."""
    return f"text_model.{module}" if component.startswith("text_encoder") and module.startswith("encoder.") else module


def _short(component: str, module: str) -> str:
    return module.removeprefix("text_model.") if component.startswith("text_encoder") else module
