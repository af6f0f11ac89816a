"""Adapters on disk: the native file, and plain LoRA for diffusers, kohya (ComfyUI, A1111) and PEFT.

Native: one .safetensors file with `component/module.key` tensors (keys A, B, dsigma, U, V, indices as in
layer.DashWeights) and one header entry, "dash_vision", of JSON: configuration, phase and layer kinds per component,
and probes of the frozen weights, by which another base is recognised. A compact file leaves out U and V: they are
computed from the base when it is loaded, and compared with "mark", one number for each direction.

Export: a trained layer is a LoRA layer of rank r + k,
    A' = [A ; V],   B' = [(alpha / r) B, U diag(dsigma)],   scale 1.
Every module of a file gets the same rank (zero-padded) and alpha = rank: the one form that every reader, version
and hot-swap computes alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from .checksum import checksum
from .decompositions import Decompositions
from .directions import singular_directions
from .files import replacing, write_json
from .inject import KEYS, Adapter, DashConfig, find_targets, inject
from .layer import DashLinear, is_conv1d, weight_matrix
from .sharding import whole

NATIVE_NAME = "dash_adapter.safetensors"
DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
FORMATS = ("diffusers", "kohya", "peft")
_COMPACT_KEYS = ("A", "B", "dsigma", "indices", "mark")
_HEADER = "dash_vision"
_WHOLE = "whole:"  # before the keys of modules that are kept whole
_VERSION = 1
_PROBES = 4
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Probes of the same weights stored in bf16 differ by about 1e-3 of the weight's norm (rms over layers); those of a
# fine-tuned base by 1e-2 and more.
_SAME_BASE = 4e-3
# Marks of the same direction differ by float32's rounding, 1e-6; those of a base in bf16 by 1e-2 and more.
_SAME_DIRECTION = 1e-3


class AdapterFileError(ValueError):
    """An adapter file that cannot be used: what was found, what was expected, what to do."""


@dataclass
class AdapterState:
    """One adapter apart from any model. tensors: "module.key" -> CPU tensor; kinds: module -> "linear", "conv1d"
    or [kh, kw]; probes: module -> [norm, probe_1, ...] of the frozen weight; whole: "module.key" -> tensor of modules
    that were trained whole beside the adapter, such as a classification head."""

    config: DashConfig
    launched: bool
    tensors: dict[str, Tensor]
    kinds: dict[str, Any]
    probes: dict[str, list[float]]
    whole: dict[str, Tensor] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """12 hex digits that name the frozen weights an adapter was trained on."""
        return fingerprint(self.probes)

    @property
    def compact(self) -> bool:
        """Whether it lacks U and V, as the states of compact files do; they have a "mark" instead."""
        return all(f"{module}.mark" in self.tensors for module in self.kinds)

    def size(self, module: str) -> tuple[int, int, int, int]:
        """(out, in, rank, k) of a layer."""
        A, dsigma = self.tensors[f"{module}.A"], self.tensors[f"{module}.dsigma"]
        return self.tensors[f"{module}.B"].shape[0], A.shape[1], A.shape[0], dsigma.shape[0]


def adapter_state(adapter: Adapter, modules_to_save: Mapping[str, nn.Module] | None = None) -> AdapterState:
    """A snapshot of `adapter` on the CPU, and of fully trained modules by name beside it; every rank has to call it
    where FSDP has split the model."""
    tensors = {key: t.to("cpu", copy=True).contiguous() for key, t in adapter.state_dict().items()}
    kinds = {name: _kind(layer.base) for name, layer in adapter.layers.items()}
    probes = {name: probe_weight(layer) for name, layer in adapter.layers.items()}
    whole_modules = _tensors_of(modules_to_save or {})
    return AdapterState(adapter.config, adapter.launched, tensors, kinds, probes, whole_modules)


# -- native files


def save_adapters(
    adapters: Adapter | Mapping[str, Adapter],
    path: str | PathLike[str],
    notes: Mapping[str, Any] | None = None,
    modules_to_save: Mapping[str, nn.Module] | None = None,
    compact: bool = False,
) -> None:
    """Write one adapter, or several by component name ("unet", "text_encoder", ...), to a native file.

    A single adapter's component is called "model". `notes` (JSON values) are kept in the header. modules_to_save:
    fully trained modules by name, such as a classification head; `load_adapter` puts them back (one adapter only).
    compact: leave out U and V, for a file little larger than that of LoRA of rank r. Loading it decomposes the
    base's weights again, which takes as long as a launch and needs them as they were at the launch, unrounded; it
    cannot be exported without the base. The same adapters give the same bytes.
    """
    if isinstance(adapters, Adapter):
        adapters = {"model": adapters}
    if modules_to_save and len(adapters) != 1:
        raise ValueError(f"modules_to_save go with one adapter, got {', '.join(adapters)}; save each by itself")
    states = {name: adapter_state(a, modules_to_save) for name, a in adapters.items()}
    if compact:
        for state in states.values():
            state.tensors = _compacted(state)
    write_native(states, path, notes)


def _compacted(state: AdapterState) -> dict[str, Tensor]:
    kept = {key: t for key, t in state.tensors.items() if key.rpartition(".")[2] in _COMPACT_KEYS}
    return kept | {f"{module}.mark": _mark(state.tensors[f"{module}.V"]) for module in state.kinds}


def _mark(V: Tensor) -> Tensor:
    """V [k, in] times a fixed vector: [k], float32, of the size of 1, by which each direction is recognised."""
    return (V.double() @ torch.cos(torch.arange(V.shape[1], dtype=torch.float64) ** 2)).float()


def _tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """`module.key` -> CPU copy of every tensor of the modules."""
    return {
        f"{name}.{key}": whole(t).to("cpu", copy=True).contiguous()
        for name, module in modules.items()
        for key, t in module.state_dict().items()
    }


def write_native(
    states: Mapping[str, AdapterState], path: str | PathLike[str], notes: Mapping[str, Any] | None = None
) -> None:
    """The states of `read_native` to a file."""
    components = {
        name: {"config": s.config.to_dict(), "launched": s.launched, "kinds": s.kinds, "probes": s.probes}
        for name, s in states.items()
    }
    header = {"version": _VERSION, "components": components, "notes": dict(notes or {})}
    tensors = {f"{name}/{key}": t for name, s in states.items() for key, t in s.tensors.items()}
    tensors |= {f"{name}/{_WHOLE}{key}": t for name, s in states.items() for key, t in s.whole.items()}
    header["checksum"] = checksum(components, tensors)
    _write(path, tensors, {_HEADER: json.dumps(header)})


def read_native(path: str | PathLike[str]) -> dict[str, AdapterState]:
    """Component name -> AdapterState of a native file, checked whole before anything is returned.

    Raises AdapterFileError for a missing, truncated or foreign file and for one whose content contradicts itself.
    """
    header, tensors = _read(path)
    try:
        if header["version"] != _VERSION:
            raise AdapterFileError(
                f"{path} has native format version {header['version']!r}, this dash-vision reads version {_VERSION}; "
                "update dash-vision"
            )
        states = {}
        for name, c in header["components"].items():
            prefix = f"{name}/"
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            whole = {k.removeprefix(_WHOLE): own.pop(k) for k in list(own) if k.startswith(_WHOLE)}
            config = DashConfig(**c["config"])
            states[name] = AdapterState(config, c["launched"], own, dict(c["kinds"]), dict(c["probes"]), whole)
        extra = len(tensors) - sum(len(s.tensors) + len(s.whole) for s in states.values())
        if extra or not states:
            raise ValueError(f"{extra} tensors belong to no component")
        for state in states.values():
            _check(state)
        # The first files that were written had none.
        if header.get("checksum") not in (None, checksum(header["components"], tensors)):
            raise ValueError("the checksum does not fit: bytes were changed on the disk or on the way")
    except AdapterFileError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise AdapterFileError(
            f"{path} is damaged: its header and its tensors contradict each other ({error}); use another copy"
        ) from None
    return states


def read_notes(path: str | PathLike[str]) -> dict[str, Any]:
    """The notes that `save_adapters` kept in the header."""
    notes = _read(path)[0].get("notes")
    return notes if isinstance(notes, dict) else {}


def load_adapter(
    model: nn.Module,
    path: str | PathLike[str],
    name: str = "default",
    component: str | None = None,
    check_base: bool = True,
) -> Adapter:
    """Put the adapter of a native file into `model` and make it the active one; modules that the file keeps whole (a
    classification head) are written over the model's own, and stay when the adapter is removed.

    `component` chooses among several in the file. Shapes, layers and the frozen weights are compared first: on
    another base the file's directions mean nothing. check_base=False leaves out the comparison of the weights
    (for a base known to be a light variant of the one trained on). Raises AdapterFileError and leaves the model
    untouched when something does not fit.
    """
    states = read_native(path)
    if component is None and len(states) > 1:
        raise AdapterFileError(f"{path} holds adapters for {', '.join(states)}; name one with component=...")
    if component is not None and component not in states:
        raise AdapterFileError(f"{path} holds no adapter for {component!r}, only for {', '.join(states)}")
    state = states[component] if component else next(iter(states.values()))
    try:
        layers = find_targets(model, list(state.kinds))
    except ValueError as error:
        raise AdapterFileError(f"{path} was trained on another kind of model: {error}") from None
    layers = {module: layers[module] for module in state.kinds if module in layers}
    if len(layers) < len(state.kinds):
        missing = next(m for m in state.kinds if m not in layers)
        raise AdapterFileError(f"{path} was trained on another kind of model: this one has no layer {missing}")
    for module, layer in layers.items():
        found = tuple(weight_matrix(layer.base if isinstance(layer, DashLinear) else layer).shape)
        out, in_, _, _ = state.size(module)
        if found != (out, in_):
            raise AdapterFileError(
                f"{path} does not fit: {module} is {out} x {in_} in the file, {found[0]} x {found[1]} in the model"
            )
    own = model.state_dict()
    for key, tensor in state.whole.items():
        if key not in own or own[key].shape != tensor.shape:
            has = f"{tuple(own[key].shape)} in the model" if key in own else "absent from the model"
            raise AdapterFileError(
                f"{path} does not fit: {key} is {tuple(tensor.shape)} in the file, {has}; create the model with the "
                "file's number of classes"
            )
    if check_base:
        _check_base(path, state, layers)
    if state.compact:
        state.tensors = _completed(path, state, layers)
    adapter = inject(model, _exact(state), name)  # raises for a name that is taken, so it comes before any change
    with torch.no_grad():
        for key, tensor in state.whole.items():
            own[key].copy_(tensor)
    adapter.config = state.config
    adapter.load_state_dict(state.tensors, state.launched)
    return adapter


def _completed(path: str | PathLike[str], state: AdapterState, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A compact state's tensors with U and V from the base. Raises AdapterFileError where they are not those of the
    launch."""
    tensors = {key: t for key, t in state.tensors.items() if not key.endswith(".mark")}
    decompositions = Decompositions()
    for module, layer in layers.items():
        out, in_, _, k = state.size(module)
        U, V = torch.zeros(out, k), torch.zeros(k, in_)
        if state.launched:
            W = layer.frozen_matrix() if isinstance(layer, DashLinear) else weight_matrix(layer).detach()
            spectrum = decompositions.of(module, W, W.device)
            found = singular_directions(W, spectrum, state.tensors[f"{module}.indices"].to(W.device))
            U, V = found.U.float().cpu().contiguous(), found.V.float().cpu().contiguous()
        if not torch.allclose(_mark(V), state.tensors[f"{module}.mark"], rtol=0, atol=_SAME_DIRECTION):
            raise AdapterFileError(
                f"{path} is compact, and the directions of {module} in this base are not those that it was trained "
                "on; load the base in the precision that it is published in and cast it afterwards, or use the whole "
                "file"
            )
        tensors |= {f"{module}.U": U, f"{module}.V": V}
    return tensors


