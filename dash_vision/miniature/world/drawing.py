"""Shapes on a supersampled canvas: the few primitives that every scene is made of.

Coordinates on a :class:`Canvas` run from 0 to 256 whatever its size in pixels, so one drawing serves for the
64-pixel training pictures and for larger ones. A :class:`Pen` draws in a subject's own coordinates instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

UNITS = 256.0

Colour = tuple[int, int, int]
Point = tuple[float, float]
# A plain colour, or a picture as large as the canvas that shows through the shape (a subject's patterned coat).
Fill = Colour | Image.Image | None

WHITE: Colour = (255, 255, 255)
INK: Colour = (26, 26, 32)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour with each channel multiplied by `factor`, clipped to 0..255."""
    red, green, blue = (max(0, min(255, int(channel * factor))) for channel in colour)
    return red, green, blue


def blend(first: Colour, second: Colour, amount: float) -> Colour:
    """`first` at amount 0, `second` at amount 1, a straight line between."""
    red, green, blue = (int(a * (1 - amount) + b * amount) for a, b in zip(first, second, strict=True))
    return red, green, blue


def outline_of(colour: Colour) -> Colour:
    """A darker tone of the colour; for nearly black colours a lighter one, so that the edge stays visible."""
    return shade(colour, 0.58) if sum(colour) > 210 else blend(colour, WHITE, 0.28)


def curve(path: Callable[[float], Point], steps: int = 14) -> list[Point]:
    """`steps` + 1 points of a path given over 0..1."""
    return [path(i / steps) for i in range(steps + 1)]


def sagging(x: float, half: float, y: float, drop: float) -> list[Point]:
    """A line of half width `half` around x, hanging `drop` below y in its middle (above, where negative)."""
    return curve(lambda t: (x - half + 2 * half * t, y + drop * math.sin(math.pi * t)), 12)


def ellipse_points(x: float, y: float, rx: float, ry: float) -> list[Point]:
    """A polygon that follows an ellipse."""
    return curve(lambda t: (x + rx * math.cos(2 * math.pi * t), y + ry * math.sin(2 * math.pi * t)), 24)


def star_points(x: float, y: float, radius: float) -> list[Point]:
    """The ten corners of a five-pointed star standing on two of them."""
    return [
        (x + math.sin(i * math.pi / 5) * r, y - math.cos(i * math.pi / 5) * r)
        for i, r in enumerate([radius, radius * 0.45] * 5)
    ]


def heart_points(x: float, y: float, radius: float) -> list[Point]:
    """Corners of a heart of about the given half width."""

    def path(t: float) -> Point:
        a = 2 * math.pi * t
        across = 16 * math.sin(a) ** 3
        up = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        return x + radius * across / 16, y - radius * up / 16

    return curve(path, 24)


