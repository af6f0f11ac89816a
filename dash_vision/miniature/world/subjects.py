"""The subjects of the miniature world: fourteen of the DreamBooth dataset's classes, drawn with a :class:`Pen`.

Every subject is drawn in its own coordinates (see :class:`~dash_vision.miniature.drawing.Pen`), stands on y = 0.95
and takes its looks from a :class:`Subject`; what changes from picture to picture comes in `sway` (-1..1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image

from .drawing import (
    INK,
    WHITE,
    Canvas,
    Colour,
    Fill,
    Pen,
    blend,
    curve,
    heart_points,
    lit,
    outline_of,
    sagging,
    shade,
    star_points,
)

COLOURS: dict[str, Colour] = {
    "red": (214, 44, 44),
    "orange": (244, 140, 34),
    "yellow": (248, 218, 56),
    "green": (56, 166, 78),
    "blue": (52, 100, 222),
    "purple": (134, 58, 182),
    "pink": (246, 142, 194),
    "brown": (130, 82, 46),
    "white": (244, 244, 241),
    "black": (46, 46, 54),
}
PATTERNS = ("plain", "striped", "spotted", "patched", "two-tone")
MARKS = ("star", "heart", "ring", "dot")
PROPERTIES = ("shiny", "wet", "cube shaped")
LIVE = ("cat", "dog")
OUTFITS = (
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
)
GOLD: Colour = (250, 204, 52)
STEEL: Colour = (186, 192, 202)


@dataclass(frozen=True)
class Subject:
    """One subject's identity: everything about it that stays the same from picture to picture.

    `kind` is a key of `KINDS`, the colours are keys of `COLOURS`, `pattern` is one of `PATTERNS` (in the second
    colour), `trim` colours small parts (flowers, straps, laces), `collar` is a live subject's collar or None,
    `mark` is None or one of `MARKS` in the colour `mark_colour`, `build` holds three numbers in 0..1 that shape
    the parts, `tint` is a small shift of the main colour.
    """

    kind: str
    colour: str
    second: str
    pattern: str = "plain"
    trim: str = "red"
    collar: str | None = None
    mark: str | None = None
    mark_colour: str = "yellow"
    build: tuple[float, float, float] = (0.5, 0.5, 0.5)
    tint: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        checks = [("kind", self.kind, KINDS), ("pattern", self.pattern, PATTERNS)]
        colours = [self.colour, self.second, self.trim, self.mark_colour] + ([self.collar] if self.collar else [])
        checks += [("colour", colour, COLOURS) for colour in colours]
        checks += [("mark", self.mark, MARKS)] if self.mark else []
        for what, value, known in checks:
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


@dataclass
class Brush:
    """What a drawing function needs: the pen, the subject, its coat, and tones derived from its colours."""

    pen: Pen
    subject: Subject
    coat: Image.Image
    main: Colour
    sway: float = 0.0
    cube: bool = False

    def __post_init__(self) -> None:
        self.edge = outline_of(self.main)
        # A plain subject has no visible second colour: its details take a tone of the main one.
        plain = self.subject.pattern == "plain"
        self.second = blend(self.main, WHITE, 0.3) if plain else COLOURS[self.subject.second]
        self.trim = COLOURS[self.subject.trim]
        self.a, self.b, self.c = self.subject.build


def make_brush(canvas: Canvas, pen: Pen, subject: Subject, sway: float, cube: bool, shiny: bool) -> Brush:
    """Paint the subject's coat (a picture as large as the canvas) and put it in a brush."""
    red, green, blue = (max(0, min(255, c + t)) for c, t in zip(COLOURS[subject.colour], subject.tint, strict=True))
    main = (red, green, blue)
    cloth = Canvas(canvas.pixels)
    cloth.image.paste(main, (0, 0, canvas.pixels, canvas.pixels))
    if subject.pattern != "plain":
        _pattern(Pen(cloth, pen.x, pen.y, pen.scale, pen.sx < 0, pen.sy < 0), subject)
    return Brush(pen, subject, lit(cloth.image, pen, 0.36 if shiny else 0.17), main, sway, cube)


def _pattern(pen: Pen, subject: Subject) -> None:
    second = COLOURS[subject.second]
    a, b, c = subject.build
    if subject.pattern == "striped":
        for i in range(9):
            y = -1.1 + 0.3 * i + 0.1 * a
            pen.line(sagging(0, 1.3, y, 0.1), second, 0.11)
    elif subject.pattern == "spotted":
        for row in range(7):
            for column in range(6):
                x = -1.0 + 0.4 * column + (0.2 if row % 2 else 0) + 0.05 * a
                pen.ellipse(x, -0.95 + 0.32 * row + 0.1 * b, 0.095, 0.095, second)
    elif subject.pattern == "patched":
        spots = [(-0.32, -0.52, 0.3, 0.27), (0.36, 0.1, 0.34, 0.3), (-0.42, 0.62, 0.3, 0.26), (0.5, 0.78, 0.2, 0.18)]
        for i, (x, y, rx, ry) in enumerate(spots):
            dx, dy = 0.2 * (a - 0.5) * (-1) ** i, 0.2 * (b - 0.5)
            pen.ellipse(x + dx, y + dy, rx * (0.85 + 0.3 * c), ry * (0.85 + 0.3 * c), second)
    else:  # two-tone: the lower part
        pen.polygon([(-1.6, 0.34), (1.6, 0.34 + 0.16 * (a - 0.5)), (1.6, 1.6), (-1.6, 1.6)], second)