def _exact(state: AdapterState) -> DashConfig:
    """The configuration with the file's own module names as its target: a regular expression of all of them."""
    names = "|".join(re.escape(module) for module in state.kinds)
    k = max(state.size(module)[3] for module in state.kinds)
    c = state.config
    return DashConfig(c.rank, c.alpha, k, f"(?:{names})", c.dropout, c.eps, c.selection)


# -- the base weights


def fingerprint(probes: Mapping[str, list[float]]) -> str:
    """12 hex digits of the probes of frozen weights by module."""
    return hashlib.sha256(json.dumps(probes, sort_keys=True).encode()).hexdigest()[:12]


def probe_weight(layer: nn.Module) -> list[float]:
    """[Frobenius norm, a_1^T W b_1 / norm, ...] of a frozen weight with fixed cosine vectors a_j, b_j, in float64.

    The numbers survive a change of dtype (to about 1e-3) and differ by about 1 between unrelated weights.
    """
    W = weight_matrix(layer.base if isinstance(layer, DashLinear) else layer)
    if isinstance(layer, DashLinear) and layer.kept_weight is not None:
        W = layer.kept_weight
    W = whole(W).to("cpu").double()
    norm = W.norm().item()
    values = [norm]
    for j in range(1, _PROBES + 1):
        left = torch.cos(torch.arange(W.shape[0], dtype=torch.float64) * (0.61803 * j) + j)
        right = torch.cos(torch.arange(W.shape[1], dtype=torch.float64) * (0.75488 * j) + 2 * j)
        values.append(2 * (left @ W @ right).item() / norm if norm else 0.0)
    return [float(f"{v:.9g}") for v in values]