class Canvas:
    """A square RGB picture with drawing methods in units of 1/256 of its side."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.k = pixels / UNITS
        self.image = Image.new("RGB", (pixels, pixels))
        self.draw = ImageDraw.Draw(self.image)

    def replace(self, image: Image.Image) -> None:
        """Put another picture of the same size under the following strokes."""
        self.image = image
        self.draw = ImageDraw.Draw(image)

    def gradient(self, top: Colour, bottom: Colour, y0: float = 0, y1: float = UNITS) -> None:
        """Fill the rows from y0 to y1 with a vertical blend of two colours."""
        first, last = round(y0 * self.k), round(y1 * self.k)
        if last <= first:
            return
        t = np.linspace(0, 1, last - first)[:, None, None]
        column = np.array(top) * (1 - t) + np.array(bottom) * t
        strip = Image.fromarray(column.astype(np.uint8)).resize((self.pixels, last - first), Image.Resampling.NEAREST)
        self.image.paste(strip, (0, first))

    def _shape(self, method: str, where: list, fill: Fill, **options: float) -> None:
        if isinstance(fill, Image.Image):
            mask = Image.new("L", self.image.size)
            getattr(ImageDraw.Draw(mask), method)(where, fill=255, **options)
            self.image.paste(fill, (0, 0), mask)
        elif fill is not None:
            getattr(self.draw, method)(where, fill=fill, **options)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Fill, edge: Colour | None = None, width: float = 3
    ) -> None:
        """An ellipse around (x, y) with half axes rx and ry."""
        k = self.k
        where = [(x - rx) * k, (y - ry) * k, (x + rx) * k, (y + ry) * k]
        self._shape("ellipse", where, fill)
        if edge is not None:
            self.draw.ellipse(where, outline=edge, width=max(1, round(width * k)))

    def polygon(self, points: Sequence[Point], fill: Fill, edge: Colour | None = None, width: float = 3) -> None:
        """A closed polygon."""
        where = [(x * self.k, y * self.k) for x, y in points]
        self._shape("polygon", where, fill)
        if edge is not None:
            pixels = max(1, round(width * self.k))
            self.draw.line([*where, where[0], where[1]], fill=edge, width=pixels, joint="curve")

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: Fill,
        edge: Colour | None = None,
        radius: float = 0,
        width: float = 3,
    ) -> None:
        """A rectangle between two corners (in any order), with rounded corners where radius > 0."""
        k = self.k
        where = [min(x0, x1) * k, min(y0, y1) * k, max(x0, x1) * k, max(y0, y1) * k]
        self._shape("rounded_rectangle", where, fill, radius=radius * k)
        if edge is not None:
            pixels = max(1, round(width * k))
            self.draw.rounded_rectangle(where, radius=radius * k, outline=edge, width=pixels)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A line through the points with round joints and ends."""
        k = self.k
        where = [(x * k, y * k) for x, y in points]
        self.draw.line(where, fill=colour, width=max(1, round(width * k)), joint="curve")
        r = width * k / 2
        for x, y in (where[0], where[-1]):
            self.draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def wash(self, points: Sequence[Point], colour: Colour, strength: float) -> None:
        """Tint a polygon: strength 0 leaves the picture as it is, 1 covers it."""
        mask = Image.new("L", self.image.size)
        where = [(x * self.k, y * self.k) for x, y in points]
        ImageDraw.Draw(mask).polygon(where, fill=int(255 * strength))
        self.image.paste(colour, (0, 0, self.pixels, self.pixels), mask)


class Pen:
    """Draws on a canvas in a subject's coordinates: x to the right, y down, both about -1..1, origin in its middle.

    `mirror` swaps left and right, `upside_down` turns the subject over (its reflection in a mirror on the ground).
    """

    def __init__(
        self, canvas: Canvas, x: float, y: float, scale: float, mirror: bool = False, upside_down: bool = False
    ) -> None:
        self.canvas = canvas
        self.x, self.y, self.scale = x, y, scale
        self.sx = -scale if mirror else scale
        self.sy = -scale if upside_down else scale

    def at(self, x: float, y: float) -> Point:
        """Canvas coordinates of a point given in the subject's coordinates."""
        return self.x + x * self.sx, self.y + y * self.sy

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Fill, edge: Colour | None = None, width: float = 0.045
    ) -> None:
        """An ellipse around (x, y) with half axes rx and ry."""
        self.canvas.ellipse(*self.at(x, y), rx * self.scale, ry * self.scale, fill, edge, width * self.scale)

    def polygon(self, points: Sequence[Point], fill: Fill, edge: Colour | None = None, width: float = 0.045) -> None:
        """A closed polygon."""
        self.canvas.polygon([self.at(*p) for p in points], fill, edge, width * self.scale)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: Fill,
        edge: Colour | None = None,
        radius: float = 0.0,
        width: float = 0.045,
    ) -> None:
        """A rectangle between two corners, rounded where radius > 0."""
        self.canvas.box(*self.at(x0, y0), *self.at(x1, y1), fill, edge, radius * self.scale, width * self.scale)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A line through the points with round joints and ends."""
        self.canvas.line([self.at(*p) for p in points], colour, width * self.scale)


def lit(image: Image.Image, pen: Pen, strength: float) -> Image.Image:
    """The picture under a light from the upper left of the pen's subject: darker towards the lower right."""
    pixels = pen.canvas.pixels
    reach = 2.2 * pen.scale * pen.canvas.k
    x0, y0 = ((v - 0.75 * pen.scale) * pen.canvas.k for v in (pen.x, pen.y))
    across = np.clip((np.arange(pixels) - x0) / reach, 0, 1)
    down = np.clip((np.arange(pixels) - y0) / reach, 0, 1)
    light = 255 * (1 - strength * (across[None, :] + down[:, None]))
    return ImageChops.multiply(image, Image.fromarray(light.astype(np.uint8)).convert("RGB"))
