"""The paper's analysis of change rates, on a run and, for overlaps, on a second run or full fine-tuning.

Every chart carries its null: the same number from random updates of the same rank, independent ones or, where two runs
began with one A, ones that share it. The base is loaded for its frozen weights; adapters are read from native files,
their way there from a run's checkpoints.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dash_vision.core.analysis import (
    LowRank,
    Overlap,
    Update,
    matches,
    norm,
    null_pairs,
    null_rates,
    overlap,
    update_rates,
)
from dash_vision.core.directions import Directions, singular_directions
from dash_vision.core.loading import probe_weight
from dash_vision.core.weights import weight_matrix
from dash_vision.drawing.plot import Panel, Point, Series, draw
from dash_vision.files.checkpoint import load_checkpoint
from dash_vision.files.errors import InputError
from dash_vision.files.fingerprints import compare_probes
from dash_vision.files.native import NATIVE_NAME, AdapterState, read_native, read_notes

from .figure import check_picture_name, save
from .runs import (
    RECORDS,
    DreamBoothRun,
    Run,
    VtabRun,
    find_runs,
    labels,
    load_pipeline,
    native_adapters,
    short_names,
)

TRAINED_NAME = "trained.safetensors"  # of a VTAB run without an adapter
FULL_NAMES = (TRAINED_NAME, "unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors")
_TAIL = 0.1  # of the spectrum
_LEAST_TAIL = 24  # directions
_SORTED = 48
_LEAST_DRAWS = 20  # of which one lies below a band of 5 to 95 percent


@dataclass
class Source:
    """Where updates come from: a run's adapter, or the weights of a fully fine-tuned model."""

    name: str
    state: AdapterState | None
    weights: Path | None


@dataclass
class Layer:
    """What was found in one layer."""

    module: str
    at: dict[int, Overlap]  # by optimizer step
    null: list[Overlap]


