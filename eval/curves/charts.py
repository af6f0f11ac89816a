"""What runs recorded while they trained: loss and accuracy against step, and what the dash learned where.

Everything comes from run.json, result.json and the native adapter files; no model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from dash_vision.drawing.numbers import running_mean, thinned
from dash_vision.drawing.plot import MOST_LINES, Panel, Point, Series
from dash_vision.files.errors import InputError

from ..bases import native_adapters
from ..colours import line_colours
from ..runs import DreamBoothRun, Run, VtabRun, labels

# The projections of one block keep one colour through a chart.
_COLOURS = (2, 3, 4, 5, 6, 10, 11, 12)  # none of those that stand for LoRA, LoRA-Dash and the base
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out", "qkv", "proj", "fc1", "fc2")


def all_panels(runs: Sequence[Run]) -> tuple[list[Panel], list[str]]:
    """Every chart that these runs allow, and the problems of adapters that cannot be read.

    More runs than one chart tells apart are spread over several.
    """
    names = labels(runs)
    dreambooth = [(n, r) for n, r in zip(names, runs, strict=True) if isinstance(r, DreamBoothRun)]
    vtab = [(n, r) for n, r in zip(names, runs, strict=True) if isinstance(r, VtabRun)]
    panels = []
    for first in range(0, len(dreambooth), MOST_LINES):
        panels.append(_dreambooth_loss(dreambooth[first : first + MOST_LINES]))
    for first in range(0, len(vtab), MOST_LINES):
        panels += _vtab(vtab[first : first + MOST_LINES])
    problems = []
    for name, run in zip(names, runs, strict=True):
        try:
            panels += adapter_panels(name, run)
        except InputError as error:
            problems.append(str(error))
    return panels, problems


def _dreambooth_loss(runs: Sequence[tuple[str, DreamBoothRun]]) -> Panel:
    longest = max(len(run.losses) for _, run in runs)
    window = max(1, longest // 20)
    raw, smooth = [], []
    for (name, run), colour in zip(runs, line_colours([run.method for _, run in runs]), strict=True):
        steps = range(1, len(run.losses) + 1)
        raw.append(Series("", thinned(list(zip(steps, run.losses, strict=True))), colour, "faint"))
        means = running_mean(run.losses, window)
        # The mean begins where it has its full window.
        smooth.append(Series(name, thinned(list(zip(steps, means, strict=True))[window - 1 :]), colour))
    title = f"Training loss, mean of {window} steps (pale: each step)"
    return Panel(title, "optimizer step", "loss", [*raw, *smooth], _launches([run for _, run in runs]))


def _vtab(runs: Sequence[tuple[str, VtabRun]]) -> list[Panel]:
    loss, accuracy = [], []
    for (name, run), colour in zip(runs, line_colours([run.method for _, run in runs]), strict=True):
        loss.append(Series(name, [(step, value) for step, value, _ in run.scores], colour))
        measured: list[Point] = [(step, float(value)) for step, _, value in run.scores if value is not None]
        if measured:
            accuracy.append(Series(name, measured, colour))
    marks = _launches([run for _, run in runs])
    panels = [Panel("Training loss on train800, mean of each epoch", "optimizer step", "loss", loss, marks)]
    if accuracy:
        panels.append(Panel("Accuracy on val200", "optimizer step", "percent", accuracy, marks))
    return panels


def _launches(runs: Sequence[Run]) -> list[tuple[float, str]]:
    steps = sorted({run.launch for run in runs if run.launch is not None})
    return [(step, f"dash launched after step {', '.join(map(str, steps))}") for step in steps]


def adapter_panels(name: str, run: Run) -> list[Panel]:
    """Per component of a launched adapter: the learned shifts, and where in the spectra the directions lie.

    Empty for runs without a dash. Raises InputError for a broken adapter file.
    """
    panels = []
    adapters = {c: s for c, s in native_adapters(run).items() if s.launched and s.dash_k}
    for component, state in adapters.items():
        shifts: dict[str, list[Point]] = {}
        places: dict[str, list[Point]] = {}
        for layer, module in enumerate(state.kinds, start=1):
            out, in_, _, _ = state.size(module)
            last = max(1, min(out, in_) - 1)
            kind = _projection(module)
            shifts.setdefault(kind, []).extend((layer, v) for v in state.tensors[f"{module}.dsigma"].tolist())
            places.setdefault(kind, []).extend((layer, i / last) for i in state.tensors[f"{module}.indices"].tolist())
        whose = name if len(adapters) == 1 else f"{name}, {component}"
        x = f"layer, of {len(state.kinds)} in the model's order"
        panels += [
            Panel(f"Learned shifts of singular values: {whose}", x, "shift of the singular value", _dots(shifts)),
            Panel(
                f"Where the chosen directions lie in the spectrum: {whose}",
                x,
                "0: largest singular value, 1: smallest",
                _dots(places),
                bounds=(-0.04, 1.04),
            ),
        ]
    return panels


def _projection(module: str) -> str:
    found = [part for part in module.split(".") if part in _PROJECTIONS]
    return found[-1] if found else module.rsplit(".", 1)[-1]


def _dots(points: dict[str, list[Point]]) -> list[Series]:
    return [
        Series(kind, values, colour, "dots")
        for (kind, values), colour in zip(points.items(), cycle(_COLOURS), strict=False)
    ]
