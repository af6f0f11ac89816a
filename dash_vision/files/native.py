"""Native adapter files: everything of one adapter or of several, apart from any model.

One container file with `component/module.key` tensors (keys A, B, dsigma, U, V, indices as in core.weights.DashWeights)
and, per component, the configuration, the layers' kinds, and probes of the frozen weights, by which another base is
recognised. A compact file leaves out U and V: they are computed from the base when it is loaded, and compared with
"mark", one number for each direction.

What a configuration means is core.config's business; this module reads of it what the tensors have to agree with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import CHECKPOINT, load_checkpoint
from .container import Kind, kind_of, read_container, read_content, write_container
from .errors import InputError
from .fingerprints import PROBES, fingerprint

NATIVE_NAME = "dash_adapter.safetensors"
ADAPTER = Kind("adapter", f"a native dash-vision adapter (native files are called {NATIVE_NAME})")
KEYS = ("A", "B", "dsigma", "U", "V", "indices")  # of an adapter's tensors in a layer
COMPACT_KEYS = ("A", "B", "dsigma", "indices", "mark")
_WHOLE = "whole:"  # before the keys of modules that are kept whole
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class AdapterState:
    """One adapter apart from any model. settings: DashConfig.to_dict(). tensors: "module.key" -> CPU tensor; kinds:
    module -> "linear", "conv1d" or [kh, kw]; probes: module -> [norm, probe_1, ...] of the frozen weight; whole:
    "module.key" -> tensor of modules that were trained whole beside the adapter, such as a classification head;
    bypassed: modules that the model reads the weight of and does not call."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    kinds: dict[str, Any]
    probes: dict[str, list[float]]
    whole: dict[str, Tensor] = field(default_factory=dict)
    bypassed: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """Rank r of the LoRA update."""
        return int(self.settings["rank"])

    @property
    def dash_k(self) -> int:
        """Directions asked for in every layer."""
        return int(self.settings["dash_k"])

    @property
    def scaling(self) -> float:
        """alpha / rank, the factor of B A."""
        alpha = self.settings.get("alpha")
        return 1.0 if alpha is None or not self.rank else float(alpha) / self.rank

    @property
    def eps(self) -> float:
        """What is added to the singular values that change rates are divided by."""
        return float(self.settings["eps"])

    @property
    def launched(self) -> bool:
        """Whether the directions are chosen: the indices say it, -1 standing for none."""
        return any((self.tensors[f"{module}.indices"] >= 0).any() for module in self.kinds)

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

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """(A' [r, in], B' [out, r]) of a layer, float64, whose product B' A' is its update; launched ones have r + k
        instead of r. Not of a compact state."""
        A, B, dsigma, U, V = (self.tensors[f"{module}.{key}"].double() for key in ("A", "B", "dsigma", "U", "V"))
        down, up = A, B * self.scaling
        return (torch.cat([down, V]), torch.cat([up, U * dsigma], dim=1)) if self.launched else (down, up)

    def compacted(self) -> AdapterState:
        """The same without U and V."""
        kept = {key: t for key, t in self.tensors.items() if key.rpartition(".")[2] in COMPACT_KEYS}
        kept |= {f"{module}.mark": mark(self.tensors[f"{module}.V"]) for module in self.kinds}
        return AdapterState(self.settings, kept, self.kinds, self.probes, self.whole, self.bypassed)


def mark(V: Tensor) -> Tensor:
    """V [k, in] times a fixed vector: [k], float32, of the size of 1, by which each direction is recognised."""
    return (V.double() @ torch.cos(torch.arange(V.shape[1], dtype=torch.float64) ** 2)).float()


def write_native(
    states: Mapping[str, AdapterState], path: str | PathLike[str], notes: Mapping[str, Any] | None = None
) -> None:
    """Write states by component to a file, with `notes` (JSON values) beside them. Equal states give equal bytes."""
    components: dict[str, dict[str, Any]] = {
        name: {"config": s.settings, "kinds": s.kinds, "probes": s.probes} for name, s in states.items()
    }
    for name, s in states.items():
        if s.bypassed:
            components[name]["bypassed"] = s.bypassed
    tensors = {f"{name}/{key}": t for name, s in states.items() for key, t in s.tensors.items()}
    tensors |= {f"{name}/{_WHOLE}{key}": t for name, s in states.items() for key, t in s.whole.items()}
    write_container(path, ADAPTER, {"components": components, "notes": dict(notes or {})}, tensors)


