"""Where updates come from: the adapter of a run, the checkpoints on its way there, a second run, a tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from dash_vision.core.loading import probe_weight
from dash_vision.core.weights import weight_matrix
from dash_vision.files.checkpoint import load_checkpoint
from dash_vision.files.errors import InputError
from dash_vision.files.fingerprints import compare_probes
from dash_vision.files.native import NATIVE_NAME, AdapterState, read_native, read_notes
from dash_vision.runs.record import RECORDS

from ..bases import compare_bases, load_base, native_adapters
from ..colours import method_colours
from ..runs import DreamBoothRun, VtabRun, find_runs, labels
from ..runs import Run as OwnRun
from . import trainer
from .trainer import TrainerRun

Run = OwnRun | TrainerRun

TRAINED_NAME = "trained.safetensors"  # of a VTAB run without an adapter
FULL_NAME = "diffusion_pytorch_model.safetensors"  # of a network that diffusers saved


@dataclass
class Source:
    """Where updates come from: a run's adapter, or the weights of a fully fine-tuned model. colour: of its method."""

    name: str
    state: AdapterState | None
    weights: Path | None
    colour: int = 0


def read_source(path: Path) -> tuple[Run, Source]:
    """The one run at `path` and its adapter, of the denoiser, of the ViT or of what a Trainer has trained."""
    if trainer.is_run(path):
        own = TrainerRun(path)
        return own, Source(path.name, own.state, None, method_colours([own.method])[own.method])
    runs, problems = find_runs([path])
    if problems or len(runs) != 1:
        raise InputError("; ".join(problems) or f"{path} holds {len(runs)} runs; give the folder of one")
    states = native_adapters(runs[0])
    if states:
        return runs[0], Source(
            _name(runs[0]), states[_component(runs[0], states)], None, method_colours([runs[0].method])[runs[0].method]
        )
    weights = _full_weights(path, runs[0])
    if weights is None:
        raise InputError(f"{path} has no {NATIVE_NAME}; the analysis takes runs of LoRA, LoRA-Dash or full fine-tuning")
    return runs[0], Source(_name(runs[0]), None, weights)


def _component(run: OwnRun, adapters: Mapping[str, object]) -> str:
    """The name of the denoiser, or of the one network of a classifier, among a run's adapters."""
    name = run.denoiser if isinstance(run, DreamBoothRun) else next(iter(adapters))
    if name not in adapters:
        raise InputError(f"{run.folder} has no adapter of its {name}; make the run again")
    return name


def _name(run: OwnRun) -> str:
    return run.folder.name if isinstance(run, DreamBoothRun) else labels([run])[0]


def read_truth(path: Path, run: Run, source: Source) -> tuple[Run | None, Source]:
    """What `source` is to predict, and its run; None for weights that are no run's. Raises InputError for another base
    than that of `run`."""
    weights = _full_weights(path, run)
    if weights and (isinstance(run, TrainerRun) or not any((path / name).is_file() for name in RECORDS)):
        return None, Source(path.name, None, weights)
    found, truth = read_source(path)
    refusal = f"{path} was trained on another base than {source.name}"
    if truth.state is not None:
        assert source.state is not None
        common = truth.state.kinds.keys() & source.state.kinds.keys()
        probes = {m: source.state.probes[m] for m in common}
        if not common or compare_probes(probes, {m: truth.state.probes[m] for m in common}):
            raise InputError(f"{refusal}; their directions have no relation")
    elif isinstance(found, TrainerRun) or isinstance(run, TrainerRun):
        raise InputError(f"{refusal}; give a folder of transformers' Trainer for both")
    elif _recorded_base(found) != _recorded_base(run):
        pairs = zip(_recorded_base(found).items(), _recorded_base(run).values(), strict=False)
        differing = "; ".join(f"{name}: {value}, not {other}" for (name, value), other in pairs if value != other)
        raise InputError(f"{refusal} ({differing}); give its weights as a file to take the base on trust")
    if isinstance(found, DreamBoothRun) and isinstance(run, DreamBoothRun):
        comparison = compare_bases(run, found)
        if comparison is not None:
            raise InputError(f"{refusal} ({comparison}); their directions have no relation")
    return found, truth


def _recorded_base(run: OwnRun) -> dict[str, str]:
    """What a run says of its base where no probes of it are kept."""
    if isinstance(run, DreamBoothRun):
        return {"model": run.base}
    arguments = run.record.arguments
    return {
        "model": run.record.model,
        "checkpoint": str(arguments.get("checkpoint")),
        "random weights": str(arguments.get("random_weights")),
        "normalization": str(run.record.normalization),
    }