def _mark(brush: Brush, x: float, y: float, radius: float = 0.17) -> None:
    """The subject's mark, if it has one, around a point of its body."""
    pen, colour = brush.pen, COLOURS[brush.subject.mark_colour]
    if brush.subject.mark == "star":
        pen.polygon(star_points(x, y, radius * 1.25), colour)
    elif brush.subject.mark == "heart":
        pen.polygon(heart_points(x, y, radius), colour)
    elif brush.subject.mark == "ring":
        pen.ellipse(x, y, radius, radius, None, colour, 0.075)
    elif brush.subject.mark == "dot":
        pen.ellipse(x, y, radius, radius, colour)


def _cube(brush: Brush) -> None:
    """A cube with its front face over -0.62..0.62 and -0.28..0.95, seen a little from above and the right."""
    pen, edge = brush.pen, brush.edge
    front = (-0.66, -0.28, 0.62, 0.95)
    depth = 0.26
    top = [
        (front[0], front[1]),
        (front[0] + depth, front[1] - depth),
        (front[2] + depth, front[1] - depth),
        (front[2], front[1]),
    ]
    side = [
        (front[2], front[1]),
        (front[2] + depth, front[1] - depth),
        (front[2] + depth, front[3] - depth),
        (front[2], front[3]),
    ]
    pen.box(*front, brush.coat, edge)
    pen.polygon(top, blend(brush.main, WHITE, 0.35), edge)
    pen.polygon(side, shade(brush.main, 0.7), edge)


