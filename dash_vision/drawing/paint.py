"""Shapes as SVG for a page, and painted by Pillow for PNG and PDF."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw

from .fonts import font_for, legible
from .numbers import Point
from .shapes import COLOURS, ROLES, Shapes

SCALE = 2  # of a PNG against the SVG
SMOOTH = 2  # drawn larger by this and reduced, which smooths the edges


def as_svg(shapes: Shapes, width: int, height: int, label: str) -> str:
    """An <svg> element whose colours a style sheet gives to the classes ink, soft, rule and c0 ... c7. label: what a
    reader hears who does not see it."""
    drawn = "".join(map(_element, shapes.items))
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{drawn}</svg>'


def _element(item: tuple[str, Any, str, Any]) -> str:
    kind, where, colour, extra = item
    if kind == "dot":
        return f'<circle class="f {colour}" cx="{where[0]:.1f}" cy="{where[1]:.1f}" r="{extra}"/>'
    if kind == "text":
        words, size, anchor = extra
        place = f'x="{where[0]:.1f}" y="{where[1]:.1f}" font-size="{size}" text-anchor="{anchor}"'
        return f'<text class="f {colour}" {place}>{escape(words)}</text>'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in where)
    if kind == "area":
        return f'<path class="f {colour}" d="{path}Z" opacity="{extra}"/>'
    thickness, opacity, dashes = extra
    # Round ends would fill the gaps.
    dashed = f' style="stroke-dasharray:{",".join(map(str, dashes))};stroke-linecap:butt"' if dashes else ""
    return f'<path class="l {colour}" d="{path}" stroke-width="{thickness}" opacity="{opacity}"{dashed}/>'


def new_page(width: int, height: int) -> Image.Image:
    """A white page to paint on, of a size in pixels of the SVG."""
    return Image.new("RGB", (width * SCALE * SMOOTH, height * SCALE * SMOOTH), ROLES["paper"])


def finished(page: Image.Image) -> Image.Image:
    """The painted page at its size, its edges smoothed."""
    return page.reduce(SMOOTH)


def paint(page: Image.Image, shapes: Shapes, origin: tuple[float, float] = (0, 0)) -> None:
    """Paint shapes on a page of `new_page`; origin: where their (0, 0) is."""
    canvas, scale = ImageDraw.Draw(page, "RGBA"), SCALE * SMOOTH

    def place(point: Point) -> Point:
        return (point[0] + origin[0]) * scale, (point[1] + origin[1]) * scale

    for kind, where, colour, extra in shapes.items:
        if kind == "line":
            width, opacity, dashes = extra
            for part in parts(where, dashes):
                canvas.line([place(p) for p in part], _rgba(colour, opacity), round(width * scale), joint="curve")
        elif kind == "area":
            canvas.polygon([place(p) for p in where], _rgba(colour, extra))
        elif kind == "dot":
            x, y = place(where)
            r = extra * scale
            canvas.ellipse((x - r, y - r, x + r, y + r), _rgba(colour, 1.0))
        else:
            _write(canvas, place(where), colour, extra, scale)


def _write(canvas: ImageDraw.ImageDraw, place: Point, colour: str, extra: tuple[str, int, str], scale: int) -> None:
    words, size, anchor = extra
    side = {"start": "l", "middle": "m", "end": "r"}[anchor]
    font = font_for(words, size * scale)
    words = legible(words, font)
    ink, paper = _rgba(colour, 1.0), _rgba("paper", 0.85)
    canvas.text(place, words, paper, font, f"{side}s", stroke_width=2 * scale, stroke_fill=paper)
    canvas.text(place, words, ink, font, f"{side}s")


def parts(points: Sequence[Point], dashes: Sequence[float]) -> Iterator[list[Point]]:
    """What is drawn of a path, as SVG's stroke-dasharray has it; dashes: see shapes.DASHES."""
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
