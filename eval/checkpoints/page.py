"""The picture of a run's checkpoints: what each draws, and how like the subject and how far from the base it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from dash_vision.drawing.numbers import fixed
from dash_vision.drawing.plot import draw
from dash_vision.drawing.sheet import Row, draw_sheet
from dash_vision.measures.charts import trade_off_panel
from dash_vision.runs.evaluation import Evaluated, Evaluation

from ..runs import DreamBoothRun
from .found import HeldOut

MOST_ROWS = 12  # checkpoints of the sheet
_FEW = 5  # checkpoints whose pictures are shown larger
_SMALLER = 0.6  # of the chart as it is drawn alone, so that its letters are as large as the sheet's


def draw_page(
    run: DreamBoothRun,
    evaluation: Evaluation,
    columns: Sequence[str],
    tiles: Mapping[int, Sequence[Image.Image]],
    pictures: HeldOut,
    sampler: str,
) -> Image.Image:
    """The sheet, and below it the chart, where likeness was measured. tiles: step -> a picture a column."""
    shown = shown_steps(evaluation)
    left_out = len(evaluation.trained) - len(shown)
    base = [one for one in (evaluation.base,) if one is not None]
    rows = [Row("base", ", ".join(["without an adapter", *(_measured(one, ("likeness",)) for one in base)]), tiles[0])]
    for one in evaluation.trained:
        if one.step in shown:
            rows.append(Row(*_title(one, evaluation), tiles[one.step]))
    what = "learned from" if pictures.learned else "held out"
    count = len(pictures.pictures)
    inputs = Row(what, f"{count} picture{'' if count == 1 else 's'}, measured on", pictures.pictures)
    chosen = evaluation.recommended
    headline = f"{run.subject}: " + (f"step {chosen.step} is recommended" if chosen else "no step is recommended")
    footnote = f"Rows are steps; {sampler}; same starting noise within a column."
    if left_out:
        footnote += f" {left_out} more checkpoints are in the table."
    sheet = draw_sheet(inputs, columns, rows, headline, footnote, None if len(shown) <= _FEW else 144)
    panel = trade_off_panel(evaluation)
    if panel is None:
        return sheet
    words = f"{chosen.sentence} The rule: {chosen.rule}." if chosen else ""
    chart = draw([panel], 1, words, (round(sheet.width / (2 * _SMALLER)) - 56, 360))
    chart = chart.resize((sheet.width, round(chart.height * sheet.width / chart.width)), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (sheet.width, sheet.height + chart.height), "white")
    page.paste(sheet, (0, 0))
    page.paste(chart, (0, sheet.height))
    return page


def shown_steps(evaluation: Evaluation) -> list[int]:
    """At most MOST_ROWS steps, evenly among all: the last and the recommended one are there."""
    steps = [one.step for one in evaluation.trained]
    if len(steps) <= MOST_ROWS:
        return steps
    even = {steps[round(i * (len(steps) - 1) / (MOST_ROWS - 2))] for i in range(MOST_ROWS - 1)}
    return sorted(even | ({evaluation.recommended.step} if evaluation.recommended else set()))


def _title(one: Evaluated, evaluation: Evaluation) -> tuple[str, str]:
    chosen = evaluation.recommended is not None and one.step == evaluation.recommended.step
    marks = ["recommended"] if chosen else []
    marks += ["applied"] if one.step == evaluation.applied else []
    return ", ".join([f"step {one.step:,}", *marks]), _measured(one, ("likeness", "drift", "leak"))


def _measured(one: Evaluated, names: Sequence[str]) -> str:
    means = {name: one.mean(name) for name in names}
    return ", ".join(f"{name} {fixed(mean, 3)}" for name, mean in means.items() if mean is not None)
