"""Adapters between models and files: save, load into a model, export as plain LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.errors import InputError
from ..files.fingerprints import SAME_BASE, SAME_QUANTIZED_BASE, compare_probes, probe_matrix
from ..files.lora import export_states
from ..files.native import AdapterState, mark, read_native, write_native
from .adapter import Adapter, inject
from .config import DashConfig
from .decompositions import Decompositions
from .directions import singular_directions
from .layer import DashLinear
from .quantized import is_quantized
from .sharding import whole
from .targets import base_of, find_targets
from .weights import matrix_shape, weight_matrix

# Marks of the same direction differ by float32's rounding, 1e-6; those of a base in bf16 by 1e-2 and more.
_SAME_DIRECTION = 1e-3


def adapter_state(adapter: Adapter, modules_to_save: Mapping[str, nn.Module] | None = None) -> AdapterState:
    """A snapshot of `adapter` on the CPU, and of fully trained modules by name beside it; every rank has to call it
    where FSDP has split the model."""
    state = adapter.state()
    state.whole = tensors_of(modules_to_save or {})
    return state


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
    write_native({name: s.compacted() if compact else s for name, s in states.items()}, path, notes)


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """`module.key` -> CPU copy of every tensor of the modules."""
    return {
        f"{name}.{key}": whole(t).to("cpu", copy=True).contiguous()
        for name, module in modules.items()
        for key, t in module.state_dict().items()
    }


def read_adapters(path: str | PathLike[str]) -> dict[str, AdapterState]:
    """Component name -> AdapterState of a native file, its configuration one that DashConfig takes. Raises InputError
    for a missing, truncated or foreign file and for one whose content contradicts itself."""
    states = read_native(path)
    for state in states.values():
        _config_of(path, state)
    return states


def _config_of(path: str | PathLike[str], state: AdapterState) -> DashConfig:
    try:
        return DashConfig(**state.settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: its configuration makes no sense ({error}); use another copy") from None


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
    (for a base known to be a light variant of the one trained on). Raises InputError and leaves the model
    untouched when something does not fit.
    """
    states = read_native(path)
    if component is None and len(states) > 1:
        raise InputError(f"{path} holds adapters for {', '.join(states)}; name one with component=...")
    if component is not None and component not in states:
        raise InputError(f"{path} holds no adapter for {component!r}, only for {', '.join(states)}")
    state = states[component] if component else next(iter(states.values()))
    config = _config_of(path, state)
    try:
        layers = find_targets(model, list(state.kinds))
    except ValueError as error:
        raise InputError(f"{path} was trained on another kind of model: {error}") from None
    layers = {module: layers[module] for module in state.kinds if module in layers}
    if len(layers) < len(state.kinds):
        missing = next(m for m in state.kinds if m not in layers)
        raise InputError(f"{path} was trained on another kind of model: this one has no layer {missing}")
    for module, layer in layers.items():
        found = matrix_shape(base_of(layer))
        out, in_, _, _ = state.size(module)
        if found != (out, in_):
            raise InputError(
                f"{path} does not fit: {module} is {out} x {in_} in the file, {found[0]} x {found[1]} in the model"
            )
    own = model.state_dict()
    for key, tensor in state.whole.items():
        if key not in own or own[key].shape != tensor.shape:
            has = f"{tuple(own[key].shape)} in the model" if key in own else "absent from the model"
            raise InputError(
                f"{path} does not fit: {key} is {tuple(tensor.shape)} in the file, {has}; create the model with the "
                "file's number of classes"
            )
    if check_base:
        _check_base(path, state, layers)
    if state.compact:
        state.tensors = _completed(path, state, layers)
    adapter = inject(
        model, _exact(config, state), name
    )  # raises for a name that is taken, so it comes before any change
    with torch.no_grad():
        for key, tensor in state.whole.items():
            own[key].copy_(tensor)
    adapter.config = config
    adapter.load_state_dict(state.tensors)
    for module in state.bypassed:
        adapter.layers[module].mark_bypassed()
    return adapter


