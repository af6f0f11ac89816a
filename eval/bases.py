"""The bases of runs: loaded as the runs recorded them, compared, and given the runs' adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dash_vision.core.loading import probe_weight, read_adapters
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


def no_loading_bars() -> None:
    """Keep diffusers and transformers from drawing a bar for each model that they load."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def load_pipeline(run: DreamBoothRun, base: str | None = None) -> Any:
    """The stock diffusers pipeline that a run was trained on, in float32. Raises InputError.

    base: a hub id, folder or file to use instead of the one in the run's record.
    """
    from dash_vision.bases.loading import load_base

    no_loading_bars()
    specification = dict(run.record.base.specification)
    if base:
        specification |= {"name": base, "revision": None}  # a revision is of one hub id
    try:
        return load_base(**specification).pipeline
    except TypeError as error:
        raise InputError(f"{run.folder} records its base in another way ({error}); make the run again") from None
    except InputError as error:
        raise InputError(f"{error} (of {run.folder}; --base says where its base is now)") from None


def fitting_runs(
    pipeline: Any, runs: Mapping[str, DreamBoothRun], base: str | None = None
) -> tuple[dict[str, DreamBoothRun], list[str]]:
    """The runs whose adapters load in a pipeline that none is loaded in, and a sentence for each of the others.

    base: what the pipeline was loaded from, None for what the first run's record names. Raises InputError where none is
    left.
    """
    fitting, problems = {}, []
    for name, run in runs.items():
        try:
            _check_base(pipeline, run, base or next(iter(runs.values())).base)
            load_lora(pipeline, run)
            fitting[name] = run
        except InputError as error:
            problems.append(f"{name}: {error}")
        finally:
            pipeline.unload_lora_weights()
    if not fitting:
        raise InputError("; ".join(problems))
    return fitting, problems


def _check_base(pipeline: Any, run: DreamBoothRun, base: str) -> None:
    """Raises InputError when a run was not trained on the weights of a pipeline, which was loaded from `base`."""
    for component, state in native_adapters(run).items():
        part = getattr(pipeline, component, None)
        modules = dict(part.named_modules()) if part is not None else {}
        layers = {m: modules[m] for m in state.kinds if isinstance(getattr(modules.get(m), "weight", None), Tensor)}
        found = {m: probe_weight(layer) for m, layer in layers.items()}
        if len(found) < len(state.kinds) or compare_probes(found, state.probes):
            raise InputError(f"{run.folder} was trained on other weights than {base} holds; name its base by --base")


@dataclass(frozen=True)
class Comparison:
    """Whether two runs were trained on the same base; None where their records cannot tell. difference: in words."""

    same: bool | None
    difference: str = ""


# Entries of a base's specification that say where its weights are: equal weights may lie in two places.
_PLACES = {"name", "revision", "variant"}


def compare_bases(first: DreamBoothRun, second: DreamBoothRun) -> Comparison:
    """Compare the bases of two runs by all that their records say. Raises InputError for a broken native file.

    The adapted networks are compared by the layers that both runs adapt, the others by what the specification says of
    them, such as another VAE.
    """
    one, other = base_options(first), base_options(second)
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            return Comparison(False, f"{key} {one.get(key)} and {other.get(key)}")
    same = _same_layers(first, second)
    if same is None and first.record.base.specification == second.record.base.specification:
        same = True
    return Comparison(same, "" if same else f"{first.base} and {second.base}")


def base_options(run: DreamBoothRun) -> dict[str, Any]:
    """What a run's base is besides the place of its weights, such as another VAE; what is unset is left out."""
    specification = run.record.base.specification
    return {key: value for key, value in specification.items() if key not in _PLACES and value is not None}


def _same_layers(first: DreamBoothRun, second: DreamBoothRun) -> bool | None:
    """Whether the layers that both runs adapt had the same frozen weights; None where there are none."""
    if first.base_fingerprint == second.base_fingerprint:
        return True
    a, b = (
        {f"{part}.{m}": probe for part, state in native_adapters(run).items() for m, probe in state.probes.items()}
        for run in (first, second)
    )
    common = a.keys() & b.keys()
    return compare_probes({m: a[m] for m in common}, {m: b[m] for m in common}) is None if common else None


def check_files(run: DreamBoothRun) -> None:
    """Raises InputError where a file of a run's adapter is missing or cut short, or its native one makes no sense."""
    for path in (run.folder / DIFFUSERS_NAME, run.folder / NATIVE_NAME):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{path} is no complete .safetensors file ({error}); copy it again") from None
    native_adapters(run)


def load_lora(pipeline: Any, run: DreamBoothRun) -> None:
    """Load a run's adapter in a pipeline, as diffusers does. Raises InputError."""
    path = run.folder / DIFFUSERS_NAME
    try:
        pipeline.load_lora_weights(str(run.folder), weight_name=DIFFUSERS_NAME)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot load {path} in the base ({reason}); export it anew or make the run again") from None
