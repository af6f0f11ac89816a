"""Small charts: one description of a panel, drawn as inline SVG for a page and by Pillow for PNG and PDF.

Lengths are in pixels of the SVG; a picture drawn by Pillow has SCALE times as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # of a PNG against the SVG
_SMOOTH = 2  # drawn larger by this and reduced, which smooths the edges
COLOURS = ("#2f6fde", "#d9730d", "#16855b", "#8b46c1", "#c2334d", "#0b7f8c", "#7a6a00", "#5b6570")
ROLES = {"ink": "#1b1f24", "soft": "#5b6570", "rule": "#e3e7ec", "paper": "#ffffff"}
_CHARACTER = 0.53  # mean width of a character, in units of the font's size, by which legends and titles are broken

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points under one name. A colour is an index of COLOURS. A name of "" stays out of the legend.

    style: "line", "faint" (a thin pale line), "dots", "band" (filled between `points` and `upper`, which have the same
    x), or "cells" (a square of side 1 around each point, as opaque as `shades` says).
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    style: str = "line"
    upper: Sequence[Point] = ()
    shades: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """One chart. marks: vertical dashed lines (x, what happened there). log: the y axis is logarithmic; values that are
    not positive are then left out. bounds: (low, high) of y, where they are not to follow from the points."""

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

    def line(self, points: Sequence[Point], colour: str, width: float = 1.0, opacity: float = 1.0) -> None:
        self.items.append(("line", points, colour, (width, opacity)))

    def area(self, points: Sequence[Point], colour: str, opacity: float) -> None:
        self.items.append(("area", points, colour, opacity))

    def dot(self, point: Point, colour: str, radius: float) -> None:
        self.items.append(("dot", point, colour, radius))

    def text(self, point: Point, words: str, colour: str, size: int, anchor: str = "start") -> None:
        self.items.append(("text", point, colour, (words, size, anchor)))


# -- numbers


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
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


def _layout(panel: Panel, width: int, height: int) -> _Shapes:
    shapes = _Shapes()
    y = 18
    for words in _broken(panel.title, 15, width):
        shapes.text((0, y), words, "ink", 15)
        y += 20
    y = _legend(shapes, panel, width, y)
    points = [p for s in panel.series for p in (*s.points, *s.upper) if _drawn(panel, p)]
    left, right, top, bottom = 52, width - 10, y + 8, height - 40
    if not points:
        shapes.text(((left + right) / 2, (top + bottom) / 2), "no values", "soft", 13, "middle")
        return shapes
    (x0, x1), (y0, y1) = _range([p[0] for p in points], False), panel.bounds or _range([p[1] for p in points], True)
    if any(s.style == "dots" for s in panel.series):
        x0, x1 = x0 - 0.015 * (x1 - x0), x1 + 0.015 * (x1 - x0)
    if any(s.style == "cells" for s in panel.series):
        x0, x1 = x0 - 0.5, x1 + 0.5
    if panel.log:
        positive = [p[1] for p in points]
        y0, y1 = math.log10(min(positive)) - 0.05, math.log10(max(positive)) + 0.05
        y1 = max(y1, y0 + 0.2)

    def place(point: Point) -> Point:
        value = math.log10(point[1]) if panel.log else point[1]
        return left + (point[0] - x0) / (x1 - x0) * (right - left), bottom - (value - y0) / (y1 - y0) * (bottom - top)

    for tick, label in _y_ticks(panel.log, y0, y1):
        at = bottom - (tick - y0) / (y1 - y0) * (bottom - top)
        shapes.line([(left, at), (right, at)], "rule")
        shapes.text((left - 7, at + 4), label, "soft", 11, "end")
    for tick in ticks(x0, x1, max(2, width // 90)):
        at = left + (tick - x0) / (x1 - x0) * (right - left)
        shapes.text((at, bottom + 16), _number(tick), "soft", 11, "middle")
    shapes.text(((left + right) / 2, height - 6), panel.x, "soft", 12, "middle")
    shapes.text((left, top - 5), panel.y, "soft", 11)
    for at, _ in panel.marks:
        x, _ = place((at, 10.0**y0 if panel.log else y0))
        for dash in range(int(top), int(bottom), 8):
            shapes.line([(x, dash), (x, min(dash + 4, bottom))], "soft", 1.2)
    later = sum(s.style == "line" for s in panel.series)
    for series in panel.series:
        later -= series.style == "line"
        _series(shapes, series, [place(p) for p in series.points if _drawn(panel, p)], place, panel, later)
    for number, (at, words) in enumerate(panel.marks):
        x, _ = place((at, 10.0**y0 if panel.log else y0))
        side = "start" if x < (left + right) / 2 else "end"
        shapes.text((x + (5 if side == "start" else -5), top + 13 + 14 * number), words, "soft", 11, side)
    return shapes


def _series(
    shapes: _Shapes, series: Series, points: list[Point], place: Callable[[Point], Point], panel: Panel, later: int
) -> None:
    """later: how many lines will be drawn after this one. Earlier ones are wider, so that equal ones all show."""
    colour = f"c{series.colour % len(COLOURS)}"
    if series.style == "band":
        upper = [place(p) for p in series.upper if _drawn(panel, p)]
        shapes.area([*points, *reversed(upper)], colour, 0.18)
    elif series.style == "cells":
        for (x, y), shade in zip(series.points, series.shades, strict=True):
            (left, bottom), (right, top) = place((x - 0.5, y - 0.5)), place((x + 0.5, y + 0.5))
            corners = [(left + 1, bottom - 1), (right - 1, bottom - 1), (right - 1, top + 1), (left + 1, top + 1)]
            shapes.area(corners, "rule", 0.35)
            shapes.area(corners, colour, shade)
    elif series.style == "dots" or len(points) == 1:
        for point in points:
            shapes.dot(point, colour, 2.2 if len(points) > 1 else 4)
    elif series.style == "faint":
        shapes.line(points, colour, 1, 0.3)
    else:
        shapes.line(points, colour, 2 + 1.2 * min(later, 2))


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
    named = [s for s in panel.series if s.name]
    x = 0.0
    for series in named:
        length = 24 + len(series.name) * 12 * _CHARACTER + 14
        if x and x + length > width:
            x, y = 0.0, y + 18
        colour = f"c{series.colour % len(COLOURS)}"
        if series.style == "band":
            shapes.area([(x, y - 5), (x + 16, y - 5), (x + 16, y + 5), (x, y + 5)], colour, 0.3)
        elif series.style == "dots":
            shapes.dot((x + 8, y), colour, 3.5)
        else:
            shapes.line([(x, y), (x + 16, y)], colour, 2.5, 0.4 if series.style == "faint" else 1.0)
        shapes.text((x + 22, y + 4), series.name, "ink", 12)
        x += length
    return y + 22 if named else y + 6


def _broken(text: str, size: int, width: int) -> list[str]:
    most = max(10, int(width / (size * _CHARACTER)))
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


# -- SVG


def svg(panel: Panel, width: int = 460, height: int = 300) -> str:
    """The panel as an <svg> element for a page whose style sheet colours the classes ink, soft, rule and c0 ... c7."""
    parts = []
    for kind, where, colour, extra in _layout(panel, width, height).items:
        if kind in ("line", "area"):
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in where)
            if kind == "line":
                parts.append(f'<path class="l {colour}" d="{path}" stroke-width="{extra[0]}" opacity="{extra[1]}"/>')
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
    """The panels on one white page as an RGB picture, `columns` side by side, a line of words under them."""
    columns = max(1, min(columns, len(panels)))
    width, height, gap, margin = *size, 36, 28
    rows = -(-len(panels) // columns)
    page_width = 2 * margin + columns * width + (columns - 1) * gap
    notes = _broken(footnote, 12, page_width - 2 * margin)
    page_height = 2 * margin + rows * height + (rows - 1) * gap + (10 + 18 * len(notes) if notes else 0)
    scale = SCALE * _SMOOTH
    page = Image.new("RGB", (page_width * scale, page_height * scale), ROLES["paper"])
    for i, panel in enumerate(panels):
        origin = margin + i % columns * (width + gap), margin + i // columns * (height + gap)
        _paint(page, _layout(panel, width, height), origin, scale)
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
            width, opacity = extra
            canvas.line([place(p) for p in where], _rgba(colour, opacity), round(width * scale), joint="curve")
        elif kind == "area":
            canvas.polygon([place(p) for p in where], _rgba(colour, extra))
        elif kind == "dot":
            x, y = place(where)
            r = extra * scale
            canvas.ellipse((x - r, y - r, x + r, y + r), _rgba(colour, 1.0))
        else:
            words, size, anchor = extra
            side = {"start": "l", "middle": "m", "end": "r"}[anchor]
            font = ImageFont.load_default(size * scale)
            ink, paper = _rgba(colour, 1.0), _rgba("paper", 0.85)
            canvas.text(place(where), words, paper, font, f"{side}s", stroke_width=2 * scale, stroke_fill=paper)
            canvas.text(place(where), words, ink, font, f"{side}s")


def _rgba(colour: str, opacity: float) -> tuple[int, int, int, int]:
    code = ROLES.get(colour) or COLOURS[int(colour[1:])]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16), round(255 * opacity)