def _completed(path: str | PathLike[str], state: AdapterState, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A compact state's tensors with U and V from the base. Raises InputError where they are not those of the
    launch."""
    tensors = {key: t for key, t in state.tensors.items() if not key.endswith(".mark")}
    decompositions = Decompositions()
    for module, layer in layers.items():
        out, in_, _, k = state.size(module)
        U, V = torch.zeros(out, k), torch.zeros(k, in_)
        if state.launched:
            W = layer.frozen_matrix() if isinstance(layer, DashLinear) else weight_matrix(layer).detach()
            spectrum = decompositions.of(module, W, W.device)
            found = singular_directions(W, spectrum, state.tensors[f"{module}.indices"].to(spectrum.sigma.device))
            U, V = found.U.float().cpu().contiguous(), found.V.float().cpu().contiguous()
        if not torch.allclose(mark(V), state.tensors[f"{module}.mark"], rtol=0, atol=_SAME_DIRECTION):
            raise InputError(
                f"{path} is compact, and the directions of {module} in this base are not those that it was trained "
                "on; load the base in the precision that it is published in and cast it afterwards, or use the whole "
                "file"
            )
        tensors |= {f"{module}.U": U, f"{module}.V": V}
    return tensors


def _exact(c: DashConfig, state: AdapterState) -> DashConfig:
    """The configuration with the file's own module names as its target: a regular expression of all of them."""
    names = "|".join(re.escape(module) for module in state.kinds)
    k = max(state.size(module)[3] for module in state.kinds)
    return DashConfig(c.rank, c.alpha, k, f"(?:{names})", c.dropout, c.eps, c.selection)


def probe_weight(layer: nn.Module) -> list[float]:
    """`fingerprints.probe_matrix` of a layer's frozen weight, as it was before any merge."""
    return layer.probes() if isinstance(layer, DashLinear) else probe_matrix(whole(weight_matrix(layer)))


def allowed_difference(layers: Iterable[nn.Module]) -> float:
    """How far the probes of these layers may be from those of the weights that an adapter was trained on."""
    return SAME_QUANTIZED_BASE if any(is_quantized(base_of(layer)) for layer in layers) else SAME_BASE


def _check_base(path: str | PathLike[str], state: AdapterState, layers: Mapping[str, nn.Module]) -> None:
    allowed = allowed_difference(layers.values())
    difference = compare_probes({m: probe_weight(layer) for m, layer in layers.items()}, state.probes, allowed)
    if difference is None:
        return
    worst, rms = difference
    raise InputError(
        f"{path} was trained on another base: the frozen weights differ (fingerprint {state.fingerprint}; {worst} has "
        f"norm {probe_weight(layers[worst])[0]:.4g}, the file expects {state.probes[worst][0]:.4g}; probes are "
        f"{rms:.2g} off, {allowed} is allowed); load the base that `python -m dash_vision inspect` names"
    )


def export_lora(
    adapter: Adapter | Mapping[str, Adapter],
    folder: str | PathLike[str],
    format: str = "diffusers",
    dtype: torch.dtype = torch.float32,
    modules_to_save: Mapping[str, nn.Module] | None = None,
    rank: int | None = None,
) -> Path:
    """Write a trained adapter as a plain LoRA of rank r + k, exact for any reader of the format.

    adapter: one adapter (component "unet" for diffusers and kohya), or several by component name ("unet",
        "transformer", "text_encoder", "text_encoder_2").
    format: "diffusers" (pytorch_lora_weights.safetensors), "kohya" (ComfyUI, A1111; named after the folder, or the
        one above kohya/) or "peft" (adapter_config.json and adapter_model.safetensors; one adapter only).
    modules_to_save: fully trained modules by name, such as a classification head (peft only; those that a native
        file kept are written without being named).
    rank: at most so many for each layer of the file, by the nearest matrix of that rank: then it is exact where the
        update has no higher rank. files.lora.export_states tells how much of it the file holds.

    Returns the path of the weights file. Raises ValueError for an unknown format, for an adapter that a format
    cannot hold, and where diffusers or PEFT would not apply it: on layers that the model reads and does not call.
    """
    if isinstance(adapter, Adapter):
        adapter = {"model": adapter}
    states = {n: adapter_state(a) for n, a in adapter.items()}
    return export_states(states, folder, format, dtype, tensors_of(modules_to_save or {}), rank=rank).path
