"""samples.png: a row of inputs, then a row per method; one column per prompt, its text above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .fonts import Font, font_for, wrapped

INK, SOFT, PAPER, RULE = "#1b1f24", "#5b6570", "#ffffff", "#e3e7ec"
# The edge, the labels' width, the room between tiles, and a line of small print.
_MARGIN, _LABEL, _GAP, _LINE = 28, 132, 12, 17


@dataclass(frozen=True)
class Row:
    """Pictures under one title, with a line on what they are."""

    title: str
    note: str
    pictures: Sequence[Image.Image]


def draw_sheet(inputs: Row, columns: Sequence[str], rows: Sequence[Row], headline: str, footnote: str) -> Image.Image:
    """A page of the input pictures and, below, `rows` under the captions `columns`, one picture per column.

    Pictures smaller than a tile are enlarged smoothly, larger ones reduced. RGB.
    """
    count = max(len(columns), min(len(inputs.pictures), 6), 2)
    tile, gap, margin, label = _tile_side(count), _GAP, _MARGIN, _LABEL
    width = margin * 2 + label + count * tile + (count - 1) * gap
    words = [headline, footnote, *columns, *(part for row in (inputs, *rows) for part in (row.title, row.note))]
    title, body, small = (font_for(" ".join(words), size) for size in (24, 15, 13))
    captions = [wrapped(text, small, tile) for text in columns]
    caption_height = max(len(lines) for lines in captions) * _LINE
    foot = wrapped(footnote, small, width - 2 * margin)
    height = margin + 44 + tile + 34 + caption_height + 8 + len(rows) * (tile + gap) + 8 + len(foot) * _LINE + margin

    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((margin, margin - 4), headline, font=title, fill=INK)
    left, y = margin + label, margin + 44
    _label(draw, (margin, y), inputs, body, small, label)
    for i, picture in enumerate(inputs.pictures[:count]):
        page.paste(_tile(picture, tile), (left + i * (tile + gap), y))
    y += tile + _LINE
    draw.line((margin, y, width - margin, y), fill=RULE, width=2)
    y += _LINE
    for i, lines in enumerate(captions):
        for j, line in enumerate(lines):
            draw.text((left + i * (tile + gap), y + j * _LINE), line, font=small, fill=INK)
    y += caption_height + 8
    for row in rows:
        _label(draw, (margin, y), row, body, small, label)
        for i, picture in enumerate(row.pictures):
            page.paste(_tile(picture, tile), (left + i * (tile + gap), y))
        y += tile + gap
    y += 8
    for j, line in enumerate(foot):
        draw.text((margin, y + j * _LINE), line, font=small, fill=SOFT)
    return page


def last_row(size: tuple[int, int], columns: int) -> list[tuple[int, int, int]]:
    """(left, top, side) of the last row's pictures, in pixels of a sheet of `size` with a footnote of one line; none
    where `draw_sheet` gives no page of so many columns that width."""
    width, height = size
    for tile in (192, 224):
        count, rest = divmod(width - 2 * _MARGIN - _LABEL + _GAP, tile + _GAP)
        if rest == 0 and count >= max(columns, 2) and tile == _tile_side(count):
            top = height - _MARGIN - _LINE - 8 - _GAP - tile
            return [(_MARGIN + _LABEL + i * (tile + _GAP), top, tile) for i in range(columns)]
    return []


def _tile_side(count: int) -> int:
    return 192 if count > 4 else 224


def _label(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    row: Row,
    body: Font,
    small: Font,
    width: int,
) -> None:
    x, y = place
    for line in wrapped(row.title, body, width - 14):
        draw.text((x, y), line, font=body, fill=INK)
        y += 20
    y += 4
    for line in wrapped(row.note, small, width - 14):
        draw.text((x, y), line, font=small, fill=SOFT)
        y += _LINE


def _tile(picture: Image.Image, side: int) -> Image.Image:
    """The picture within a square of `side` pixels, its shape kept."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    if size == (side, side):
        return small
    tile = Image.new("RGB", (side, side), "#f4f6f8")
    tile.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return tile
