"""What runs measured of themselves, on the page: curves, likeness against drift, the contact sheet, the table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from dash_vision.drawing.plot import Panel, svg
from dash_vision.measures.charts import progress_panels, trade_off_panel
from dash_vision.runs.evaluation import Evaluation, compared, measures_of

from ..checkpoints.tables import marks
from ..runs import DreamBoothRun, Run
from .html import Cell, as_data, enlargeable, number, table

_CHART = 400  # pixels, as the page's other charts


def checkpoints(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Every DreamBooth run that was measured; "" without any."""
    parts = []
    for name, run in zip(names, runs, strict=True):
        if isinstance(run, DreamBoothRun):
            later = compared(run.folder, run.record.evaluation, run.record.steps)
            evaluation = later or run.record.evaluation  # the training's losses are in the latter
            if evaluation is not None and evaluation.trained:
                parts.append(_run(name, run, evaluation, later is not None))
    return "\n".join(parts)


def _run(name: str, run: DreamBoothRun, evaluation: Evaluation, is_later: bool) -> str:
    """is_later: `eval checkpoints` made the evaluation, and its sheet belongs to it."""
    sheet = run.folder / "checkpoints" / "checkpoints.png"
    panels: list[Panel] = progress_panels(evaluation, run.losses, run.launch)
    drawn = is_later and sheet.is_file()
    trade_off = None if drawn else trade_off_panel(evaluation)  # the sheet has it too
    panels += [trade_off] if trade_off is not None else []
    charts = "".join(f"<div>{svg(panel, _CHART)}</div>" for panel in panels)
    parts = [f"<h3>{escape(f'{name}: {run.subject}')}</h3>"]
    chosen = evaluation.recommended
    if chosen is not None:
        parts.append(f"<p>{escape(chosen.sentence)} {escape(f'The rule: {chosen.rule}.')}</p>")
    parts.append(f'<div class="charts">{charts}</div>')
    if drawn:
        alt = f"pictures by the checkpoints of {name}, one row each, and their likeness against their drift"
        parts.append(enlargeable(as_data(sheet.read_bytes()), alt, f"{name}: the checkpoints, from the same noise"))
    parts.append(_table(name, run, evaluation))
    return "".join(parts)


def _table(name: str, run: DreamBoothRun, evaluation: Evaluation) -> str:
    measures = measures_of(evaluation.checkpoints)
    rows = []
    for one in sorted(evaluation.checkpoints, key=lambda one: one.step):
        words = ", ".join(marks(one, evaluation, run.launch))
        rows.append([number(one.step), *(number(one.mean(measure), 4) for measure in measures), Cell(words)])
    encoders = ", ".join(dict.fromkeys(evaluation.encoders.values()))
    by = f", by {encoders}" if encoders else ""
    count = len(evaluation.heldout)
    how = ", from which the run learned" if evaluation.learned else ""
    pictures = f"{count} picture{'' if count == 1 else 's'} in {Path(evaluation.folder).name}"
    caption = f"{name}: measured on {pictures}{how}{by}."
    return table(["step", *measures, "remarks"], rows, caption)