def compare_probes(found: Mapping[str, list[float]], expected: Mapping[str, list[float]]) -> tuple[str, float] | None:
    """None when the probes are of the same weights, up to a change of dtype; else (the module that differs most, the
    root mean square difference). Both have the same modules."""
    errors = {}
    for module, probes in found.items():
        scale = abs(probes[0] - expected[module][0]) / max(probes[0], expected[module][0], 1e-30)
        errors[module] = [scale] + [f - e for f, e in zip(probes[1:], expected[module][1:], strict=True)]
    values = [e for row in errors.values() for e in row]
    rms = math.sqrt(sum(e * e for e in values) / len(values))
    if rms <= _SAME_BASE and max(map(abs, values)) <= 10 * _SAME_BASE:
        return None
    return max(errors, key=lambda m: max(map(abs, errors[m]))), rms


def _check_base(path: str | PathLike[str], state: AdapterState, layers: Mapping[str, nn.Module]) -> None:
    difference = compare_probes({m: probe_weight(layer) for m, layer in layers.items()}, state.probes)
    if difference is None:
        return
    worst, rms = difference
    raise AdapterFileError(
        f"{path} was trained on another base: the frozen weights differ (fingerprint {state.fingerprint}; {worst} has "
        f"norm {probe_weight(layers[worst])[0]:.4g}, the file expects {state.probes[worst][0]:.4g}; probes are "
        f"{rms:.2g} off, {_SAME_BASE} is allowed); load the base that `python -m dash_vision inspect` names"
    )


