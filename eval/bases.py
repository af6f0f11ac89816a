"""The bases of runs: loaded as the runs recorded them, compared, and given the runs' adapters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dash_vision.bases.identity import difference
from dash_vision.bases.loading import Base
from dash_vision.bases.networks import no_loading_bars
from dash_vision.bases.recorded import load_lora, load_recorded
from dash_vision.core.loading import allowed_difference, probe_weight, read_adapters
from dash_vision.files.errors import InputError
from dash_vision.files.fingerprints import compare_probes
from dash_vision.files.lora import DIFFUSERS_NAME
from dash_vision.files.native import NATIVE_NAME, AdapterState

from .runs import DreamBoothRun, Run


def native_adapters(run: Run) -> dict[str, AdapterState]:
    """Component -> adapter of the run's native file; empty where it has none. Raises InputError for a broken one."""
    path = run.folder / NATIVE_NAME
    if not path.is_file():
        return {}
    try:
        return read_adapters(path)
    except InputError as error:
        raise InputError(str(error)) from None


def load_base(
    run: DreamBoothRun, place: str | None = None, dtype: str = "float32", quantize: str | None = None
) -> Base:
    """The base that a run was trained on. Raises InputError.

    place: a hub id, folder or file to use instead of the one in the run's record. dtype: that it will be cast to, and
    that the denoiser is read in. quantize: of the denoiser, instead of the run's own; with "none" nothing is quantized.
    """
    no_loading_bars()
    return load_recorded(run.record.base, run.folder, place, getattr(torch, dtype), quantize)


def fitting_runs(base: Base, runs: Mapping[str, DreamBoothRun]) -> tuple[dict[str, DreamBoothRun], list[str]]:
    """The runs whose adapters load in a base that none is loaded in, and a sentence for each of the others. Raises
    InputError where none is left."""
    fitting, problems = {}, []
    for name, run in runs.items():
        try:
            _check_layers(base, run)
            load_lora(base, run.folder)
            fitting[name] = run
        except InputError as error:
            problems.append(f"{name}: {error}")
        finally:
            base.pipeline.unload_lora_weights()
    if not fitting:
        raise InputError("; ".join(problems))
    return fitting, problems


def _check_layers(base: Base, run: DreamBoothRun) -> None:
    """Raises InputError when a base does not hold the weights that a run was trained on."""
    networks = base.components()
    for component, state in native_adapters(run).items():
        modules = dict(networks[component].named_modules()) if component in networks else {}
        layers = {m: modules[m] for m in state.kinds if isinstance(getattr(modules.get(m), "weight", None), Tensor)}
        found = {m: probe_weight(layer) for m, layer in layers.items()}
        allowed = allowed_difference(layers.values())
        if len(found) < len(state.kinds) or compare_probes(found, state.probes, allowed):
            raise InputError(
                f"{run.folder} was trained on other weights than {base.name} holds; name its base by --base"
            )


def compare_bases(first: DreamBoothRun, second: DreamBoothRun) -> str | None:
    """In what the bases of two runs differ, in words; None where they are the same, wherever they were loaded from.

    The digests of their parts tell, and beside these how prompts are read.
    """
    part = difference(first.record.base.identity, second.record.base.identity)
    if part is not None:
        return f"the {part} of {_named(first, part)} and that of {_named(second, part)}"
    told, other = prompt_options(first), prompt_options(second)
    return next((f"{name} {told[name]} and {other[name]}" for name in told if told[name] != other[name]), None)


def _named(run: DreamBoothRun, part: str) -> str:
    """A run's base, with what the user put in the place of a part of it."""
    other = run.record.base.specification.get(part)
    return f"{run.base} with {other}" if other else run.base


def prompt_options(run: DreamBoothRun) -> dict[str, int | None]:
    """How prompts were told to the denoiser, by the settings' names; None where the base decided."""
    return {name: run.record.base.specification.get(name) for name in ("max_sequence_length", "clip_skip")}


def check_files(run: DreamBoothRun) -> None:
    """Raises InputError where a file of a run's adapter is missing or cut short, or its native one makes no sense."""
    for path in (run.folder / DIFFUSERS_NAME, run.folder / NATIVE_NAME):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{path} is no complete .safetensors file ({error}); copy it again") from None
    native_adapters(run)
