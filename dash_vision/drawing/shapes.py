"""What charts consist of: lines, areas, dots and words in pixels, in colours that have names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .numbers import Point

COLOURS = ("#2f6fde", "#d9730d", "#16855b", "#8b46c1", "#c2334d", "#0b7f8c", "#7a6a00", "#5b6570")
ROLES = {"ink": "#1b1f24", "soft": "#5b6570", "rule": "#e3e7ec", "paper": "#ffffff"}
# What tells lines, and single points, of one colour apart: (drawn, left out, ...) in pixels, and markers.
DASHES: tuple[tuple[float, ...], ...] = ((), (9, 4), (2.5, 3.5), (11, 4, 2.5, 4))
MARKERS = ("dot", "square", "diamond", "cross")
_CHARACTER = 0.53  # mean width of a character, in units of the font's size, by which legends and titles are broken


@dataclass
class Shapes:
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

    def box(self, left: float, top: float, right: float, bottom: float, colour: str, opacity: float) -> None:
        self.area([(left, top), (right, top), (right, bottom), (left, bottom)], colour, opacity)

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

    def paragraph(self, point: Point, words: str, colour: str, size: int, width: float) -> float:
        """Words in lines of at most about `width` pixels; the height that they take."""
        lines = broken(words, size, width)
        for number, line in enumerate(lines):
            self.text((point[0], point[1] + round(1.35 * size) * number), line, colour, size)
        return float(round(1.35 * size) * len(lines))


def length_of(words: str, size: int) -> float:
    """About how many pixels a line of words takes."""
    return len(words) * size * _CHARACTER


def broken(text: str, size: int, width: float) -> list[str]:
    """A text in lines of at most about `width` pixels."""
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