# -- export


def export_lora(
    adapter: Adapter | Mapping[str, Adapter],
    folder: str | PathLike[str],
    format: str = "diffusers",
    dtype: torch.dtype = torch.float32,
    modules_to_save: Mapping[str, nn.Module] | None = None,
) -> Path:
    """Write a trained adapter as a plain LoRA of rank r + k, exact for any reader of the format.

    adapter: one adapter (component "unet" for diffusers and kohya), or several by component name ("unet",
        "transformer", "text_encoder", "text_encoder_2").
    format: "diffusers" (pytorch_lora_weights.safetensors), "kohya" (ComfyUI, A1111; named after the folder, or the
        one above kohya/) or "peft" (adapter_config.json and adapter_model.safetensors; one adapter only).
    modules_to_save: fully trained modules by name, such as a classification head (peft only; those that a native
        file kept are written without being named).

    Returns the path of the weights file. Raises ValueError for an unknown format or an adapter that a format
    cannot hold.
    """
    if isinstance(adapter, Adapter):
        adapter = {"model": adapter}
    return export_states({n: adapter_state(a) for n, a in adapter.items()}, folder, format, dtype, modules_to_save)


def export_states(
    states: Mapping[str, AdapterState],
    folder: str | PathLike[str],
    format: str = "diffusers",
    dtype: torch.dtype = torch.float32,
    modules_to_save: Mapping[str, nn.Module] | None = None,
) -> Path:
    """`export_lora` for states read by `read_native`."""
    if format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, got {format!r}")
    if modules_to_save and format != "peft":
        raise ValueError(f"the {format} format holds no whole modules; export modules_to_save with format='peft'")
    if any(s.compact for s in states.values()):
        raise ValueError(
            "a compact adapter has no directions to export without its base; load it into the base with load_adapter "
            "and export that"
        )
    rank = max(_folded_rank(s, m) for s in states.values() for m in s.kinds)
    if rank == 0:
        raise ValueError("the adapter has rank 0 and was not launched: there is nothing to export")
    folded = {n: {m: _fold(s, m, rank, dtype) for m in s.kinds} for n, s in states.items()}
    if format == "peft":
        return _write_peft(states, folded, Path(folder), rank, dtype, modules_to_save or {})
    folded = {("unet" if n == "model" else n): layers for n, layers in folded.items()}
    provenance = {_HEADER: json.dumps(_provenance(states), sort_keys=True)}
    if format == "kohya":
        return _write_kohya(folded, Path(folder), rank, dtype, provenance)
    return _write_diffusers(folded, Path(folder), rank, provenance)


