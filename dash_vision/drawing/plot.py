"""Small charts: one description of a panel, drawn as inline SVG for a page and by Pillow for PNG and PDF.

Lengths are in pixels of the SVG; a picture drawn by Pillow has paint.SCALE times as many.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from PIL import Image

from .numbers import Point, shortest, ticks
from .paint import as_svg, finished, new_page, paint
from .shapes import COLOURS, DASHES, MARKERS, Shapes, broken, length_of

__all__ = ["MOST_LINES", "Bar", "Panel", "Point", "Series", "draw", "svg", "value_range"]

MOST_LINES = len(COLOURS) * len(DASHES)  # that one panel tells apart
_PLOT = 180  # least height of a panel's plotting area, however long the title and the legend above it are
_PERIOD = 16.0  # of the dashes of a line that lies on another one
_EQUAL = 0.8  # pixels within which two lines are drawn in the same place
_EQUAL_WORDS = "dashes of two colours: these lines lie on each other"


@dataclass(frozen=True)
class Series:
    """Points under one name. A name of "" stays out of the legend. A colour is an index of COLOURS; those beyond have
    the colours again with another of DASHES, or of MARKERS where points stand alone.

    style: "line", "faint" (a thin pale line), "dots", "band" (filled between `points` and `upper`, which have the same
    x), or "cells" (a square of side 1 around each point, as opaque as `shades` says). marker: one of MARKERS to set on
    every point of a line. labels: words beside the points of a line, one each.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    style: str = "line"
    upper: Sequence[Point] = ()
    shades: Sequence[float] = ()
    marker: str = ""
    labels: Sequence[str] = ()

    @property
    def tint(self) -> str:
        """The name of its colour among the shapes."""
        return f"c{self.colour % len(COLOURS)}"

    @property
    def cycle(self) -> int:
        """How often the colours were used up before it: the index of its dashes and its marker."""
        return self.colour // len(COLOURS) % len(DASHES)

    @property
    def symbol(self) -> str:
        """The marker of its points; "" for a line without."""
        alone = self.style == "dots" or (self.style == "line" and len(self.points) == 1)
        return self.marker or (MARKERS[self.cycle] if alone else "")


@dataclass(frozen=True)
class Bar:
    """A horizontal bar from 0 to `value` with its name above it and `text` at its end. low, high: the ends of a range
    that is marked on it."""

    name: str
    value: float
    text: str
    colour: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """One chart. marks: vertical dashed lines (x, what happened there, for the legend). log: the y axis is logarithmic;
    values that are not positive are then left out. bounds: (low, high) of y, where they are not to follow from the
    points. note: sentences under the title. bars: instead of series. wide: it has a row of a page for itself."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = ()
    log: bool = False
    bounds: tuple[float, float] | None = None
    note: str = ""
    bars: Sequence[Bar] = ()
    wide: bool = False


@dataclass(frozen=True)
class _Frame:
    """The plotting area in pixels, and the values at its ends; y0 and y1 are powers of ten where log is set."""

    left: float
    top: float
    right: float
    bottom: float
    x0: float
    x1: float
    y0: float
    y1: float
    log: bool

    def place(self, point: Point) -> Point:
        """Where a point is drawn."""
        value = math.log10(point[1]) if self.log else point[1]
        return self.at_x(point[0]), self.at_y(value)

    def at_x(self, x: float) -> float:
        return self.left + (x - self.x0) / (self.x1 - self.x0) * (self.right - self.left)

    def at_y(self, y: float) -> float:
        """y: a power of ten where log is set."""
        return self.bottom - (y - self.y0) / (self.y1 - self.y0) * (self.bottom - self.top)


# -- layout


def _layout(panel: Panel, width: int, height: int) -> tuple[Shapes, int]:
    """The panel's shapes and its height: `height`, or what its title, its legend and a plotting area of _PLOT take."""
    shapes = Shapes()
    y = 18.0
    for words in broken(panel.title, 15, width):
        shapes.text((0, y), words, "ink", 15)
        y += 20
    if panel.note:
        y += shapes.paragraph((0, y), panel.note, "soft", 12, width)
    if panel.bars:
        return shapes, _bars(shapes, panel.bars, width, y)
    covered = _covered(panel, width)
    y = _legend(shapes, panel, width, y)
    if any(map(any, covered.values())):
        shapes.text((0, y - 2), _EQUAL_WORDS, "soft", 12)
        y += 18
    left, right = 52, width - 10
    x_words, y_words = broken(panel.x, 12, right - left), broken(panel.y, 11, right - left)
    top, below = y + 8 + 14 * (len(y_words) - 1), 24 + 16 * len(x_words)
    height = max(height, math.ceil(top + _PLOT + below))
    frame = _frame(panel, left, top, right, height - below)
    if frame is None:
        shapes.text(((left + right) / 2, (top + height - below) / 2), "no values", "soft", 13, "middle")
        return shapes, height
    _axes(shapes, panel, frame, width)
    _axis_words(shapes, frame, x_words, y_words, (left + right) / 2)
    for at, _ in panel.marks:
        x = frame.at_x(at)
        shapes.line([(x, frame.top), (x, frame.bottom)], "soft", 1.2, dashes=(4, 4))
    for place, series in enumerate(panel.series):
        points = [frame.place(p) for p in series.points if _drawn(panel, p)]
        _series(shapes, series, points, frame.place, panel, covered.get(place, []))
    return shapes, height


