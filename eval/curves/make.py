"""The picture of the curves of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dash_vision.drawing.plot import MOST_LINES, draw
from dash_vision.files.errors import InputError

from ..runs import find_runs, labels
from ..saving import check_output, check_picture_name, save
from .charts import all_panels


def make_curves(paths: Sequence[Path], output: Path, say: Callable[[str], None] = print) -> list[str]:
    """Draw the curves of the runs at `paths` to `output` (.png or .pdf); the problems of those left out.

    Raises InputError when there is nothing to draw.
    """
    check_picture_name(output)
    check_output(output)
    runs, problems = find_runs(paths)
    if not runs:
        raise InputError("; ".join(problems) or "no runs; give output folders of train_dreambooth.py or train_vtab.py")
    if len(runs) > MOST_LINES:
        raise InputError(
            f"there are {len(runs)} runs; one picture takes up to {MOST_LINES}: name fewer, such as the folder of one "
            "task or method"
        )
    panels, broken = all_panels(runs)
    if len(panels) % 2:
        panels[0] = replace(panels[0], wide=True)  # no empty place on the page
    names = labels(runs)
    footnote = f"{len(runs)} runs: {', '.join(names)}" if len(runs) > 1 else names[0]
    page = draw(panels, 2, footnote)
    save(page, output, {"runs": [str(run.folder) for run in runs]})
    charts = "1 chart" if len(panels) == 1 else f"{len(panels)} charts"
    say(f"{output}: {charts} of {'1 run' if len(runs) == 1 else f'{len(runs)} runs'}")
    return problems + broken