def _folded_rank(state: AdapterState, module: str) -> int:
    _, _, rank, k = state.size(module)
    return rank + (k if state.launched else 0)


def _fold(state: AdapterState, module: str, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(A' [rank, in], B' [out, rank]) of one layer, zero-padded; a convolution's as 4-dimensional kernels."""
    A, B, dsigma, U, V = (state.tensors[f"{module}.{key}"].double() for key in ("A", "B", "dsigma", "U", "V"))
    down, up = A, B * state.config.scaling
    if state.launched:
        down, up = torch.cat([down, V]), torch.cat([up, U * dsigma], dim=1)
    padding = rank - down.shape[0]
    down = torch.cat([down, down.new_zeros(padding, down.shape[1])]).to(dtype)
    up = torch.cat([up, up.new_zeros(up.shape[0], padding)], dim=1).to(dtype)
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise ValueError(f"{module} holds NaN, infinity or values too large for {dtype}; export in float32 or retrain")
    kind = state.kinds[module]
    if isinstance(kind, list):
        down, up = down.view(rank, -1, *kind), up[:, :, None, None]
    return down.contiguous(), up.contiguous()


def _provenance(states: Mapping[str, AdapterState]) -> dict[str, Any]:
    return {
        n: {"config": s.config.to_dict(), "launched": s.launched, "base_fingerprint": s.fingerprint}
        for n, s in states.items()
    }


def _write_diffusers(
    folded: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]], folder: Path, rank: int, provenance: dict[str, str]
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
    _write(path, tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(lora, sort_keys=True), **provenance})
    return path


def _write_kohya(
    folded: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]],
    folder: Path,
    rank: int,
    dtype: torch.dtype,
    provenance: dict[str, str],
) -> Path:
    two = "text_encoder_2" in folded
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if two else "lora_te", "text_encoder_2": "lora_te2"}
    unknown = [c for c in folded if c not in prefixes]
    if unknown:
        raise ValueError(f"the kohya format has no name for component {unknown[0]!r}; it knows {', '.join(prefixes)}")
    tensors = {}
    for component, layers in folded.items():
        for module, (down, up) in layers.items():
            key = f"{prefixes[component]}_{_portable(component, module).replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
            tensors[f"{key}.alpha"] = torch.tensor(float(rank), dtype=dtype)
    # ComfyUI and A1111 show the file's name: that of the run, also when the file lies in its kohya/ folder.
    place = folder.resolve()
    path = folder / f"{place.parent.name if place.name == 'kohya' else place.name}.safetensors"
    about = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))}
    _write(path, tensors, {"format": "pt", **about, **provenance})
    return path


def _write_peft(
    states: Mapping[str, AdapterState],
    folded: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]],
    folder: Path,
    rank: int,
    dtype: torch.dtype,
    modules_to_save: Mapping[str, nn.Module],
) -> Path:
    if len(folded) != 1:
        raise ValueError(f"the PEFT format holds one model's adapter, got {', '.join(folded)}; export each by itself")
    ((state,), (layers,)) = states.values(), folded.values()
    tensors = {}
    for module, (down, up) in layers.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    whole = state.whole | _tensors_of(modules_to_save)
    for key, tensor in whole.items():
        tensors[f"base_model.model.{key}"] = tensor.to(dtype)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(kind == "conv1d" for kind in state.kinds.values()),
        "target_modules": list(layers),
        "modules_to_save": sorted({key.rpartition(".")[0] for key in whole}) or None,
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    path = folder / "adapter_model.safetensors"
    provenance = json.dumps(_provenance(states), sort_keys=True)
    _write(path, tensors, {"format": "pt", _HEADER: provenance})
    write_json(folder / "adapter_config.json", config)
    return path