def _frame(panel: Panel, left: float, top: float, right: float, bottom: float) -> _Frame | None:
    """The plotting area, with axes that fit the points; None where there is nothing to draw."""
    points = [p for s in panel.series for p in (*s.points, *s.upper) if _drawn(panel, p)]
    if not points:
        return None
    # A launch may come before the first epoch's end.
    x0, x1 = value_range([*(p[0] for p in points), *(at for at, _ in panel.marks)], False)
    y0, y1 = panel.bounds or value_range([p[1] for p in points], True)
    styles = {s.style for s in panel.series}
    if "dots" in styles:
        x0, x1 = x0 - 0.015 * (x1 - x0), x1 + 0.015 * (x1 - x0)
    if "cells" in styles:
        x0, x1 = x0 - 0.5, x1 + 0.5
        right = min(right, left + round((bottom - top) * (x1 - x0) / (y1 - y0)))  # square ones
    if panel.log:
        positive = [p[1] for p in points]
        y0, y1 = math.log10(min(positive)) - 0.05, math.log10(max(positive)) + 0.05
        y1 = max(y1, y0 + 0.2)
    return _Frame(left, top, right, bottom, x0, x1, y0, y1, panel.log)


def _axes(shapes: Shapes, panel: Panel, frame: _Frame, width: int) -> None:
    """Lines at round numbers, and these."""
    for tick, label in _y_ticks(panel.log, frame.y0, frame.y1):
        at = frame.at_y(tick)
        shapes.line([(frame.left, at), (frame.right, at)], "rule")
        shapes.text((frame.left - 7, at + 4), label, "soft", 11, "end")
    points = (p for s in panel.series for p in (*s.points, *s.upper) if _drawn(panel, p))
    whole = all(float(p[0]).is_integer() for p in points)
    for tick in ticks(frame.x0, frame.x1, max(2, width // 90), least=1.0 if whole else 0.0):
        shapes.text((frame.at_x(tick), frame.bottom + 16), shortest(tick), "soft", 11, "middle")


def _axis_words(shapes: Shapes, frame: _Frame, x: Sequence[str], y: Sequence[str], middle: float) -> None:
    """What the axes mean, in lines. middle: of the room for the chart, which a square one does not fill."""
    square = (frame.left + frame.right) / 2 < middle
    for number, line in enumerate(x):
        place = frame.left if square else middle
        shapes.text((place, frame.bottom + 34 + 16 * number), line, "soft", 12, "start" if square else "middle")
    for number, line in enumerate(reversed(y)):
        shapes.text((frame.left, frame.top - 5 - 14 * number), line, "soft", 11)


def _bars(shapes: Shapes, bars: Sequence[Bar], width: int, top: float) -> int:
    """Bars below each other, longest to most of the width; the height reached."""
    longest = max(max(bar.value, bar.high or 0.0) for bar in bars) or 1.0
    room = width - max(length_of(bar.text, 14) for bar in bars) - 24
    for number, bar in enumerate(bars):
        y = top + 8 + 50 * number
        shapes.text((0, y + 8), bar.name, "ink", 13)
        colour, end = f"c{bar.colour % len(COLOURS)}", bar.value / longest * room
        shapes.box(0, y + 15, max(end, 1.5), y + 33, colour, 0.85)
        reached = end
        if bar.low is not None and bar.high is not None:
            low, reached = bar.low / longest * room, max(end, bar.high / longest * room)
            shapes.line([(low, y + 24), (bar.high / longest * room, y + 24)], "ink", 1.5)
            for x in (low, bar.high / longest * room):
                shapes.line([(x, y + 19), (x, y + 29)], "ink", 1.5)
        shapes.text((reached + 10, y + 29), bar.text, "ink", 14)
    return math.ceil(top + 8 + 50 * len(bars))


# -- lines


def _covered(panel: Panel, width: int) -> dict[int, list[int]]:
    """Place of a line among the series -> on how many earlier lines each of its pieces lies, in a plotting area of the
    least height."""
    frame = _frame(panel, 52, 0, width - 10, _PLOT)
    if frame is None:
        return {}
    lines: list[list[Point]] = []
    counts = {}
    for place, series in enumerate(panel.series):
        if series.style == "line":
            points = [frame.place(p) for p in series.points if _drawn(panel, p)]
            counts[place] = [sum(_lies_on(ends, line) for line in lines) for ends in pairwise(points)]
            lines.append(points)
    return counts


def _series(
    shapes: Shapes,
    series: Series,
    points: list[Point],
    place: Callable[[Point], Point],
    panel: Panel,
    covered: Sequence[int],
) -> None:
    """covered: on how many earlier lines each piece of a line lies."""
    colour = series.tint
    if series.style == "band":
        upper = [place(p) for p in series.upper if _drawn(panel, p)]
        shapes.area([*points, *reversed(upper)], colour, 0.18)
    elif series.style == "cells":
        for (x, y), shade in zip(series.points, series.shades, strict=True):
            (left, bottom), (right, top) = place((x - 0.5, y - 0.5)), place((x + 0.5, y + 0.5))
            shapes.box(left + 1, top + 1, right - 1, bottom - 1, "rule", 0.35)
            shapes.box(left + 1, top + 1, right - 1, bottom - 1, colour, shade)
    elif series.style == "faint":
        shapes.line(points, colour, 1, 0.3)
    else:
        if series.style == "line" and len(points) > 1:
            _line(shapes, series, points, covered)
        alone = "dot" if len(points) == 1 else ""  # the only one of a line that can be drawn
        for point in points if series.symbol or alone else ():
            shapes.marker(series.symbol or alone, point, colour, _radius(series, len(points)))
        for words, (x, y) in zip(series.labels, points, strict=False):
            shapes.text((x + 8, y - 7), words, "ink", 11)


def _line(shapes: Shapes, series: Series, points: Sequence[Point], covered: Sequence[int]) -> None:
    """A line; where it lies on earlier ones, in dashes through which these show."""
    at = 0
    for below, stretch in groupby(covered):
        count = len(list(stretch))
        shapes.line(points[at : at + count + 1], series.tint, 2.2, dashes=_dashes(series, below))
        at += count


def _dashes(series: Series, below: int) -> tuple[float, ...]:
    """A line's dashes where it lies on `below` others: a part of its own, so that of three equal lines the last has a
    quarter of each dash, the one before it a quarter and the first a half."""
    if not below:
        return DASHES[series.cycle]
    own = DASHES[series.cycle] or (_PERIOD, 0.0)
    parts = []
    for drawn, left_out in zip(own[::2], own[1::2], strict=True):
        part = drawn / 2**below
        parts += [part, drawn - part + left_out]
    return tuple(parts)


def _lies_on(ends: tuple[Point, Point], line: Sequence[Point]) -> bool:
    """Whether both ends of a piece of a line lie on another line."""
    heights = [(_height_at(line, x), y) for x, y in ends]
    return all(height is not None and abs(height - y) < _EQUAL for height, y in heights)


def _height_at(line: Sequence[Point], x: float) -> float | None:
    """The y of a line at x, between its points on the straight way; None beside it. x rises along the line."""
    if not line or not line[0][0] - 0.01 <= x <= line[-1][0] + 0.01:
        return None
    after = min(bisect_left(line, (x - 0.01, -math.inf)), len(line) - 1)
    (x1, y1), (x0, y0) = line[after], line[max(after - 1, 0)]
    return y1 if x1 == x0 or x >= x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _equal(panel: Panel) -> dict[int, str]:
    """Place of a line among the series -> the name of an earlier line with the same points."""
    names: dict[tuple[Point, ...], str] = {}
    same = {}
    for place, series in enumerate(panel.series):
        if series.style == "line" and series.name and len(series.points) > 1:
            points = tuple(series.points)
            if points in names:
                same[place] = names[points]
            names.setdefault(points, series.name)
    return same


def _radius(series: Series, points: int) -> float:
    if series.style == "line" and series.marker:
        return 3 if series.marker == "dot" else 6
    if series.marker:  # set around the points of another series
        return 5
    return 2.2 if points > 1 else 4


def _drawn(panel: Panel, point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1]) and (not panel.log or point[1] > 0)


# -- axes and legend


def value_range(values: Sequence[float], room: bool) -> tuple[float, float]:
    """The ends of an axis on which these values lie; room: with a margin, but not below a smallest value of 0."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    margin = 0.05 * (high - low) if room else 0.0
    return (low if low == 0 else low - margin), high + margin


def _y_ticks(log: bool, low: float, high: float) -> list[tuple[float, str]]:
    """(place on the axis, label)."""
    if not log:
        return [(tick, shortest(tick)) for tick in ticks(low, high, 4)]
    decades = [float(t) for t in range(math.ceil(low), math.floor(high) + 1)]
    if len(decades) < 2:
        return [(math.log10(v), shortest(v)) for v in ticks(10**low, 10**high, 4) if v > 0]
    return [(t, shortest(10**t)) for t in decades[:: max(1, len(decades) // 6)]]


def _legend(shapes: Shapes, panel: Panel, width: int, y: float) -> float:
    """The series by name and what the marks say, side by side where they fit; the height reached."""
    same = _equal(panel)
    named: list[tuple[Series | None, str]] = [
        (s, s.name + (f" (same as {same[place]})" if place in same else ""))
        for place, s in enumerate(panel.series)
        if s.name
    ]
    named += [(None, words) for words in dict.fromkeys(words for _, words in panel.marks)]
    x = 0.0
    for item, name in named:
        words = broken(name, 12, width - 22)
        length = 24 + max(length_of(line, 12) for line in words) + 14
        if x and x + length > width:
            x, y = 0.0, y + 18
        _sample(shapes, item, x, y)
        for number, line in enumerate(words):
            shapes.text((x + 22, y + 4 + 15 * number), line, "ink", 12)
        y += 15 * (len(words) - 1)
        x += length
    return y + 22 if named else y + 6


def _sample(shapes: Shapes, item: Series | None, x: float, y: float) -> None:
    """What a series, or a mark (None), looks like."""
    if item is None:
        shapes.line([(x + 8, y - 8), (x + 8, y + 8)], "soft", 1.2, dashes=(4, 4))
    elif item.style == "band":
        shapes.box(x, y - 5, x + 16, y + 5, item.tint, 0.3)
    else:
        if item.style != "dots" and (len(item.points) > 1 or not item.symbol):
            opacity = 0.4 if item.style == "faint" else 1.0
            shapes.line([(x - 2, y), (x + 18, y)], item.tint, 2.5, opacity, DASHES[item.cycle])
        if item.symbol:
            shapes.marker(item.symbol, (x + 8, y), item.tint, 3.5)


# -- pages


def svg(panel: Panel, width: int = 460, height: int = 300) -> str:
    """The panel as an <svg> element for a page whose style sheet colours the classes ink, soft, rule and c0 ... c7.

    height: the least; a long legend adds to it.
    """
    shapes, height = _layout(panel, width, height)
    names = ", ".join(s.name for s in panel.series if s.name)
    bars = "; ".join(f"{bar.name}: {bar.text}" for bar in panel.bars)
    label = f"{panel.title}: {bars}" if bars else f"{panel.title}: {panel.y} against {panel.x}"
    return as_svg(shapes, width, height, label + (f"; {names}" if names else ""))


def draw(
    panels: Sequence[Panel],
    columns: int = 2,
    footnote: str = "",
    size: tuple[int, int] = (460, 300),
    headline: str = "",
) -> Image.Image:
    """The panels on one white page as an RGB picture, `columns` side by side, a line of words under them and, in large
    letters, `headline` above.

    size: (width, least height) of a panel; the panels of a row are as high as the highest of them has to be, and those
    of a row that is not full are wider, as is a panel that asks for a row.
    """
    columns = max(1, min(columns, len(panels)))
    gap, margin = 36, 28
    inner = columns * size[0] + (columns - 1) * gap
    top, foot = Shapes(), Shapes()
    above = top.paragraph((0, 22), headline, "ink", 22, inner) + 14 if headline else 0.0
    placed, y = [], margin + above
    for row in _rows(panels, columns):
        width = (inner - (len(row) - 1) * gap) // len(row)
        height = max(_layout(panel, width, 0 if panel.bars else size[1])[1] for panel in row)
        for place, panel in enumerate(row):
            placed.append((_layout(panel, width, height)[0], (margin + place * (width + gap), y)))
        y += height + gap
    y -= gap
    below = 10 + foot.paragraph((0, 14), footnote, "soft", 12, inner) if footnote else 0.0
    page = new_page(2 * margin + inner, math.ceil(y + below + margin))
    paint(page, top, (margin, margin))
    for shapes, origin in placed:
        paint(page, shapes, origin)
    paint(page, foot, (margin, y + 10))
    return finished(page)


def _rows(panels: Sequence[Panel], columns: int) -> list[list[Panel]]:
    rows: list[list[Panel]] = []
    for panel in panels:
        if panel.wide or not rows or rows[-1][0].wide or len(rows[-1]) == columns:
            rows.append([])
        rows[-1].append(panel)
    return rows
