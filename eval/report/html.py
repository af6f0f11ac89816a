"""Parts of the page: pictures, sliders, tables."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from dash_vision.drawing.numbers import fixed
from dash_vision.drawing.shapes import COLOURS
from dash_vision.pictures.formats import READABLE, sniff

from ..vtab.rows import BLANK

# Least and greatest width of an enlarged picture: a sheet has small print, a tile is to fit in the window.
SHEET, TILE = 'data-least="900px" data-most="1500px"', 'data-least="0px" data-most="78vh"'


class Cell(NamedTuple):
    """A table's cell: its text, and the number it is sorted by where the text is not that number. best: in bold.
    colour: of the method that it names."""

    text: str
    value: float | None = None
    best: bool = False
    colour: int | None = None


class Shown(NamedTuple):
    """A picture on the page: the method it is by, what more there is to say of that, its data: address and alternative
    text. colour: of the method. box: the square of it that is shown, (left, top, side) in pixels of its `size`; None:
    all of it."""

    name: str
    more: str
    data: str
    alt: str
    colour: int
    box: tuple[int, int, int] | None = None
    size: tuple[int, int] = (1, 1)

    def html(self, kind: str = "") -> str:
        """The <img>, within a <span> where a part is shown; kind: its class."""
        image = f'<img src="{self.data}" alt="{escape(self.alt)}"'
        if self.box is None:
            return f'{image} class="{kind}">' if kind else f"{image}>"
        left, top, side = self.box
        parts = {"w": self.size[0], "x": -left, "y": -top}
        place = ";".join(f"--{name}:{100 * value / side:.4f}%" for name, value in parts.items())
        return f'<span class="crop {kind}" style="{place}">{image}></span>'

    @property
    def label(self) -> str:
        """The method's name with its colour, above a slider."""
        more = f"<small>{escape(self.more)}</small>" if self.more else ""
        return f"<b>{named(self.name, self.colour)}{more}</b>"


def named(name: str, colour: int) -> str:
    """A method's name beside a dot of its colour, an index of COLOURS."""
    return f'<span class="method c{colour % len(COLOURS)}">{escape(name)}</span>'


def compare(left: Shown, right: Shown, caption: str) -> str:
    """Two pictures of one size over each other with a slider between them."""
    label = escape(f"{caption}: how much of {left.name} is shown over {right.name}, in percent")
    return (
        f'<figure class="compare" {TILE}><div class="bar">{left.label}'
        f'<button class="plain enlarge" aria-label="enlarge: {escape(caption)}">Enlarge</button>'
        f'{right.label}</div><div class="frame">{right.html()}{left.html("over")}'
        f'<input type="range" min="0" max="100" value="50" aria-label="{label}"><span class="line"></span></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def enlargeable(data: str, alt: str, caption: str, room: str = SHEET) -> str:
    """A picture that a click enlarges; room: see `compare`."""
    return (
        f'<figure {room}><button class="frame zoom" aria-label="enlarge: {escape(alt)}">'
        f'<img src="{data}" alt="{escape(alt)}"></button><figcaption>{escape(caption)}</figcaption></figure>'
    )


def once(page: str) -> str:
    """The page with the data of every picture in it once: a later <img> of it names the first, and a line of the page's
    script gives it the data."""
    numbers: dict[str, int] = {}

    def place(match: re.Match[str]) -> str:
        known = match[1] in numbers
        number = numbers.setdefault(match[1], len(numbers))
        return f'<img data-of="picture-{number}"' if known else f'<img id="picture-{number}" src="{match[1]}"'

    return re.sub(r'<img src="(data:[^"]*)"', place, page)


def as_data(content: bytes) -> str:
    """A data: address of a picture's file. Raises ValueError for a file of another kind."""
    kind = sniff(content[:64])
    if kind not in READABLE:
        raise ValueError("no picture")
    kind = kind.lower()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# -- tables


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str, groups: Sequence[tuple[str, int]] = ()
) -> str:
    """A table that its reader can sort by any column. groups: (name, how many columns it spans) above the head."""
    names = {place for row in rows for place, cell in enumerate(row) if cell.colour is not None}
    of_names = ' class="name"'
    heads = "".join(
        f'<th scope="col"{of_names if place in names else ""}><button>{escape(name)}</button></th>'
        for place, name in enumerate(head)
    )
    spans = "".join(f'<th scope="colgroup" colspan="{count}">{escape(name)}</th>' for name, count in groups)
    above = f'<tr class="groups">{spans}</tr>' if groups else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    words = escape(caption)
    return f'<p class="caption">{words}</p>' + scrolling(
        f'<table class="sortable" aria-label="{words}"><thead>{above}<tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table>",
        caption,
    )


def scrolling(content: str, label: str) -> str:
    """What may be wider than the window, in a part of the page that scrolls sideways, also by the arrow keys, and that
    shows at its edge that there is more."""
    return (
        f'<div class="wide"><div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'
        "</div>"
    )


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-v="{cell.value!r}"'
    text = escape(cell.text) if cell.colour is None else named(cell.text, cell.colour)
    name = "" if cell.colour is None else ' class="name"'
    return f"<td{name}{value}>{f'<b>{text}</b>' if cell.best else text}</td>"


def number(value: float | int | None, digits: int = 0) -> Cell:
    """A number in a table, with so many digits after the point; BLANK where there is none."""
    if value is None:
        return Cell(BLANK)
    return Cell(fixed(value, digits) if digits else f"{value:,}", float(value))