def _portable(component: str, module: str) -> str:
    """The module's name as files have it: text encoders with the "text_model." of transformers 4."""
    return f"text_model.{module}" if component.startswith("text_encoder") and module.startswith("encoder.") else module


def _short(component: str, module: str) -> str:
    return module.removeprefix("text_model.") if component.startswith("text_encoder") else module


# -- reading, writing, checking


def _kind(layer: nn.Module) -> str | list[int]:
    if isinstance(layer, nn.Conv2d):
        return [int(n) for n in layer.kernel_size]
    return "conv1d" if is_conv1d(layer) else "linear"


def _write(path: str | PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    data = to_safetensors(dict(tensors), metadata=dict(header))
    # safetensors writes header entries in an order that changes from process to process; sort them, so that equal
    # adapters are equal files. The header is JSON behind its length, padded with spaces to a multiple of 8.
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(data)[8 + length :])


def _read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = Path(path)
    if not path.is_file():
        hint = f"; give a file such as {path / NATIVE_NAME}" if path.is_dir() else ""
        raise AdapterFileError(f"{path} is {'a folder' if path.is_dir() else 'not there'}{hint or '; check the path'}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(_HEADER)
            keys = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in keys} if header else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(
            f"{path} is no complete .safetensors file ({error}); copy it again or export it anew"
        ) from None
    try:
        content = json.loads(header) if header else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("components"), dict):
        raise AdapterFileError(
            f"{path} is a .safetensors file of another kind "
            f"({len(keys)} tensors, such as {', '.join(keys[:2])}), not a "
            f"native dash-vision adapter; native files are called {NATIVE_NAME}"
        )
    return content, tensors


def _is_finite(tensor: Tensor) -> bool:
    """Whether it holds ordinary numbers; the 8-bit formats, with which torch cannot compute, do not count."""
    return tensor.dtype in _FLOATS and bool(torch.isfinite(tensor).all())


def _check(state: AdapterState) -> None:
    """Raises ValueError where kinds, tensors, shapes, phase and numbers of a state do not agree."""
    if not isinstance(state.launched, bool) or not math.isfinite(state.config.scaling):
        raise ValueError("phase or scaling")
    for key, tensor in state.whole.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise ValueError(f"{key} holds NaN or infinity")
    keys = _COMPACT_KEYS if state.compact else KEYS
    expected = {f"{module}.{key}" for module in state.kinds for key in keys}
    wrong = sorted(expected ^ state.tensors.keys())
    if wrong or not expected or state.kinds.keys() != state.probes.keys():
        raise ValueError(f"tensors and layers do not match, {wrong[:1]}")
    for module, kind in state.kinds.items():
        found = {key: state.tensors[f"{module}.{key}"] for key in keys}
        indices = found.pop("indices")
        (r, in_), (out, _), (k,) = found["A"].shape, found["B"].shape, found["dsigma"].shape
        shapes = {"A": (r, in_), "B": (out, r), "dsigma": (k,), "U": (out, k), "V": (k, in_), "mark": (k,)}
        fits = all(tensor.shape == shapes[key] for key, tensor in found.items())
        if not fits or indices.shape != (k,) or r != state.config.rank:
            raise ValueError(f"shapes of {module}")
        if k != min(state.config.dash_k, out, in_):
            raise ValueError(f"{module} has {k} directions")
        for tensor in found.values():
            if not _is_finite(tensor):
                raise ValueError(f"{module} holds NaN or infinity")
        chosen = indices.tolist()
        if indices.dtype != torch.int64 or (
            state.launched and (len(set(chosen)) < k or not all(0 <= i < min(out, in_) for i in chosen))
        ):
            raise ValueError(f"directions of {module}")
        if isinstance(kind, list) and (len(kind) != 2 or in_ % math.prod(kind)):
            raise ValueError(f"kernel of {module}")
        elif not isinstance(kind, list) and kind not in ("linear", "conv1d"):
            raise ValueError(f"kind of {module}")
        row = state.probes[module]
        if len(row) != _PROBES + 1 or not all(isinstance(v, float | int) and math.isfinite(v) for v in row):
            raise ValueError(f"probes of {module}")