def read_native(path: str | PathLike[str]) -> dict[str, AdapterState]:
    """Component name -> AdapterState of a native file, or of a checkpoint of train_dreambooth.py, checked whole before
    anything is returned.

    Raises InputError for a missing, truncated or foreign file and for one whose content contradicts itself.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file such as {path / NATIVE_NAME}")
    try:
        states = _of_checkpoint(path) if _is_checkpoint(path) else _of_container(path)
        for state in states.values():
            _check(state)
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"{path} is damaged: its header and its tensors contradict each other ({error}); use another copy"
        ) from None
    return states


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() and kind_of(path) == CHECKPOINT.name


def _of_container(path: Path) -> dict[str, AdapterState]:
    """Not checked yet. Raises InputError as `read_container`, and what `read_native` catches."""
    content, tensors = read_container(path, ADAPTER)
    states = {}
    for name, component in content["components"].items():
        prefix = f"{name}/"
        found = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        whole = {k.removeprefix(_WHOLE): found.pop(k) for k in list(found) if k.startswith(_WHOLE)}
        settings, kinds, probes = (dict(component[key]) for key in ("config", "kinds", "probes"))
        states[name] = AdapterState(settings, found, kinds, probes, whole, list(component.get("bypassed", [])))
    extra = len(tensors) - sum(len(s.tensors) + len(s.whole) for s in states.values())
    if extra or not states:
        raise ValueError(f"{extra} tensors belong to no component")
    return states


def _of_checkpoint(path: Path) -> dict[str, AdapterState]:
    """Not checked yet: A and B as they are in training, and the dash as its schedule keeps it."""
    state = load_checkpoint(path)
    if "native" not in state:
        raise InputError(
            f"{path} is a checkpoint that keeps no adapter by itself (one of train_vtab.py, or of an earlier version); "
            f"let the run end, and give {NATIVE_NAME}"
        )
    states = {}
    for name, component in state["native"].items():
        prefix = f"{name}/"
        dash = state["training"]["schedule"]["tensors"].items()
        tensors = {**state["adapters"][name], **{k.removeprefix(prefix): t for k, t in dash if k.startswith(prefix)}}
        states[name] = AdapterState(
            dict(component["config"]),
            tensors,
            dict(component["kinds"]),
            dict(component["probes"]),
            bypassed=list(component["bypassed"]),
        )
    return states


def read_notes(path: str | PathLike[str]) -> dict[str, Any]:
    """The notes beside the adapters of a native file. Raises InputError as `read_native`."""
    if _is_checkpoint(Path(path)):
        return {"step": load_checkpoint(path)["training"]["step"]}
    content = read_content(path, ADAPTER)
    notes = content.get("notes") if isinstance(content, dict) else None
    return notes if isinstance(notes, dict) else {}


def _check(state: AdapterState) -> None:
    """Raises ValueError where settings, kinds, tensors, shapes and numbers of a state do not agree."""
    for name in ("rank", "dash_k"):
        value = state.settings[name]
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is {value!r}")
    if not math.isfinite(state.scaling):
        raise ValueError("its scaling is not finite")
    for key, tensor in state.whole.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise ValueError(f"{key} holds NaN or infinity")
    keys = COMPACT_KEYS if state.compact else KEYS
    expected = {f"{module}.{key}" for module in state.kinds for key in keys}
    wrong = sorted(expected ^ state.tensors.keys())
    if not state.kinds.keys() >= set(state.bypassed):
        raise ValueError("bypassed layers are none of its own")
    if wrong or not expected or state.kinds.keys() != state.probes.keys():
        raise ValueError(f"tensors and layers do not match, {wrong[:1]}")
    for module, kind in state.kinds.items():
        _check_layer(state, module, kind, keys)


def _check_layer(state: AdapterState, module: str, kind: Any, keys: tuple[str, ...]) -> None:
    found = {key: state.tensors[f"{module}.{key}"] for key in keys}
    indices = found.pop("indices")
    (r, in_), (out, _), (k,) = found["A"].shape, found["B"].shape, found["dsigma"].shape
    shapes = {"A": (r, in_), "B": (out, r), "dsigma": (k,), "U": (out, k), "V": (k, in_), "mark": (k,)}
    fits = all(tensor.shape == shapes[key] for key, tensor in found.items())
    if not fits or indices.shape != (k,) or r != state.rank:
        raise ValueError(f"shapes of {module}")
    if k != min(state.dash_k, out, in_):
        raise ValueError(f"{module} has {k} directions")
    if not all(_is_finite(tensor) for tensor in found.values()):
        raise ValueError(f"{module} holds NaN or infinity")
    chosen = indices.tolist()
    waiting = not state.launched and chosen == [-1] * k
    if indices.dtype != torch.int64 or not (
        waiting or (len(set(chosen)) == k and all(0 <= i < min(out, in_) for i in chosen))
    ):
        raise ValueError(f"directions of {module}")
    if isinstance(kind, list) and (len(kind) != 2 or in_ % math.prod(kind)):
        raise ValueError(f"kernel of {module}")
    if not isinstance(kind, list) and kind not in ("linear", "conv1d"):
        raise ValueError(f"kind of {module}")
    row = state.probes[module]
    if len(row) != PROBES + 1 or not all(isinstance(v, float | int) and math.isfinite(v) for v in row):
        raise ValueError(f"probes of {module}")


def _is_finite(tensor: Tensor) -> bool:
    """Whether it holds ordinary numbers; the 8-bit formats, with which torch cannot compute, do not count."""
    return tensor.dtype in _FLOATS and bool(torch.isfinite(tensor).all())
