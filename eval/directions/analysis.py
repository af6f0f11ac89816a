"""The paper's analysis of change rates, on a run and, for overlaps, on a second run or full fine-tuning.

Every chart carries beside it the same number from random updates of the same rank, independent ones or, where two runs
began with one A, ones that share it. The base is loaded for its frozen weights; adapters are read from native files,
their way there from a run's checkpoints.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dash_vision.core.directions import singular_directions
from dash_vision.drawing.plot import Panel, draw
from dash_vision.files.errors import InputError
from dash_vision.files.native import AdapterState

from ..runs import DreamBoothRun, short_names
from ..saving import check_output, check_picture_name, save
from .charts import match_panels, overlap_panels, rate_panels
from .measures import Layer, Null, Tail, layer_overlaps, tail_share
from .sources import (
    Run,
    Source,
    common_start,
    frozen_weights,
    kept_steps,
    load_frozen_model,
    read_source,
    read_truth,
    shown_layers,
)
from .summary import of_overlaps, of_rates
from .trainer import TrainerRun
from .updates import shifts

_LEAST_DRAWS = 20  # of which one lies below a band of 5 to 95 percent


@dataclass(frozen=True)
class Question:
    """What is asked. truth: a second run, or a fully fine-tuned model, whose directions the run's are to predict.
    layers: parts of the names of layers whose change rates are shown; (): the first, the middle and the last. draws:
    random updates a layer, from `seed`. base: where the base is now; None: where the run's record says."""

    run: Path
    truth: Path | None = None
    layers: tuple[str, ...] = ()
    draws: int = 100
    seed: int = 0
    base: str | None = None


@dataclass
class _Material:
    """What is compared. shared: how many rows of A both runs began with in common."""

    run: Run
    source: Source
    state: AdapterState
    truth: Source | None
    truth_run: Run | None
    shared: int


@dataclass
class _Found:
    """What the analysis found, layer after layer."""

    rates: list[Panel] = field(default_factory=list)
    grids: list[Panel] = field(default_factory=list)
    tails: list[Tail] = field(default_factory=list)
    overlaps: list[Layer] = field(default_factory=list)
    shifts: list[tuple[list[float], float]] = field(default_factory=list)


def make_directions(question: Question, output: Path, say: Callable[[str], None] = print) -> None:
    """Draw the analysis to `output` (.png or .pdf). Raises InputError."""
    check_picture_name(output)
    check_output(output)
    if question.draws < _LEAST_DRAWS:
        raise InputError(f"--draws is {question.draws}; bands of 5 to 95 percent need {_LEAST_DRAWS} or more")
    material = _read(question)
    shown = shown_layers(list(material.state.kinds), question.layers)
    frozen = frozen_weights(load_frozen_model(material.run, question.base), material.state, question.run)
    say(f"{len(frozen)} layers, {question.draws} random updates each for comparison, seed {question.seed}")
    steps = kept_steps(material.run, material.state)
    found = _analyse(question, material, frozen, shown, steps)
    headline, panels = _panels(material, found)
    for line in _remarks(question, material, found, len(steps)):
        say(line)
    page = draw(panels, 3, _footnote(question, material), headline=headline)
    truth = str(question.truth) if question.truth else None
    story = {"run": str(question.run), "truth": truth, "draws": question.draws, "seed": question.seed}
    save(page, output, story | {"headline": headline})
    say(headline)
    say(f"{output}: {len(panels)} charts")


def _read(question: Question) -> _Material:
    """Raises InputError for runs that cannot be compared."""
    run, source = read_source(question.run)
    state = source.state
    if state is None or state.rank == 0:
        raise InputError(
            f"{question.run} has no low-rank update to predict directions from; give a run of LoRA or LoRA-Dash"
        )
    if question.truth is None:
        return _Material(run, source, state, None, None, 0)
    truth_run, truth = read_truth(question.truth, run, source)
    shared = common_start(run, state, truth_run, truth.state) if truth_run else 0
    if isinstance(run, DreamBoothRun) or truth.name == source.name:
        source.name, truth.name = short_names([question.run, question.truth])
    return _Material(run, source, state, truth, truth_run, shared)


def _analyse(
    question: Question,
    material: _Material,
    frozen: Mapping[str, Tensor],
    shown: list[str],
    steps: Mapping[int, Mapping[str, Tensor]],
) -> _Found:
    found, state = _Found(), material.state
    for number, (module, W) in enumerate(frozen.items()):
        if state.launched and state.dash_k:
            found.shifts.append(shifts(module, W, state))
        if material.truth is None and module not in shown:
            continue
        directions = singular_directions(W)
        null = Null(question.draws, question.seed + number, material.shared)
        if module in shown:
            found.rates += rate_panels(module, directions, material.source, null)
            found.tails.append(tail_share(module, directions, state, null))
        if material.truth is not None:
            pair = material.source, material.truth
            found.overlaps.append(layer_overlaps(module, W, directions, pair, steps, null))
            if module in shown:
                found.grids += match_panels(module, W, directions, pair, null)
    return found


def _panels(material: _Material, found: _Found) -> tuple[str, list[Panel]]:
    """The page's headline, and its charts: the summary first."""
    if material.truth is None:
        headline, summary = of_rates(found.tails, material.source)
        return headline, [summary, *found.rates]
    details = overlap_panels(found.overlaps, material.truth, material.state)
    headline, summary = of_overlaps(found.overlaps, material.source, material.truth.name)
    return headline, [summary, *details, *found.grids, *found.rates]


def _remarks(question: Question, material: _Material, found: _Found, steps: int) -> list[str]:
    """What else there is to say on the terminal."""
    lines = []
    if material.truth is not None and steps < 2:
        flags = "--keep_every N --overwrite"
        if isinstance(material.run, DreamBoothRun):
            flags = "--checkpointing_steps N and a large --checkpoints_total_limit"
        if isinstance(material.run, TrainerRun):
            flags = "--save_steps N and a large --save_total_limit"
        lines.append(
            f"note: {question.run} keeps no adapter of an earlier step, so there is no chart over steps; train with "
            f"{flags}"
        )
    if found.shifts:
        relative = statistics.median(value for layer, _ in found.shifts for value in layer)
        share = statistics.median(share for _, share in found.shifts)
        lines.append(
            f"shifts of {len(found.shifts)} layers: in the median {100 * relative:.1f} % of their singular values; a "
            f"layer's together {100 * share:.1f} % of its low-rank update, by the Frobenius norm"
        )
    return lines


def _footnote(question: Question, material: _Material) -> str:
    """What is compared, and what chance means here."""
    source, truth = material.source, material.truth
    words = source.name + (f" against {truth.name}" if truth else "")
    words += f". Random updates: what chance would give, {question.draws} updates a layer that learned nothing, of the "
    words += f"same rank and norm, seed {question.seed}"
    if truth:
        words += "; where two runs are compared, pairs of them, "
        one_a = "which share one A, since both runs began with one A"
        words += one_a if material.shared else "independent of each other"
    words += ". Grey: 90 of 100 random updates lie there."
    if truth and material.truth_run is None:
        words += f" That {truth.name} was tuned from the run's base is taken on trust."
    return words
