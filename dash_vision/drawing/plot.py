"""Small charts: one description of a panel, drawn as inline SVG for a page and by Pillow for PNG and PDF.

Lengths are in pixels of the SVG; a picture drawn by Pillow has SCALE times as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw

from dash_vision.drawing.fonts import font_for

SCALE = 2  # of a PNG against the SVG
_SMOOTH = 2  # drawn larger by this and reduced, which smooths the edges
COLOURS = ("#2f6fde", "#d9730d", "#16855b", "#8b46c1", "#c2334d", "#0b7f8c", "#7a6a00", "#5b6570")
# What tells lines, and single points, of one colour apart: (drawn, left out, ...) in pixels, and markers.
DASHES: tuple[tuple[float, ...], ...] = ((), (9, 4), (2.5, 3.5), (11, 4, 2.5, 4))
MARKERS = ("dot", "square", "diamond", "cross")
MOST_LINES = len(COLOURS) * len(DASHES)  # that one panel tells apart
ROLES = {"ink": "#1b1f24", "soft": "#5b6570", "rule": "#e3e7ec", "paper": "#ffffff"}
_PLOT = 180  # least height of a panel's plotting area, however long the title and the legend above it are
_CHARACTER = 0.53  # mean width of a character, in units of the font's size, by which legends and titles are broken

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points under one name. A name of "" stays out of the legend. A colour is an index of COLOURS; those beyond have
    the colours again with another of DASHES, or of MARKERS where points stand alone.

    style: "line", "faint" (a thin pale line), "dots", "band" (filled between `points` and `upper`, which have the same
    x), or "cells" (a square of side 1 around each point, as opaque as `shades` says). marker: one of MARKERS to set on
    every point of a line.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    style: str = "line"
    upper: Sequence[Point] = ()
    shades: Sequence[float] = ()
    marker: str = ""

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
class Panel:
    """One chart. marks: vertical dashed lines (x, what happened there, for the legend). log: the y axis is logarithmic;
    values that are not positive are then left out. bounds: (low, high) of y, where they are not to follow from the
    points."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = ()
    log: bool = False
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval, and the values it is the mean of."""

    mean: float
    low: float
    high: float
    values: Sequence[float] = ()


@dataclass
class _Shapes:
    """What a panel consists of, in pixels: (kind, coordinates, colour, ...) in drawing order."""

    items: list[tuple[str, Any, str, Any]] = field(default_factory=list)

    def line(
        self,
        points: Sequence[Point],
        colour: str,
        width: float = 1.0,
        opacity: float = 1.0,
        dashes: Sequence[float] = (),
    ) -> None:
        self.items.append(("line", points, colour, (width, opacity, dashes)))

    def area(self, points: Sequence[Point], colour: str, opacity: float) -> None:
        self.items.append(("area", points, colour, opacity))

    def dot(self, point: Point, colour: str, radius: float) -> None:
        self.items.append(("dot", point, colour, radius))

    def marker(self, kind: str, point: Point, colour: str, radius: float) -> None:
        """kind: one of MARKERS. All but a dot are outlines, so that a dot in the same place is seen."""
        (x, y), r, d = point, radius, 1.4 * radius
        if kind == "dot":
            self.dot(point, colour, r)
        elif kind == "square":
            self.line([(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r), (x - r, y - r)], colour, 1.5)
        elif kind == "diamond":
            self.line([(x - d, y), (x, y - d), (x + d, y), (x, y + d), (x - d, y)], colour, 1.5)
        else:
            self.line([(x - r, y - r), (x + r, y + r)], colour, 1.5)
            self.line([(x - r, y + r), (x + r, y - r)], colour, 1.5)

    def text(self, point: Point, words: str, colour: str, size: int, anchor: str = "start") -> None:
        self.items.append(("text", point, colour, (words, size, anchor)))


# -- numbers


def ticks(low: float, high: float, count: int = 5, least: float = 0.0) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten. least: the smallest
    distance between two, such as 1 where only whole numbers mean something."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(least, next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9)))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """At every place the mean of the last `window` values, of fewer at the beginning."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def thinned(points: Sequence[Point], most: int = 500) -> list[Point]:
    """At most about `most` of the points, evenly taken, the last one always among them."""
    stride = max(1, -(-len(points) // most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _number(value: float) -> str:
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e")


# -- layout


def _layout(panel: Panel, width: int, height: int) -> tuple[_Shapes, int]:
    """The panel's shapes and its height: `height`, or what its title, its legend and a plotting area of _PLOT take."""
    shapes = _Shapes()
    y = 18
    for words in _broken(panel.title, 15, width):
        shapes.text((0, y), words, "ink", 15)
        y += 20
    y = _legend(shapes, panel, width, y)
    points = [p for s in panel.series for p in (*s.points, *s.upper) if _drawn(panel, p)]
    left, right, top = 52, width - 10, y + 8
    height = max(height, top + _PLOT + 40)
    bottom = height - 40
    if not points:
        shapes.text(((left + right) / 2, (top + bottom) / 2), "no values", "soft", 13, "middle")
        return shapes, height
    # A launch may come before the first epoch's end.
    x0, x1 = _range([*(p[0] for p in points), *(at for at, _ in panel.marks)], False)
    y0, y1 = panel.bounds or _range([p[1] for p in points], True)
    whole = all(float(p[0]).is_integer() for p in points)
    if any(s.style == "dots" for s in panel.series):
        x0, x1 = x0 - 0.015 * (x1 - x0), x1 + 0.015 * (x1 - x0)
    if any(s.style == "cells" for s in panel.series):
        x0, x1 = x0 - 0.5, x1 + 0.5
    if panel.log:
        positive = [p[1] for p in points]
        y0, y1 = math.log10(min(positive)) - 0.05, math.log10(max(positive)) + 0.05
        y1 = max(y1, y0 + 0.2)

    if any(s.style == "cells" for s in panel.series):  # square ones
        right = min(right, left + round((bottom - top) * (x1 - x0) / (y1 - y0)))

    def place(point: Point) -> Point:
        value = math.log10(point[1]) if panel.log else point[1]
        return left + (point[0] - x0) / (x1 - x0) * (right - left), bottom - (value - y0) / (y1 - y0) * (bottom - top)

    for tick, label in _y_ticks(panel.log, y0, y1):
        at = bottom - (tick - y0) / (y1 - y0) * (bottom - top)
        shapes.line([(left, at), (right, at)], "rule")
        shapes.text((left - 7, at + 4), label, "soft", 11, "end")
    for tick in ticks(x0, x1, max(2, width // 90), least=1.0 if whole else 0.0):
        at = left + (tick - x0) / (x1 - x0) * (right - left)
        shapes.text((at, bottom + 16), _number(tick), "soft", 11, "middle")
    shapes.text(((left + right) / 2, height - 6), panel.x, "soft", 12, "middle")
    shapes.text((left, top - 5), panel.y, "soft", 11)
    for at, _ in panel.marks:
        x, _ = place((at, 10.0**y0 if panel.log else y0))
        shapes.line([(x, top), (x, bottom)], "soft", 1.2, dashes=(4, 4))
    lines = sum(s.style == "line" for s in panel.series)
    later = lines
    for series in panel.series:
        later -= series.style == "line"
        # Earlier lines are wider, so that equal ones all show; dashes do that among many.
        thickness = 2 + 1.2 * min(later, 2) if lines <= len(COLOURS) else 2
        _series(shapes, series, [place(p) for p in series.points if _drawn(panel, p)], place, panel, thickness)
    return shapes, height


def _series(
    shapes: _Shapes,
    series: Series,
    points: list[Point],
    place: Callable[[Point], Point],
    panel: Panel,
    thickness: float,
) -> None:
    colour = series.tint
    if series.style == "band":
        upper = [place(p) for p in series.upper if _drawn(panel, p)]
        shapes.area([*points, *reversed(upper)], colour, 0.18)
    elif series.style == "cells":
        for (x, y), shade in zip(series.points, series.shades, strict=True):
            (left, bottom), (right, top) = place((x - 0.5, y - 0.5)), place((x + 0.5, y + 0.5))
            corners = [(left + 1, bottom - 1), (right - 1, bottom - 1), (right - 1, top + 1), (left + 1, top + 1)]
            shapes.area(corners, "rule", 0.35)
            shapes.area(corners, colour, shade)
    elif series.style == "faint":
        shapes.line(points, colour, 1, 0.3)
    else:
        if series.style == "line" and len(points) > 1:
            shapes.line(points, colour, thickness, dashes=DASHES[series.cycle])
        alone = "dot" if len(points) == 1 else ""  # the only one of a line that can be drawn
        for point in points if series.symbol or alone else ():
            shapes.marker(series.symbol or alone, point, colour, _radius(series, len(points)))


def _radius(series: Series, points: int) -> float:
    if series.style == "line" and series.marker:
        return 3 if series.marker == "dot" else 6
    return 2.2 if points > 1 else 4


def _drawn(panel: Panel, point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1]) and (not panel.log or point[1] > 0)


def _range(values: Sequence[float], room: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    margin = 0.05 * (high - low) if room else 0.0
    return (low if low == 0 else low - margin), high + margin


def _y_ticks(log: bool, low: float, high: float) -> list[tuple[float, str]]:
    """(place on the axis, label)."""
    if not log:
        return [(tick, _number(tick)) for tick in ticks(low, high, 4)]
    decades = [float(t) for t in range(math.ceil(low), math.floor(high) + 1)]
    if len(decades) < 2:
        return [(math.log10(v), _number(v)) for v in ticks(10**low, 10**high, 4) if v > 0]
    return [(t, _number(10**t)) for t in decades[:: max(1, len(decades) // 6)]]


def _legend(shapes: _Shapes, panel: Panel, width: int, y: int) -> int:
    """The series by name and what the marks say, side by side where they fit; the height reached."""
    named: list[Series | str] = [
        *(s for s in panel.series if s.name),
        *dict.fromkeys(words for _, words in panel.marks),
    ]
    x = 0.0
    for item in named:
        words = _broken(item if isinstance(item, str) else item.name, 12, width - 22)
        length = 24 + max(map(len, words)) * 12 * _CHARACTER + 14
        if x and x + length > width:
            x, y = 0.0, y + 18
        _sample(shapes, item, x, y)
        for number, line in enumerate(words):
            shapes.text((x + 22, y + 4 + 15 * number), line, "ink", 12)
        y += 15 * (len(words) - 1)
        x += length
    return y + 22 if named else y + 6


def _sample(shapes: _Shapes, item: Series | str, x: float, y: float) -> None:
    """What a series, or a mark, looks like."""
    if isinstance(item, str):
        shapes.line([(x + 8, y - 8), (x + 8, y + 8)], "soft", 1.2, dashes=(4, 4))
    elif item.style == "band":
        shapes.area([(x, y - 5), (x + 16, y - 5), (x + 16, y + 5), (x, y + 5)], item.tint, 0.3)
    else:
        if item.style != "dots" and (len(item.points) > 1 or not item.symbol):
            opacity = 0.4 if item.style == "faint" else 1.0
            shapes.line([(x - 2, y), (x + 18, y)], item.tint, 2.5, opacity, DASHES[item.cycle])
        if item.symbol:
            shapes.marker(item.symbol, (x + 8, y), item.tint, 3.5)


def _broken(text: str, size: int, width: int) -> list[str]:
    most = max(10, int(width / (size * _CHARACTER)))
    lines: list[str] = []
    for word in (piece for part in text.split() for piece in _pieces(part, most)):
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _pieces(word: str, most: int) -> Iterator[str]:
    """A word in pieces of at most `most` characters, as of a path or of a module's name: after a slash or a dot."""
    while len(word) > most:
        end = 1 + max(word.rfind("/", 0, most), word.rfind(".", 0, most))
        yield word[: end or most]
        word = word[end or most :]
    yield word


# -- SVG


def svg(panel: Panel, width: int = 460, height: int = 300) -> str:
    """The panel as an <svg> element for a page whose style sheet colours the classes ink, soft, rule and c0 ... c7.

    height: the least; a long legend adds to it.
    """
    parts = []
    shapes, height = _layout(panel, width, height)
    for kind, where, colour, extra in shapes.items:
        if kind in ("line", "area"):
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in where)
            if kind == "line":
                thickness, opacity, dashes = extra
                # Round ends would fill the gaps.
                dashed = f' style="stroke-dasharray:{",".join(map(str, dashes))};stroke-linecap:butt"' if dashes else ""
                look = f'stroke-width="{thickness}" opacity="{opacity}"{dashed}'
                parts.append(f'<path class="l {colour}" d="{path}" {look}/>')
            else:
                parts.append(f'<path class="f {colour}" d="{path}Z" opacity="{extra}"/>')
        elif kind == "dot":
            parts.append(f'<circle class="f {colour}" cx="{where[0]:.1f}" cy="{where[1]:.1f}" r="{extra}"/>')
        else:
            words, size, anchor = extra
            place = f'x="{where[0]:.1f}" y="{where[1]:.1f}" font-size="{size}" text-anchor="{anchor}"'
            parts.append(f'<text class="f {colour}" {place}>{escape(words)}</text>')
    names = ", ".join(s.name for s in panel.series if s.name)
    label = escape(f"{panel.title}: {panel.y} against {panel.x}" + (f"; {names}" if names else ""))
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


# -- Pillow


def draw(
    panels: Sequence[Panel], columns: int = 2, footnote: str = "", size: tuple[int, int] = (460, 300)
) -> Image.Image:
    """The panels on one white page as an RGB picture, `columns` side by side, a line of words under them.

    size: (width, least height) of a panel; the panels of a row are as high as the highest of them has to be.
    """
    columns = max(1, min(columns, len(panels)))
    width, height, gap, margin = *size, 36, 28
    needed = [_layout(panel, width, height)[1] for panel in panels]
    rows = [max(needed[i : i + columns]) for i in range(0, len(panels), columns)]
    page_width = 2 * margin + columns * width + (columns - 1) * gap
    notes = _broken(footnote, 12, page_width - 2 * margin)
    page_height = 2 * margin + sum(rows) + (len(rows) - 1) * gap + (10 + 18 * len(notes) if notes else 0)
    scale = SCALE * _SMOOTH
    page = Image.new("RGB", (page_width * scale, page_height * scale), ROLES["paper"])
    for i, panel in enumerate(panels):
        row = i // columns
        origin = margin + i % columns * (width + gap), margin + sum(rows[:row]) + row * gap
        _paint(page, _layout(panel, width, rows[row])[0], origin, scale)
    foot = _Shapes()
    for i, words in enumerate(notes):
        foot.text((0, 14 + 18 * i), words, "soft", 12)
    _paint(page, foot, (margin, page_height - margin - 18 * len(notes)), scale)
    return page.reduce(_SMOOTH)


def draw_forest(
    titles: Sequence[str], groups: Mapping[str, Sequence[tuple[str, Sequence[Estimate]]]], footnote: str = ""
) -> Image.Image:
    """A forest plot: per group a heading and its rows; in each row a label, and in every column, one per title, an
    estimate as dot and bar beside its values as small dots. Zero is marked; a column's range is that of its estimates,
    and an infinite end reaches its edge."""
    margin, label, width, gap, row_height = 28, 210, 280, 24, 24
    rows: list[tuple[str, Sequence[Estimate] | None]] = []
    for heading, members in groups.items():
        rows += [(heading, None), *members]
    page_width = 2 * margin + label + len(titles) * (width + gap)
    notes = _broken(footnote, 12, page_width - 2 * margin)
    top = margin + 34
    bottom = top + row_height * len(rows)
    page_height = bottom + 44 + 18 * len(notes) + margin // 2
    shapes = _Shapes()
    for number, (words, estimates) in enumerate(rows):
        y = top + row_height * (number + 0.5)
        if estimates is None:
            shapes.line([(margin, y - row_height / 2), (page_width - margin, y - row_height / 2)], "rule")
        indent, colour = (0, "soft") if estimates is None else (12, "ink")
        shapes.text((margin + indent, y + 4), words, colour, 13)
    for column, title in enumerate(titles):
        left = margin + label + column * (width + gap)
        cells = [(n, estimates[column]) for n, (_, estimates) in enumerate(rows) if estimates is not None]
        _forest_column(shapes, title, cells, (left, left + width), (top, bottom), row_height)
    for i, words in enumerate(notes):
        shapes.text((margin, bottom + 54 + 18 * i), words, "soft", 12)
    scale = SCALE * _SMOOTH
    page = Image.new("RGB", (page_width * scale, page_height * scale), ROLES["paper"])
    _paint(page, shapes, (0, 0), scale)
    return page.reduce(_SMOOTH)


def _forest_column(
    shapes: _Shapes, title: str, cells: Sequence[tuple[int, Estimate]], across: Point, down: Point, row_height: int
) -> None:
    """cells: (row, estimate). across, down: where the column lies, in pixels."""
    (left, right), (top, bottom) = across, down
    ends = [v for _, e in cells for v in (0.0, e.mean, e.low, e.high, *e.values) if math.isfinite(v)]
    low, high = _range([min(ends), max(ends)], True)

    def place(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    shapes.text((left, top - 16), title, "ink", 13)
    for tick in ticks(low, high, 6):
        colour, thick = ("soft", 1.2) if tick == 0 else ("rule", 1.0)
        shapes.line([(place(tick), top), (place(tick), bottom)], colour, thick)
        shapes.text((place(tick), bottom + 16), _number(tick), "soft", 11, "middle")
    for row, estimate in cells:
        y = top + row_height * (row + 0.5)
        for value in estimate.values:
            shapes.dot((place(value), y - 6), "c7", 1.8)
        shapes.line([(place(estimate.low), y), (place(estimate.high), y)], "c0", 2)
        shapes.dot((place(estimate.mean), y), "c0", 4)


def _paint(page: Image.Image, shapes: _Shapes, origin: tuple[int, int], scale: int) -> None:
    canvas = ImageDraw.Draw(page, "RGBA")

    def place(point: Point) -> Point:
        return (point[0] + origin[0]) * scale, (point[1] + origin[1]) * scale

    for kind, where, colour, extra in shapes.items:
        if kind == "line":
            width, opacity, dashes = extra
            for part in _parts(where, dashes):
                canvas.line([place(p) for p in part], _rgba(colour, opacity), round(width * scale), joint="curve")
        elif kind == "area":
            canvas.polygon([place(p) for p in where], _rgba(colour, extra))
        elif kind == "dot":
            x, y = place(where)
            r = extra * scale
            canvas.ellipse((x - r, y - r, x + r, y + r), _rgba(colour, 1.0))
        else:
            words, size, anchor = extra
            side = {"start": "l", "middle": "m", "end": "r"}[anchor]
            font = font_for(words, size * scale)
            ink, paper = _rgba(colour, 1.0), _rgba("paper", 0.85)
            canvas.text(place(where), words, paper, font, f"{side}s", stroke_width=2 * scale, stroke_fill=paper)
            canvas.text(place(where), words, ink, font, f"{side}s")


def _parts(points: Sequence[Point], dashes: Sequence[float]) -> Iterator[list[Point]]:
    """What is drawn of a path, as SVG's stroke-dasharray has it; dashes: see DASHES."""
    if not dashes:
        yield list(points)
        return
    number, room, part = 0, dashes[0], [points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        length, done = math.hypot(x1 - x0, y1 - y0), 0.0
        while length - done > room:
            done += room
            part.append((x0 + (x1 - x0) * done / length, y0 + (y1 - y0) * done / length))
            if number % 2 == 0:
                yield part
            number += 1
            room, part = dashes[number % len(dashes)], part[-1:]
        room -= length - done
        part.append((x1, y1))
    if number % 2 == 0:
        yield part


def _rgba(colour: str, opacity: float) -> tuple[int, int, int, int]:
    code = ROLES.get(colour) or COLOURS[int(colour[1:])]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16), round(255 * opacity)