def make_directions(
    run: Path,
    output: Path,
    truth: Path | None = None,
    layers: Sequence[str] = (),
    draws: int = 100,
    seed: int = 0,
    base: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Draw the analysis of `run` to `output` (.png or .pdf). Raises InputError.

    truth: a second run, or a fully fine-tuned model, whose directions the run's are to predict. layers: parts of the
    names of layers whose change rates are shown (default: the first, the middle and the last).
    """
    check_picture_name(output)
    if draws < _LEAST_DRAWS:
        raise InputError(f"--draws is {draws}; bands of 5 to 95 percent need {_LEAST_DRAWS} or more")
    found, source = _source(run)
    state = source.state
    if state is None or state.rank == 0:
        raise InputError(f"{run} has no low-rank update to predict directions from; give a run of LoRA or LoRA-Dash")
    other_run, other = _truth(truth, found, source) if truth else (None, None)
    shared = _common_start(found, state, other_run, other.state) if other and other_run else 0
    if truth and other and (isinstance(found, DreamBoothRun) or other.name == source.name):
        source.name, other.name = short_names([run, truth])
    shown = _shown(list(state.kinds), layers)
    model = _base(found, base)
    frozen = _frozen(model, state, run)
    say(f"{len(frozen)} layers, {draws} random updates each for the null, seed {seed}")
    steps = _steps(found, state)
    panels: list[Panel] = []
    grids: list[Panel] = []
    analysed: list[Layer] = []
    shifts: list[tuple[list[float], float]] = []
    for number, (module, W) in enumerate(frozen.items()):
        if state.launched and state.dash_k:
            shifts.append(_shifts(module, W, state))
        if other is None and module not in shown:
            continue
        directions = singular_directions(W)
        if module in shown:
            panels += _rate_panels(module, directions, state, draws, seed + number)
        if other is not None:
            analysed.append(_overlaps(module, W, directions, source, other, steps, shared, draws, seed + number))
            if module in shown:
                grids += _match_panels(module, W, directions, source, other, shared, draws, seed + number)
    if other is not None:
        panels = _overlap_panels(analysed, other, state) + grids + panels
        if len(steps) < 2:
            flags = "--keep_every N --overwrite"
            if isinstance(found, DreamBoothRun):
                flags = "--checkpointing_steps N and a large --checkpoints_total_limit"
            say(f"note: {run} keeps no adapter of an earlier step, so there is no chart over steps; train with {flags}")
    if shifts:
        relative = statistics.median(value for layer, _ in shifts for value in layer)
        share = statistics.median(share for _, share in shifts)
        say(
            f"shifts of {len(shifts)} layers: in the median {100 * relative:.1f} % of their singular values; a layer's "
            f"together {100 * share:.1f} % of its low-rank update, by the Frobenius norm"
        )
    page = draw(panels, 3, _footnote(source, other, other_run, shared, draws, seed))
    save(page, output, {"run": str(run), "truth": str(truth) if truth else None, "draws": draws, "seed": seed})
    say(f"{output}: {len(panels)} charts")


def _footnote(source: Source, other: Source | None, other_run: Run | None, shared: int, draws: int, seed: int) -> str:
    """What is compared, and with which null."""
    words = source.name + (f" against {other.name}" if other else "")
    words += f"; null: {draws} random updates a layer, of the same rank and norm, seed {seed}"
    if other:
        words += "; for overlaps pairs of them, "
        words += "which share one A, since both runs began with one A" if shared else "independent of each other"
    words += "; bands: 5 to 95 percent of them."
    if other and other_run is None:
        words += f" That {other.name} was tuned from the run's base is taken on trust."
    return words


# -- reading


def _source(path: Path) -> tuple[Run, Source]:
    """The one run at `path` and its adapter, of the UNet or of the ViT."""
    runs, problems = find_runs([path])
    if problems or len(runs) != 1:
        raise InputError("; ".join(problems) or f"{path} holds {len(runs)} runs; give the folder of one")
    states = native_adapters(runs[0])
    if states:
        state = states.get("unet") or next(iter(states.values()))
        return runs[0], Source(_name(runs[0]), state, None)
    weights = _full_weights(path)
    if weights is None:
        raise InputError(f"{path} has no {NATIVE_NAME}; the analysis takes runs of LoRA, LoRA-Dash or full fine-tuning")
    return runs[0], Source(_name(runs[0]), None, weights)


def _name(run: Run) -> str:
    return run.folder.name if isinstance(run, DreamBoothRun) else labels([run])[0]


def _truth(path: Path, run: Run, source: Source) -> tuple[Run | None, Source]:
    """What `source` is to predict, and its run; None for weights that are no run's. Raises InputError for another base
    than that of `run`."""
    weights = _full_weights(path)
    if weights and not any((path / name).is_file() for name in RECORDS):
        return None, Source(path.name, None, weights)
    found, truth = _source(path)
    refusal = f"{path} was trained on another base than {source.name}"
    if truth.state is not None:
        assert source.state is not None
        common = truth.state.kinds.keys() & source.state.kinds.keys()
        mine = {m: source.state.probes[m] for m in common}
        if not common or compare_probes(mine, {m: truth.state.probes[m] for m in common}):
            raise InputError(f"{refusal}; their directions have no relation")
    elif _recorded_base(found) != _recorded_base(run):
        pairs = zip(_recorded_base(found).items(), _recorded_base(run).values(), strict=False)
        differing = "; ".join(f"{name}: {value}, not {mine}" for (name, value), mine in pairs if value != mine)
        raise InputError(f"{refusal} ({differing}); give its weights as a file to take the base on trust")
    return found, truth


def _recorded_base(run: Run) -> dict[str, str]:
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


def _common_start(run: Run, state: AdapterState, other_run: Run, other: AdapterState | None) -> int:
    """How many rows of A, in every layer, two runs began with in common: all, or none.

    A is drawn layer after layer from the run's seed, on the run's device, before anything else is.
    """
    if other is None or (state.rank, list(state.kinds)) != (other.rank, list(other.kinds)):
        return 0
    alike = run.record.seed == other_run.record.seed and _drawn_on(run) == _drawn_on(other_run)
    return state.rank if alike else 0


def _drawn_on(run: Run) -> str:
    """The kind of device: train_vtab.py draws on the CPU, and a record calls a GPU by its name."""
    return "cpu" if isinstance(run, VtabRun) or run.record.device.startswith("cpu") else "gpu"


def _full_weights(path: Path) -> Path | None:
    if path.is_file() and path.suffix == ".safetensors":
        return path
    return next((path / name for name in FULL_NAMES if (path / name).is_file()), None)


def _base(run: Run, base: str | None) -> nn.Module:
    """The frozen model that a run was trained on."""
    if isinstance(run, DreamBoothRun):
        return load_pipeline(run, base).unet
    from dash_vision.bases.backbones import Backbone, build
    from dash_vision.files.errors import InputError

    path = run.folder / NATIVE_NAME
    try:
        about = read_notes(path)["dash_vision_vtab"]
        backbone = Backbone.from_dict({**about["backbone"], **({"checkpoint": base} if base else {})})
        return build(backbone, len(about["classes"]))
    except (KeyError, TypeError):
        raise InputError(f"{path} does not say which model it was trained on; make the run again") from None
    except (InputError, OSError) as error:
        raise InputError(f"cannot load the base of {run.folder} ({error}); name its weights by --base") from None


def _frozen(model: nn.Module, state: AdapterState, path: Path) -> dict[str, Tensor]:
    """Module -> its frozen weight [out, in]. Raises InputError when the model is not the one trained on."""
    modules = dict(model.named_modules())
    missing = [m for m in state.kinds if m not in modules]
    if missing or compare_probes({m: probe_weight(modules[m]) for m in state.kinds}, state.probes):
        raise InputError(f"{path} was trained on another base than the one loaded; name the right one by --base")
    return {m: weight_matrix(modules[m]).detach() for m in state.kinds}


def _steps(run: Run, state: AdapterState) -> dict[int, Mapping[str, Tensor]]:
    """Optimizer step -> the adapter's A and B by "module.A", "module.B": of DreamBooth from the checkpoints, of VTAB
    from the adapters that --keep_every kept, and of the last step from the final file."""
    found: dict[int, Mapping[str, Tensor]] = {}
    for path in (*run.folder.glob("checkpoint-*.safetensors"), *run.folder.glob("adapters/step-*.safetensors")):
        try:
            if isinstance(run, DreamBoothRun):
                saved = load_checkpoint(path)
                step, tensors = int(saved["training"]["step"]), next(iter(saved["adapters"].values()))
            else:
                step, tensors = int(read_notes(path)["step"]), read_native(path)["model"].tensors
            if all(f"{m}.{key}" in tensors for m in state.kinds for key in "AB"):
                found[step] = tensors
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); remove it to do without that step") from None
    final = run.record.steps if isinstance(run, DreamBoothRun) else run.record.optimizer_steps
    found[final or 0] = state.tensors
    return dict(sorted(found.items()))


def _shown(modules: Sequence[str], parts: Sequence[str]) -> list[str]:
    if not parts:
        return list(dict.fromkeys(modules[i] for i in (0, len(modules) // 2, len(modules) - 1)))
    chosen = []
    for part in parts:
        found = [m for m in modules if part in m]
        if not found:
            raise InputError(f"no adapted layer has {part!r} in its name; some are {', '.join(modules[:3])}")
        chosen += found
    return list(dict.fromkeys(chosen))


# -- updates


def _low_rank(tensors: Mapping[str, Tensor], module: str, scaling: float) -> LowRank:
    """The LoRA part, which the method predicts from."""
    return LowRank(tensors[f"{module}.A"], tensors[f"{module}.B"] * scaling)


def _learned(source: Source, module: str, W: Tensor, directions: Directions) -> Update | None:
    """All that was learned in a layer; None where it was not trained."""
    state = source.state
    if state is None:
        return _difference(source, module, W)
    if module not in state.kinds:
        return None
    A, B = _low_rank(state.tensors, module, state.scaling)
    if state.launched and state.dash_k:
        indices, shifts = state.tensors[f"{module}.indices"], state.tensors[f"{module}.dsigma"].double()
        A = torch.cat([A.double(), directions.V[indices]])
        B = torch.cat([B.double(), directions.U[:, indices] * shifts], dim=1)
    return LowRank(A, B)


def _shifts(module: str, W: Tensor, state: AdapterState) -> tuple[list[float], float]:
    """|dsigma| / sigma of a layer's chosen directions, and |U diag(dsigma) V| / |(alpha / r) B A|: U and V are
    orthonormal, so the first norm is that of dsigma."""
    shift = state.tensors[f"{module}.dsigma"].double()
    if state.compact:
        sigma = singular_directions(W).sigma[state.tensors[f"{module}.indices"]]
    else:  # u^T W v: no decomposition of every layer of a large model for one line
        U, V = (state.tensors[f"{module}.{key}"].double() for key in "UV")
        sigma = ((W.double() @ V.T) * U).sum(0)
    update = norm(_low_rank(state.tensors, module, state.scaling))
    return (shift.abs() / (sigma + state.eps)).tolist(), shift.norm().item() / max(update, 1e-300)


def _difference(source: Source, module: str, W: Tensor) -> Tensor | None:
    assert source.weights is not None
    key = f"{module}.weight"
    try:
        with safe_open(source.weights, "pt") as file:
            if key not in file.keys():  # noqa: SIM118 (no mapping)
                return None
            tuned = file.get_tensor(key).flatten(1)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{source.weights} is no complete .safetensors file ({error})") from None
    if tuned.shape != W.shape:
        raise InputError(f"{source.weights}: {key} is {tuple(tuned.shape)}, the base's is {tuple(W.shape)}")
    return tuned.double() - W.double()


# -- charts


def _rate_panels(module: str, directions: Directions, state: AdapterState, draws: int, seed: int) -> Iterator[Panel]:
    """Change rate against index: all of it, its tail, and sorted, each with its null."""
    update = _low_rank(state.tensors, module, state.scaling)
    rates = update_rates(directions, update, state.eps)
    null = null_rates(directions, update, draws, seed, state.eps)
    p = len(rates)
    tail = min(p, max(_LEAST_TAIL, round(_TAIL * p)))
    chosen: list[int] = state.tensors[f"{module}.indices"].tolist() if state.launched else []
    dots = [(float(i), float(rates[i])) for i in chosen]
    for title, first in (("whole spectrum", 0), (f"last {tail}", p - tail)):
        series = [*_null(null[:, first:], first), Series("trained", _points(rates[first:], first), 0)]
        if dots:
            series.append(Series("chosen at launch", [d for d in dots if d[0] >= first], 4, "dots"))
        yield Panel(f"{module}: {title}", "index, 0: largest singular value", "change rate", series, log=True)
    falling, null_falling = rates.sort(descending=True).values, null.sort(dim=1, descending=True).values
    n = min(p, _SORTED)
    series = [*_null(null_falling[:, :n], 0), Series("trained", _points(falling[:n], 0), 0)]
    yield Panel(f"{module}: sorted, largest {n}", "rank of the change rate", "change rate", series, log=True)


def _points(values: Tensor, first: int) -> list[Point]:
    return [(float(first + i), v) for i, v in enumerate(values.tolist())]


def _null(draws: Tensor, first: int) -> list[Series]:
    low, middle, high = torch.quantile(draws, torch.tensor([0.05, 0.5, 0.95], dtype=draws.dtype), dim=0)
    return [
        Series("null", _points(low, first), 7, "band", _points(high, first)),
        Series("", _points(middle, first), 7, "faint"),
    ]


def _overlaps(
    module: str,
    W: Tensor,
    directions: Directions,
    source: Source,
    truth: Source,
    steps: Mapping[int, Mapping[str, Tensor]],
    shared: int,
    draws: int,
    seed: int,
) -> Layer:
    assert source.state is not None
    config = source.state
    update = _learned(truth, module, W, directions)
    if update is None:
        return Layer(module, {}, [])
    true = update_rates(directions, update, config.eps)
    at = {
        step: overlap(update_rates(directions, _low_rank(tensors, module, config.scaling), config.eps), true)
        for step, tensors in steps.items()
    }
    rank = update.A.shape[0] if isinstance(update, LowRank) else None
    pairs = null_pairs(directions, (config.rank, rank), draws, seed, config.eps, shared)
    return Layer(module, at, [overlap(first, second) for first, second in pairs])


def _overlap_panels(layers: Sequence[Layer], truth: Source, state: AdapterState) -> list[Panel]:
    """Recall and accuracy over layers at the last step; where more steps were kept, their means over these."""
    layers = [layer for layer in layers if layer.at]
    if not layers:
        raise InputError(f"{truth.name} has none of the run's layers; give a model of the same kind")
    panels = []
    steps = list(layers[0].at)
    for colour, measure in ((0, "recall"), (1, "accuracy")):
        numbers = range(1, len(layers) + 1)
        low, middle, high = zip(*(_quantiles([getattr(o, measure) for o in x.null]) for x in layers), strict=True)
        last = [(float(n), getattr(x.at[steps[-1]], measure)) for n, x in zip(numbers, layers, strict=True)]
        series = [
            Series("null", _at(numbers, low), 7, "band", _at(numbers, high)),
            Series("", _at(numbers, middle), 7, "faint"),
            Series(measure, last, colour, "dots"),
        ]
        title = f"{measure.capitalize()} of {_size(state)} against {truth.name}, step {steps[-1]}"
        panels.append(
            Panel(title, f"layer, of {len(layers)} in the model's order", measure, series, bounds=(-0.04, 1.04))
        )
    return [*panels, _over_steps(layers, steps)] if len(steps) > 1 else panels


def _match_panels(
    module: str, W: Tensor, directions: Directions, source: Source, truth: Source, shared: int, draws: int, seed: int
) -> list[Panel]:
    """The paper's rank-match grid of a layer: which rank in one is which rank in the other; and how often random
    updates fill each cell."""
    assert source.state is not None
    config = source.state
    update = _learned(truth, module, W, directions)
    if update is None:
        return []
    own = update_rates(directions, _low_rank(source.state.tensors, module, config.scaling), config.eps)
    found = matches(own, update_rates(directions, update, config.eps))
    rank = update.A.shape[0] if isinstance(update, LowRank) else None
    pairs = null_pairs(directions, (config.rank, rank), draws, seed, config.eps, shared)
    null = torch.stack([matches(first, second) for first, second in pairs])
    low, middle, high = _quantiles(null.sum(dim=(1, 2)).tolist())
    n = len(found)
    cells = [(float(j + 1), float(i + 1)) for i in range(n) for j in range(n)]

    def grid(title: str, shares: Tensor, colour: int) -> Panel:
        series = Series("", cells, colour, "cells", shades=shares.flatten().tolist())
        x, y = f"rank in {truth.name}", f"rank in {source.name}"
        return Panel(f"{module}: {title}", x, y, [series], bounds=(0.5, n + 0.5))

    chance = null.double().mean(dim=0)
    darkest = max(chance.max().item(), 1e-9)
    return [
        grid(f"{int(found.sum())} of the {n} largest are shared", found.double(), 0),
        grid(
            f"null, {middle:.2g} shared ({low:.2g} to {high:.2g}); darkest cell {chance.max():.2f}", chance / darkest, 7
        ),
    ]


def _over_steps(layers: Sequence[Layer], steps: Sequence[int]) -> Panel:
    series = []
    # A dot fits into a square: equal ones both show.
    for colour, measure, marker in ((0, "recall", "square"), (1, "accuracy", "dot")):
        means = [statistics.fmean(getattr(x.at[step], measure) for x in layers) for step in steps]
        # One draw of the null is one random update in every layer.
        drawn = zip(*([getattr(o, measure) for o in x.null] for x in layers), strict=True)
        low, _, high = _quantiles([statistics.fmean(values) for values in drawn])
        band = _at((0, steps[-1]), (low, low)), _at((0, steps[-1]), (high, high))
        series += [
            Series(f"null, {measure}", band[0], colour, "band", band[1]),
            Series(measure, _at(steps, means), colour, marker=marker),
        ]
    return Panel("Mean over layers", "optimizer step", "recall, accuracy", series, bounds=(-0.04, 1.04))


def _size(state: AdapterState) -> str:
    return f"LoRA of rank {state.rank}"


def _at(places: Sequence[int] | range, values: Sequence[float]) -> list[Point]:
    return [(float(x), v) for x, v in zip(places, values, strict=True)]


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    found = torch.quantile(torch.tensor(values, dtype=torch.float64), torch.tensor([0.05, 0.5, 0.95]).double())
    low, middle, high = found.tolist()
    return low, middle, high