def common_start(run: Run, state: AdapterState, other_run: Run, other: AdapterState | None) -> int:
    """How many rows of A, in every layer, two runs began with in common: all, or none.

    A is drawn layer after layer from the run's seed, on the run's device, before anything else is.
    """
    if other is None or (state.rank, list(state.kinds)) != (other.rank, list(other.kinds)):
        return 0
    if isinstance(run, TrainerRun) or isinstance(other_run, TrainerRun):
        return state.rank if trainer.have_one_start(state, other) else 0
    alike = run.record.seed == other_run.record.seed and _drawn_on(run) == _drawn_on(other_run)
    return state.rank if alike else 0


def _drawn_on(run: OwnRun) -> str:
    """The kind of device: train_vtab.py draws on the CPU, and a record calls a GPU by its name."""
    return "cpu" if isinstance(run, VtabRun) or run.record.device.startswith("cpu") else "gpu"


def _full_weights(path: Path, run: Run) -> Path | None:
    """The file of a fully tuned model at `path`, which is of the kind of the run's."""
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if isinstance(run, TrainerRun):
        return trainer.full_weights(path)
    own = [f"{run.denoiser}/{FULL_NAME}"] if isinstance(run, DreamBoothRun) else []
    return next((path / name for name in (TRAINED_NAME, *own, FULL_NAME) if (path / name).is_file()), None)


def load_frozen_model(run: Run, base: str | None) -> nn.Module:
    """The frozen model that a run was trained on."""
    if isinstance(run, TrainerRun):
        return run.load_base(base)
    if isinstance(run, DreamBoothRun):
        return load_base(run, base, quantize="none").denoiser
    from dash_vision.bases.backbones import Backbone, build

    path = run.folder / NATIVE_NAME
    try:
        about = read_notes(path)["dash_vision_vtab"]
        backbone = Backbone.from_dict({**about["backbone"], **({"checkpoint": base} if base else {})})
        return build(backbone, len(about["classes"]))
    except (KeyError, TypeError):
        raise InputError(f"{path} does not say which model it was trained on; make the run again") from None
    except (InputError, OSError) as error:
        raise InputError(f"cannot load the base of {run.folder} ({error}); name its weights by --base") from None


def frozen_weights(model: nn.Module, state: AdapterState, path: Path) -> dict[str, Tensor]:
    """Module -> its frozen weight [out, in]. Raises InputError when the model is not the one trained on."""
    modules = dict(model.named_modules())
    missing = [m for m in state.kinds if m not in modules]
    if missing or compare_probes({m: probe_weight(modules[m]) for m in state.kinds}, state.probes):
        raise InputError(f"{path} was trained on another base than the one loaded; name the right one by --base")
    return {m: weight_matrix(modules[m]).detach() for m in state.kinds}


def kept_steps(run: Run, state: AdapterState) -> dict[int, Mapping[str, Tensor]]:
    """Optimizer step -> the adapter's A and B by "module.A", "module.B": of DreamBooth from the checkpoints, of VTAB
    from the adapters that --keep_every kept, of a Trainer's from its checkpoints; and of the last step from the final
    file."""
    if isinstance(run, TrainerRun):
        return run.kept_steps(state)
    found: dict[int, Mapping[str, Tensor]] = {}
    for path in (*run.folder.glob("checkpoint-*.safetensors"), *run.folder.glob("adapters/step-*.safetensors")):
        try:
            if isinstance(run, DreamBoothRun):
                saved = load_checkpoint(path)
                step, adapters = int(saved["training"]["step"]), saved["adapters"]
                tensors = adapters[_component(run, adapters)]
            else:
                step, tensors = int(read_notes(path)["step"]), read_native(path)["model"].tensors
            if all(f"{m}.{key}" in tensors for m in state.kinds for key in "AB"):
                found[step] = tensors
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); remove it to do without that step") from None
    final = run.record.steps if isinstance(run, DreamBoothRun) else run.record.optimizer_steps
    found[final or 0] = state.tensors
    return dict(sorted(found.items()))


def shown_layers(modules: Sequence[str], parts: Sequence[str]) -> list[str]:
    if not parts:
        return list(dict.fromkeys(modules[i] for i in (0, len(modules) // 2, len(modules) - 1)))
    chosen = []
    for part in parts:
        found = [m for m in modules if part in m]
        if not found:
            raise InputError(f"no adapted layer has {part!r} in its name; some are {', '.join(modules[:3])}")
        chosen += found
    return list(dict.fromkeys(chosen))