def _tube(brush: Brush, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
    """A thick line with an edge: tails, handles, straps."""
    brush.pen.line(points, outline_of(colour), width + 0.07)
    brush.pen.line(points, colour, width)


# --------------------------------------------------------------------------------------------- live subjects


def _eyes(brush: Brush, x: float, y: float, spread: float, iris: Colour) -> None:
    for side in (-1, 1):
        brush.pen.ellipse(x + side * spread, y, 0.115, 0.13, WHITE, INK, 0.03)
        brush.pen.ellipse(x + side * spread + 0.025 * brush.sway, y + 0.01, 0.085, 0.105, iris)
        brush.pen.ellipse(x + side * spread + 0.025 * brush.sway, y + 0.01, 0.05, 0.075, INK)


IRISES: tuple[Colour, ...] = ((96, 190, 74), (240, 190, 50), (70, 160, 236))


def _iris(brush: Brush) -> Colour:
    return IRISES[int(brush.c * 2.999)]


def _cat_face(brush: Brush, x: float, y: float) -> None:
    pen = brush.pen
    _eyes(brush, x, y, 0.22, _iris(brush))
    pen.ellipse(x, y + 0.21, 0.2, 0.13, blend(brush.main, WHITE, 0.6))
    pen.polygon([(x - 0.08, y + 0.13), (x + 0.08, y + 0.13), (x, y + 0.22)], (232, 110, 124))


def cat(brush: Brush, outfit: str | None) -> None:
    pen, coat, edge = brush.pen, brush.coat, brush.edge
    swing = 0.8 + 0.5 * brush.sway
    tail = curve(lambda t: (0.42 + 0.5 * math.sin(t * 2.5), 0.8 - t * (0.75 + 0.3 * swing)))
    _tube(brush, tail, 0.15, brush.main)
    x, y = 0.09 * brush.sway, -0.42
    if brush.cube:
        _cube(brush)
        x, y = 0.0, 0.2
        for side in (-1, 1):
            pen.polygon([(side * 0.6, -0.28), (side * 0.56, -0.8), (side * 0.12, -0.3)], coat, edge)
    else:
        pen.ellipse(0, 0.42, 0.5 + 0.08 * brush.a, 0.54, coat, edge)
        if outfit:
            _dress(brush, outfit, 0.0, 0.42, 0.54, 0.55)
        for side in (-1, 1):
            pen.ellipse(side * 0.23, 0.86, 0.19, 0.11, coat, edge)
            tall = 0.1 * brush.b
            pen.polygon(
                [(x + side * 0.54, y), (x + side * 0.5, y - 0.6 - tall), (x + side * 0.06, y - 0.34)], coat, edge
            )
            pen.polygon(
                [(x + side * 0.45, y - 0.2), (x + side * 0.44, y - 0.46 - tall), (x + side * 0.2, y - 0.32)],
                (240, 164, 172),
            )
        _collar(brush, x * 0.5, 0.02, 0.38)
        pen.ellipse(x, y, 0.56, 0.45, coat, edge)
    _mark(brush, x, y - 0.26)
    _cat_face(brush, x, y + 0.02)
    if outfit:
        _wear(brush, outfit, x, y, 0.54, 0.22)


def dog(brush: Brush, outfit: str | None) -> None:
    pen, coat, edge = brush.pen, brush.coat, brush.edge
    ear = (
        brush.second
        if brush.subject.pattern != "plain"
        else shade(brush.main, 0.66)
        if sum(brush.main) > 210
        else blend(brush.main, WHITE, 0.25)
    )
    _tube(brush, [(-0.66, 0.16), (-0.94, -0.24 - 0.2 * brush.sway)], 0.13, brush.main)
    x, y = 0.34 + 0.08 * brush.sway, -0.36
    if brush.cube:
        _cube(brush)
        x, y = 0.0, 0.16
    else:
        for left in (-0.5, 0.3):
            pen.box(left - 0.11, 0.3, left + 0.11, 0.92, shade(brush.main, 0.72), edge, 0.08)
        pen.box(-0.76, -0.06, 0.52, 0.56, coat, edge, 0.28)
        for left in (-0.62, 0.16):
            pen.box(left - 0.12, 0.3, left + 0.12, 0.95, coat, edge, 0.09)
        if outfit:
            _dress(brush, outfit, 0.1, 0.25, 0.44, 0.33)
        _collar(brush, x, 0.05, 0.3)
        pen.ellipse(x, y, 0.47, 0.45, coat, edge)
    long = 0.14 * brush.b
    for side in (-1, 1):
        root = x + side * 0.42
        lobe = [
            (root - side * 0.16, y - 0.38),
            (root + side * 0.1, y - 0.28),
            (root + side * 0.18, y + 0.26 + long),
            (root - side * 0.06, y + 0.2 + long),
        ]
        pen.polygon(lobe, ear, outline_of(ear))
    _mark(brush, x, y - 0.26, 0.15)
    _eyes(brush, x, y - 0.06, 0.17, (112, 70, 40))
    pen.ellipse(x, y + 0.24, 0.25, 0.2, blend(brush.main, WHITE, 0.6), edge, 0.03)
    if brush.a > 0.35:
        pen.ellipse(x + 0.04, y + 0.43, 0.08, 0.12, (236, 92, 112))
    pen.ellipse(x, y + 0.14, 0.12, 0.09, INK)
    if outfit:
        _wear(brush, outfit, x, y - 0.04, 0.46, 0.17)


def _collar(brush: Brush, x: float, y: float, half: float) -> None:
    if brush.subject.collar is None:
        return
    colour = COLOURS[brush.subject.collar]
    _tube(brush, sagging(x, half, y, 0.1), 0.13, colour)
    brush.pen.ellipse(x, y + 0.2, 0.1, 0.1, GOLD, shade(GOLD, 0.6), 0.03)


def _dress(brush: Brush, outfit: str, x: float, y: float, rx: float, ry: float) -> None:
    """Clothes on the torso (an ellipse), under the head."""
    pen = brush.pen
    cloth: dict[str, Colour] = {
        "in a chef outfit": (250, 250, 250),
        "in a firefighter outfit": (176, 40, 36),
        "in a police outfit": (34, 52, 120),
        "wearing a yellow shirt": (252, 220, 40),
        "in a purple wizard outfit": (112, 44, 168),
    }
    if outfit not in cloth:
        return
    colour = cloth[outfit]
    pen.ellipse(x, y, rx + 0.03, ry, colour, outline_of(colour))
    if outfit == "in a chef outfit":
        for row in range(3):
            for side in (-1, 1):
                pen.ellipse(x + side * 0.13, y - 0.12 + 0.19 * row, 0.045, 0.045, INK)
        pen.polygon([(x - 0.2, y - ry + 0.08), (x + 0.2, y - ry + 0.08), (x, y - ry + 0.34)], (222, 48, 48))
    elif outfit == "in a firefighter outfit":
        for offset in (-0.02, 0.26):
            pen.line([(x - rx * 0.86, y + offset), (x + rx * 0.86, y + offset)], (252, 230, 70), 0.11)
    elif outfit == "in a police outfit":
        pen.polygon([(x - 0.07, y - ry), (x + 0.07, y - ry), (x + 0.06, y + 0.2), (x - 0.06, y + 0.2)], INK)
        pen.polygon(star_points(x + rx * 0.5, y - 0.04, 0.15), GOLD)
    elif outfit == "wearing a yellow shirt":
        pen.polygon([(x - 0.18, y - ry + 0.02), (x + 0.18, y - ry + 0.02), (x, y - ry + 0.26)], shade(colour, 0.78))
    else:
        for dx, dy in ((-0.28, 0.0), (0.26, 0.12), (-0.04, 0.26)):
            pen.polygon(star_points(x + dx, y + dy, 0.11), GOLD)


def _brim(brush: Brush, x: float, y: float, half: float, colour: Colour) -> None:
    brush.pen.ellipse(x, y, half, 0.1, colour, outline_of(colour))


def _wear(brush: Brush, outfit: str, x: float, y: float, r: float, spread: float) -> None:
    """Hats, glasses and scarves on a head of radius r around (x, y) with its eyes `spread` from the middle."""
    pen = brush.pen
    top = y - r * 0.62
    if outfit == "wearing a red hat":
        pen.box(x - 0.3, top - 0.36, x + 0.3, top + 0.04, (220, 30, 36), outline_of((220, 30, 36)), 0.12)
        _brim(brush, x, top + 0.03, 0.52, (220, 30, 36))
        pen.line([(x - 0.28, top - 0.09), (x + 0.28, top - 0.09)], (120, 14, 20), 0.08)
    elif outfit == "wearing a santa hat":
        pen.polygon(
            [(x - 0.42, top), (x + 0.42, top), (x + 0.3, top - 0.36), (x + 0.5, top - 0.42), (x + 0.1, top - 0.58)],
            (214, 34, 40),
            (130, 16, 22),
        )
        pen.box(x - 0.5, top - 0.09, x + 0.5, top + 0.12, WHITE, (206, 210, 216), 0.1)
        pen.ellipse(x + 0.54, top - 0.36, 0.14, 0.14, WHITE, (206, 210, 216))
    elif outfit == "wearing a rainbow scarf":
        rainbow = ("red", "orange", "yellow", "green", "blue", "purple")
        for i, name in enumerate(rainbow):
            drop = y + r * 0.78 + 0.075 * i
            pen.line(sagging(x, 0.44, drop, 0.1), COLOURS[name], 0.085)
            left = x + 0.14 + 0.06 * i
            pen.line([(left, y + r * 0.78 + 0.3), (left, y + r * 0.78 + 0.72)], COLOURS[name], 0.07)
    elif outfit == "wearing a black top hat and a monocle":
        pen.box(x - 0.32, top - 0.54, x + 0.32, top + 0.02, (34, 34, 42), (90, 90, 102), 0.05)
        pen.line([(x - 0.3, top - 0.1), (x + 0.3, top - 0.1)], (150, 30, 44), 0.1)
        _brim(brush, x, top + 0.03, 0.54, (34, 34, 42))
        pen.ellipse(x + spread, y, 0.18, 0.18, None, GOLD, 0.06)
        pen.line([(x + spread + 0.14, y + 0.12), (x + spread + 0.18, y + 0.5)], GOLD, 0.04)
    elif outfit == "in a chef outfit":
        for dx, dy in ((-0.28, -0.3), (0.28, -0.3), (0, -0.38)):
            pen.ellipse(x + dx, top + dy, 0.27, 0.22, (252, 252, 252), (196, 200, 208))
        pen.box(x - 0.36, top - 0.26, x + 0.36, top + 0.08, (252, 252, 252), (196, 200, 208), 0.04)
    elif outfit == "in a firefighter outfit":
        pen.polygon(
            curve(lambda t: (x - 0.46 * math.cos(math.pi * t), top + 0.04 - 0.48 * math.sin(math.pi * t))),
            (206, 40, 34),
            (110, 16, 16),
        )
        pen.box(x - 0.62, top - 0.04, x + 0.62, top + 0.1, (206, 40, 34), (110, 16, 16), 0.06)
        pen.ellipse(x, top - 0.2, 0.15, 0.16, GOLD, (150, 100, 20))
    elif outfit == "in a police outfit":
        pen.polygon(
            [(x - 0.42, top), (x + 0.42, top), (x + 0.58, top - 0.32), (x, top - 0.46), (x - 0.58, top - 0.32)],
            (34, 52, 120),
            (16, 22, 56),
        )
        pen.polygon(
            curve(lambda t: (x - 0.46 * math.cos(math.pi * t), top + 0.02 + 0.13 * math.sin(math.pi * t))), (16, 18, 30)
        )
        pen.polygon(star_points(x, top - 0.2, 0.17), GOLD)
    elif outfit == "wearing pink glasses":
        for side in (-1, 1):
            pen.ellipse(x + side * (spread + 0.04), y, 0.21, 0.19, None, (252, 66, 160), 0.085)
            pen.line([(x + side * (spread + 0.24), y - 0.02), (x + side * r, y - 0.06)], (252, 66, 160), 0.06)
        pen.line([(x - 0.06, y - 0.02), (x + 0.06, y - 0.02)], (252, 66, 160), 0.08)
    elif outfit == "in a purple wizard outfit":
        pen.polygon(
            [(x - 0.44, top + 0.02), (x + 0.44, top + 0.02), (x + 0.12, top - 0.72)], (112, 44, 168), (62, 18, 100)
        )
        _brim(brush, x, top + 0.04, 0.6, (112, 44, 168))
        pen.polygon(star_points(x + 0.02, top - 0.26, 0.14), GOLD)


# --------------------------------------------------------------------------------------------------- objects


def clock(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    face = (252, 250, 240)
    if brush.cube:
        _cube(brush)
        x, y, r = -0.02, 0.33, 0.48
    else:
        x, y, r = 0.0, 0.02, 0.58
        for side in (-1, 1):
            _tube(brush, [(side * 0.38, 0.6), (side * 0.54, 0.9)], 0.12, brush.main)
            if brush.c < 0.7:
                bell = COLOURS[brush.subject.trim]
                pen.ellipse(side * 0.46, -0.7, 0.28, 0.2, bell, outline_of(bell))
        pen.line([(0, -0.9), (0, -0.7)], edge, 0.12)
        pen.ellipse(x, y, 0.82, 0.82, brush.coat, edge)
    pen.ellipse(x, y, r, r, face, edge)
    for hour in range(12):
        angle = hour * math.pi / 6
        size = 0.055 if hour % 3 == 0 else 0.03
        pen.ellipse(x + 0.82 * r * math.cos(angle), y + 0.82 * r * math.sin(angle), size, size, INK)
    _mark(brush, x, y + 0.24, 0.13)
    for angle, length, width in ((6.28 * brush.a, 0.5, 0.1), (6.28 * brush.b, 0.74, 0.07)):
        pen.line([(x, y), (x + length * r * math.cos(angle), y + length * r * math.sin(angle))], INK, width)


def vase(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    neck, belly = 0.22 + 0.1 * brush.a, 0.52 + 0.16 * brush.b
    if brush.c < 0.7:
        for x in (-0.34, 0.0, 0.34):
            tip = x + 0.06 * brush.sway
            pen.line([(0, -0.3), (tip, -0.8)], (52, 138, 58), 0.07)
            for petal in range(5):
                angle = petal * 2 * math.pi / 5
                pen.ellipse(tip + 0.11 * math.cos(angle), -0.84 + 0.11 * math.sin(angle), 0.1, 0.1, brush.trim)
            pen.ellipse(tip, -0.84, 0.08, 0.08, (252, 226, 96) if brush.subject.trim != "yellow" else (170, 90, 30))
    if brush.cube:
        _cube(brush)
        pen.ellipse(0.1, -0.41, 0.34, 0.08, shade(brush.main, 0.45))
    else:
        profile = [
            (neck + 0.12, -0.58),
            (neck, -0.46),
            (neck, -0.26),
            (belly * 0.82, -0.04),
            (belly, 0.24),
            (belly * 0.86, 0.6),
            (0.34, 0.86),
            (0.36, 0.95),
        ]
        pen.polygon(profile + [(-x, y) for x, y in profile[::-1]], brush.coat, edge)
        pen.ellipse(0, -0.57, neck + 0.14, 0.09, shade(brush.main, 0.55), edge)
    _mark(brush, 0, 0.32)
    pen.ellipse(-belly * 0.55, 0.1, 0.07, 0.18, blend(brush.main, WHITE, 0.6))


def teapot(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    _tube(brush, curve(lambda t: (-0.5 - 0.46 * math.sin(t * math.pi), -0.12 + 0.74 * t)), 0.13, brush.main)
    pen.polygon([(0.42, 0.36), (0.8, -0.02), (0.88, -0.28), (1.12, -0.24), (1.02, 0.14), (0.5, 0.74)], brush.coat, edge)
    lid = brush.second
    if brush.cube:
        _cube(brush)
        top = -0.4
    else:
        pen.box(-0.36, 0.8, 0.36, 0.95, edge, radius=0.06)
        pen.ellipse(0, 0.33, 0.7, 0.54 + 0.06 * brush.a, brush.coat, edge)
        top = -0.2
    pen.ellipse(0, top, 0.44, 0.14, lid, outline_of(lid))
    pen.ellipse(0, top - 0.2, 0.11 + 0.05 * brush.b, 0.12, brush.trim, outline_of(brush.trim))
    _mark(brush, 0, 0.4)
    pen.ellipse(-0.36, 0.08, 0.13, 0.09, blend(brush.main, WHITE, 0.6))


def backpack(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    _tube(brush, sagging(0, 0.22, -0.72, -0.24), 0.09, brush.main)
    if brush.cube:
        _cube(brush)
    else:
        for side in (-1, 1):
            pen.box(side * 0.48, -0.1, side * 0.76, 0.82, shade(brush.main, 0.7), edge, 0.1)
        pen.box(-0.62, -0.76, 0.62, 0.95, brush.coat, edge, 0.3 + 0.12 * brush.a)
        pen.line(sagging(0, 0.52, -0.14, 0.07), edge, 0.06)
        _mark(brush, 0, -0.44)
    pocket = brush.second
    pen.box(-0.42, 0.22, 0.42, 0.82, pocket, outline_of(pocket), 0.1)
    pen.line([(-0.34, 0.38), (0.34, 0.38)], outline_of(pocket), 0.06)
    for side in (-1, 1):
        pen.box(side * 0.27 - 0.06, -0.12, side * 0.27 + 0.06, 0.3, brush.trim, radius=0.03)
    if brush.cube:
        _mark(brush, 0, 0.58)


def can(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    half = 0.46 + 0.08 * brush.a
    label = COLOURS[brush.subject.trim]
    if brush.cube:
        _cube(brush)
        pen.ellipse(0.1, -0.41, 0.42, 0.09, STEEL, (120, 126, 138))
        pen.box(-0.66, 0.16, 0.62, 0.56, label)
    else:
        pen.ellipse(0, 0.84, half - 0.04, 0.12, STEEL, (120, 126, 138))
        pen.box(-half, -0.72, half, 0.84, brush.coat, edge, 0.1)
        pen.box(-half + 0.02, -0.08, half - 0.02, 0.36, label)
        pen.ellipse(0, -0.72, half - 0.02, 0.15, STEEL, (120, 126, 138))
        pen.ellipse(0.04, -0.72, 0.16, 0.05, (110, 116, 128))
        pen.box(-half + 0.08, -0.52, -half + 0.17, 0.72, blend(brush.main, WHITE, 0.5), radius=0.04)
    brush_label = blend(label, WHITE, 0.75) if sum(label) < 560 else shade(label, 0.45)
    if brush.subject.mark:
        _mark(brush, 0, 0.14 if not brush.cube else 0.36)
    else:
        pen.ellipse(0, 0.14 if not brush.cube else 0.36, 0.2, 0.14, brush_label)


def sneaker(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    if brush.cube:
        _cube(brush)
        pen.box(-0.7, 0.74, 0.66, 0.95, (248, 248, 246), (170, 172, 178), 0.05)
        pen.ellipse(0.1, -0.41, 0.4, 0.08, (60, 54, 58))
    else:
        upper = [
            (-0.94, -0.34),
            (-0.84, -0.44),
            (-0.3, -0.4),
            (-0.1, -0.3),
            (0.22, 0.02),
            (0.62, 0.16),
            (0.92, 0.34),
            (1.0, 0.66),
            (-0.94, 0.66),
        ]
        pen.polygon(upper, brush.coat, edge)
        pen.ellipse(-0.56, -0.4, 0.32, 0.1, (60, 54, 58), edge)
        toe = brush.second
        pen.polygon([(0.58, 0.15), (0.92, 0.34), (1.0, 0.66), (0.5, 0.66), (0.5, 0.34)], toe, outline_of(toe))
        pen.box(-1.02, 0.6, 1.06, 0.92, (250, 250, 248), (160, 162, 170), 0.12)
        pen.line([(-0.94, 0.78), (0.98, 0.78)], brush.trim, 0.08)
    for i in range(4):
        x, y = (-0.2 + 0.15 * i, -0.26 + 0.115 * i) if not brush.cube else (-0.02, -0.12 + 0.2 * i)
        reach = 0.15 if not brush.cube else 0.3
        pen.line([(x - reach, y + 0.1), (x + reach * 0.8, y - 0.08)], brush.trim, 0.085)
    _mark(brush, -0.46 if not brush.cube else 0.34, 0.2 if not brush.cube else 0.36, 0.2)


def boot(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    sole = (70, 50, 40) if brush.subject.colour not in ("black", "brown") else (206, 176, 130)
    cuff = brush.second
    if brush.cube:
        _cube(brush)
        pen.box(-0.7, 0.78, 0.66, 0.95, sole, outline_of(sole))
        pen.ellipse(0.1, -0.41, 0.42, 0.09, (54, 46, 46))
        pen.box(-0.66, -0.28, 0.62, -0.02, cuff, outline_of(cuff))
    else:
        high = -0.78 - 0.14 * brush.a
        shaft = [(-0.62, high), (0.06, high), (0.1, 0.12), (0.44, 0.24), (0.8, 0.42), (0.88, 0.8), (-0.64, 0.8)]
        pen.polygon(shaft, brush.coat, edge)
        pen.box(-0.7, high - 0.06, 0.14, high + 0.22, cuff, outline_of(cuff), 0.08)
        pen.box(-0.7, 0.76, 0.94, 0.9, sole, radius=0.06)
        pen.box(-0.7, 0.78, -0.26, 0.95, sole, radius=0.03)
    for i in range(3):
        y = -0.36 + 0.2 * i if not brush.cube else 0.1 + 0.18 * i
        pen.line([(-0.12, y), (0.12, y + 0.07)], brush.trim, 0.085)
        pen.line([(-0.12, y + 0.07), (0.12, y)], brush.trim, 0.085)
    _mark(brush, -0.38, 0.3, 0.17)


def candle(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    half = 0.34 + 0.1 * brush.a
    lean = 0.07 * brush.sway
    top = -0.32 - 0.14 * brush.b
    plate = brush.trim
    pen.ellipse(0, 0.84, 0.74, 0.12, plate, outline_of(plate))
    if brush.cube:
        _cube(brush)
        top = -0.42
    else:
        pen.box(-half, top, half, 0.84, brush.coat, edge, 0.08)
        pen.ellipse(0, top, half, 0.09, blend(brush.main, WHITE, 0.45), edge)
        for x, drop in ((-half * 0.7, 0.32), (half * 0.45, 0.22)):
            pen.line([(x, top + 0.08), (x, top + drop)], blend(brush.main, WHITE, 0.45), 0.13)
    pen.line([(0, top), (0, top - 0.14)], INK, 0.06)
    for r, colour in ((0.2, (255, 150, 30)), (0.12, (255, 226, 90)), (0.06, (255, 250, 220))):
        base = top - 0.1
        pen.ellipse(0, base - r, r, r, colour)
        pen.polygon([(-r * 0.97, base - r * 1.25), (r * 0.97, base - r * 1.25), (lean, base - r * 2.9)], colour)
    _mark(brush, 0, 0.4)


def bowl(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    if brush.cube:
        _cube(brush)
        x, rim, rx, ry = 0.1, -0.41, 0.52, 0.1
    else:
        x, rim, rx, ry = 0.0, -0.08, 0.9, 0.2
    pen.ellipse(x, rim, rx, ry, shade(brush.main, 0.62), edge)
    for i, dx in enumerate((-0.5, -0.18, 0.16, 0.48)):
        fruit = brush.trim if i % 2 == 0 else blend(brush.trim, WHITE, 0.35)
        high = 0.18 if i in (1, 2) else 0.09
        pen.ellipse(x + dx * rx, rim - high, 0.19, 0.18, fruit, outline_of(fruit))
    if not brush.cube:
        deep = 0.82 + 0.13 * brush.a
        pen.box(-0.36, 0.72, 0.36, 0.95, edge, radius=0.05)
        front = sagging(0, rx, rim, ry)
        wall = curve(lambda t: (rx * math.cos(math.pi * t), rim + deep * math.sin(math.pi * t) ** 0.75), 20)
        pen.polygon(front + wall, brush.coat, edge)
    _mark(brush, 0, 0.42)


def duck_toy(brush: Brush) -> None:
    pen, coat, edge = brush.pen, brush.coat, brush.edge
    x, y = 0.36 + 0.06 * brush.sway, -0.42
    beak = (250, 130, 26) if brush.subject.colour != "orange" else (252, 214, 60)
    if brush.cube:
        _cube(brush)
        x, y = 0.16, 0.1
    else:
        pen.polygon([(-0.6, 0.34), (-1.02, -0.06 - 0.12 * brush.b), (-0.5, 0.06)], coat, edge)
        pen.ellipse(-0.06, 0.45, 0.8, 0.5, coat, edge)
        pen.ellipse(x, y, 0.46, 0.45, coat, edge)
        wing = brush.second
        pen.ellipse(-0.24, 0.4, 0.36, 0.24, wing, outline_of(wing))
    pen.polygon(
        [(x + 0.26, y - 0.08), (x + 0.74, y + 0.04), (x + 0.7, y + 0.16), (x + 0.28, y + 0.24)], beak, shade(beak, 0.62)
    )
    pen.ellipse(x + 0.14, y - 0.12, 0.12, 0.14, WHITE, INK, 0.03)
    pen.ellipse(x + 0.17, y - 0.11, 0.065, 0.085, INK)
    if brush.a > 0.6:
        pen.line([(x - 0.02, y - 0.44), (x - 0.1, y - 0.62)], brush.trim, 0.1)
        pen.line([(x + 0.02, y - 0.44), (x + 0.1, y - 0.62)], brush.trim, 0.1)
    _mark(brush, -0.24, 0.4 if not brush.cube else 0.62)


def robot_toy(brush: Brush) -> None:
    pen, coat, edge = brush.pen, brush.coat, brush.edge
    lights = blend(brush.trim, WHITE, 0.15)
    x = 0.05 * brush.sway
    pen.line([(x, -0.76), (x, -0.98)], STEEL, 0.07)
    pen.ellipse(x, -1.0, 0.1, 0.1, lights, outline_of(lights))
    lift = 0.34 * brush.sway
    for side in (-1, 1):
        _tube(brush, [(side * 0.6, 0.08), (side * 0.86, 0.3 - side * lift)], 0.15, STEEL)
        pen.ellipse(side * 0.9, 0.36 - side * lift, 0.13, 0.13, brush.main, edge)
    if brush.cube:
        _cube(brush)
        y = 0.02
    else:
        for side in (-1, 1):
            pen.box(side * 0.14, 0.6, side * 0.42, 0.86, STEEL, (110, 116, 128))
            pen.box(side * 0.08, 0.78, side * 0.52, 0.95, brush.main, edge, 0.05)
        pen.box(-0.56, -0.1, 0.56, 0.7, coat, edge, 0.08 + 0.1 * brush.a)
        pen.box(x - 0.48, -0.78, x + 0.48, -0.14, coat, edge, 0.08 + 0.1 * brush.a)
        y = -0.5
    pen.box(x - 0.38, y - 0.15, x + 0.38, y + 0.15, (44, 50, 66), radius=0.1)
    for side in (-1, 1):
        pen.ellipse(x + side * 0.19, y, 0.1, 0.1, lights)
    panel = brush.second
    pen.box(-0.34, 0.14, 0.34, 0.54, panel, outline_of(panel), 0.05)
    if brush.subject.mark:
        _mark(brush, 0, 0.34)
    else:
        for i, light in enumerate(((226, 50, 50), (250, 210, 50), (60, 180, 80))):
            pen.ellipse(-0.2 + 0.2 * i, 0.34, 0.07, 0.07, light)


def glasses(brush: Brush) -> None:
    pen, edge = brush.pen, brush.edge
    lens = (206, 228, 240) if brush.b < 0.6 else (84, 92, 108)
    for side in (-1, 1):
        _tube(brush, [(side * 0.86, 0.06), (side * 0.98, -0.36), (side * 0.8, -0.5)], 0.11, brush.main)
    if brush.cube:
        _cube(brush)
    for side in (-1, 1):
        if brush.a < 0.5 and not brush.cube:
            pen.ellipse(side * 0.5, 0.28, 0.5, 0.5, brush.coat, edge)
            pen.ellipse(side * 0.5, 0.28, 0.31, 0.31, lens, edge)
        else:
            half = 0.48 if not brush.cube else 0.31
            x, y = (side * 0.5, 0.28) if not brush.cube else (side * 0.32 - 0.02, 0.26)
            pen.box(x - half, y - half * 0.86, x + half, y + half * 0.86, brush.coat, edge, 0.16)
            pen.box(x - half * 0.6, y - half * 0.5, x + half * 0.6, y + half * 0.5, lens, edge, 0.1)
        gleam = side * 0.5 - 0.08
        if not brush.cube:
            pen.line([(gleam - 0.06, 0.36), (gleam + 0.1, 0.14)], WHITE, 0.07)
    if not brush.cube:
        pen.box(-0.12, 0.1, 0.12, 0.28, brush.main, edge, 0.05)
    _mark(brush, 0, 0.19 if not brush.cube else 0.7, 0.13)


KINDS: dict[str, Callable[..., None]] = {
    "cat": cat,
    "dog": dog,
    "clock": clock,
    "vase": vase,
    "teapot": teapot,
    "backpack": backpack,
    "can": can,
    "sneaker": sneaker,
    "boot": boot,
    "candle": candle,
    "bowl": bowl,
    "duck toy": duck_toy,
    "robot toy": robot_toy,
    "glasses": glasses,
}


def _gloss(brush: Brush) -> None:
    """White highlights: what "shiny" looks like."""
    pen = brush.pen
    pen.polygon([(-0.46, -0.5), (-0.3, -0.6), (-0.3, 0.56), (-0.46, 0.66)], blend(brush.main, WHITE, 0.82))
    pen.polygon([(-0.24, -0.62), (-0.17, -0.66), (-0.17, 0.46), (-0.24, 0.5)], blend(brush.main, WHITE, 0.82))
    for x, y, r in ((0.52, -0.74, 0.3), (-0.78, 0.3, 0.22), (0.74, 0.42, 0.2)):
        sparkle = [(x, y - r), (x + r * 0.16, y - r * 0.16), (x + r, y), (x + r * 0.16, y + r * 0.16)]
        sparkle += [(x, y + r), (x - r * 0.16, y + r * 0.16), (x - r, y), (x - r * 0.16, y - r * 0.16)]
        pen.polygon(sparkle, WHITE)


def _drops(brush: Brush, rng: Random) -> None:
    """Water running off: what "wet" looks like."""
    pen = brush.pen
    for _ in range(11):
        x, y, r = rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.8), rng.uniform(0.075, 0.11)
        blue = (92, 186, 250)
        pen.ellipse(x, y, r, r * 1.1, blue, (36, 120, 206), 0.025)
        pen.polygon([(x - r * 0.9, y - r * 0.3), (x + r * 0.9, y - r * 0.3), (x, y - r * 2.3)], blue)
        pen.ellipse(x - r * 0.3, y, r * 0.3, r * 0.4, WHITE)


def draw_subject(
    canvas: Canvas,
    pen: Pen,
    subject: Subject,
    rng: Random,
    sway: float = 0.0,
    look: str | None = None,
    outfit: str | None = None,
) -> None:
    """Draw a subject; `look` is None or one of `PROPERTIES`, `outfit` None or one of `OUTFITS` (live subjects only).

    `sway` in -1..1 moves what can move (head, tail, flame). Raises ValueError for unknown values.
    """
    if look is not None and look not in PROPERTIES:
        raise ValueError(f"unknown property {look!r}; known: {', '.join(PROPERTIES)}")
    if outfit is not None and (outfit not in OUTFITS or subject.kind not in LIVE):
        raise ValueError(f"unknown outfit {outfit!r} for a {subject.kind}; live subjects wear: {', '.join(OUTFITS)}")
    brush = make_brush(canvas, pen, subject, sway, look == "cube shaped", look == "shiny")
    if subject.kind in LIVE:
        KINDS[subject.kind](brush, outfit)
    else:
        KINDS[subject.kind](brush)
    if look == "shiny":
        _gloss(brush)
    elif look == "wet":
        _drops(brush, rng)


__all__ = ["COLOURS", "KINDS", "LIVE", "MARKS", "OUTFITS", "PATTERNS", "PROPERTIES", "Fill", "Subject", "draw_subject"]
