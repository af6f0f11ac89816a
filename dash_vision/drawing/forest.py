"""A forest plot: means with their intervals, side by side for several measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from .numbers import Point, shortest, ticks
from .paint import finished, new_page, paint
from .plot import value_range
from .shapes import Shapes, broken

_MARGIN, _LABEL, _WIDTH, _GAP, _ROW = 28, 210, 280, 24, 24
_Rows = list[tuple[str, "Sequence[Estimate] | None"]]


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval, and the values it is the mean of."""

    mean: float
    low: float
    high: float
    values: Sequence[float] = ()


def draw_forest(
    titles: Sequence[str], groups: Mapping[str, Sequence[tuple[str, Sequence[Estimate]]]], footnote: str = ""
) -> Image.Image:
    """A forest plot: per group a heading and its rows; in each row a label, and in every column, one per title, an
    estimate as dot and bar beside its values as small dots. Zero is marked; a column's range is that of its estimates,
    and an infinite end reaches its edge."""
    rows: _Rows = []
    for heading, members in groups.items():
        rows += [(heading, None), *members]
    page_width = 2 * _MARGIN + _LABEL + len(titles) * (_WIDTH + _GAP)
    notes = broken(footnote, 12, page_width - 2 * _MARGIN)
    top = _MARGIN + 34
    bottom = top + _ROW * len(rows)
    shapes = Shapes()
    _labels(shapes, rows, top, page_width)
    for column, title in enumerate(titles):
        left = _MARGIN + _LABEL + column * (_WIDTH + _GAP)
        cells = [(n, estimates[column]) for n, (_, estimates) in enumerate(rows) if estimates is not None]
        _column(shapes, title, cells, (left, left + _WIDTH), (top, bottom))
    for i, words in enumerate(notes):
        shapes.text((_MARGIN, bottom + 54 + 18 * i), words, "soft", 12)
    page = new_page(page_width, bottom + 44 + 18 * len(notes) + _MARGIN // 2)
    paint(page, shapes)
    return finished(page)


def _labels(shapes: Shapes, rows: _Rows, top: int, page_width: int) -> None:
    """The headings, with a line above each, and the names of the rows."""
    for number, (words, estimates) in enumerate(rows):
        y = top + _ROW * (number + 0.5)
        if estimates is None:
            shapes.line([(_MARGIN, y - _ROW / 2), (page_width - _MARGIN, y - _ROW / 2)], "rule")
        indent, colour = (0, "soft") if estimates is None else (12, "ink")
        shapes.text((_MARGIN + indent, y + 4), words, colour, 13)


def _column(shapes: Shapes, title: str, cells: Sequence[tuple[int, Estimate]], across: Point, down: Point) -> None:
    """cells: (row, estimate). across, down: where the column lies, in pixels."""
    (left, right), (top, bottom) = across, down
    ends = [v for _, e in cells for v in (0.0, e.mean, e.low, e.high, *e.values) if math.isfinite(v)]
    low, high = value_range([min(ends), max(ends)], True)

    def place(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    shapes.text((left, top - 16), title, "ink", 13)
    for tick in ticks(low, high, 6):
        colour, thick = ("soft", 1.2) if tick == 0 else ("rule", 1.0)
        shapes.line([(place(tick), top), (place(tick), bottom)], colour, thick)
        shapes.text((place(tick), bottom + 16), shortest(tick), "soft", 11, "middle")
    for row, estimate in cells:
        y = top + _ROW * (row + 0.5)
        for value in estimate.values:
            shapes.dot((place(value), y - 6), "c7", 1.8)
        shapes.line([(place(estimate.low), y), (place(estimate.high), y)], "c0", 2)
        shapes.dot((place(estimate.mean), y), "c0", 4)
