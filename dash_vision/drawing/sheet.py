"""samples.png: a row of inputs, then a row per method; one column per prompt, its text above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from .fonts import Font, about_lacking, font_for, legible, wrapped

INK, SOFT, PAPER, RULE = "#1b1f24", "#5b6570", "#ffffff", "#e3e7ec"
# The edge, the labels' width, the room between tiles, and a line of small print.
_MARGIN, _LABEL, _GAP, _LINE = 28, 132, 12, 17


@dataclass(frozen=True)
class Row:
    """Pictures under one title, with a line on what they are."""

    title: str
    note: str
    pictures: Sequence[Image.Image]


def save_with_palette(picture: Image.Image, file: Path) -> None:
    """A PNG of at most 256 colours: a quarter of the bytes, for pictures that a repository keeps."""
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, optimize=True)


def draw_sheet(
    inputs: Row, columns: Sequence[str], rows: Sequence[Row], headline: str, footnote: str, side: int | None = None
) -> Image.Image:
    """A page of the input pictures and, below, `rows` under the captions `columns`, one picture per column.

    Pictures smaller than a tile are enlarged smoothly, larger ones reduced. Where no font has a letter, a question mark
    stands for it, and a line below the headline says so. side: of a tile in pixels. RGB.
    """
    count = max(len(columns), min(len(inputs.pictures), 6), 2)
    tile, gap, margin, label = side or _tile_side(count), _GAP, _MARGIN, _LABEL
    width = margin * 2 + label + count * tile + (count - 1) * gap
    words = " ".join(
        [headline, footnote, *columns, *(part for row in (inputs, *rows) for part in (row.title, row.note))]
    )
    title, body, small = (font_for(words, size) for size in (24, 15, 13))
    captions = [wrapped(text, small, tile) for text in columns]
    caption_height = max(len(lines) for lines in captions) * _LINE
    heads = wrapped(headline, title, width - 2 * margin)
    missing = about_lacking(words, small)
    said = wrapped(missing, small, width - 2 * margin) if missing else []
    top = margin + 14 + 30 * len(heads) + len(said) * _LINE
    height = top + tile + 34 + caption_height + 8 + len(rows) * (tile + gap) + 8 + _LINE + margin

    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(heads):
        draw.text((margin, margin - 4 + 30 * i), line, font=title, fill=INK)
    _lines(draw, (margin, margin + 6 + 30 * len(heads)), said, small, SOFT)
    _row(page, Row(inputs.title, inputs.note, inputs.pictures[:count]), (top, tile), body, small)
    y = top + tile + _LINE
    draw.line((margin, y, width - margin, y), fill=RULE, width=2)
    y += _LINE
    for i, lines in enumerate(captions):
        _lines(draw, (margin + label + i * (tile + gap), y), lines, small, INK)
    y += caption_height + 8
    for row in rows:
        _row(page, row, (y, tile), body, small)
        y += tile + gap
    _one_line(draw, (margin, y + 8), footnote, words, width - 2 * margin)
    return page


def sheet_tiles(size: tuple[int, int], columns: int, row: int = -1) -> list[tuple[int, int, int]]:
    """(left, top, side) of the pictures of a row below the inputs, in pixels of a sheet of `size`; none
    where `draw_sheet` gives no page of so many columns that width. row: -1 is the last, -2 the one
    before it."""
    width, height = size
    for tile in (192, 224):
        count, rest = divmod(width - 2 * _MARGIN - _LABEL + _GAP, tile + _GAP)
        if rest == 0 and count >= max(columns, 2) and tile == _tile_side(count):
            top = height - _MARGIN - _LINE - 8 + row * (_GAP + tile)
            return [(_MARGIN + _LABEL + i * (tile + _GAP), top, tile) for i in range(columns)]
    return []


def _one_line(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, words: str, width: int) -> None:
    """A text in one line, in smaller letters where it needs them: `sheet_tiles` counts on one line. words: all that
    the font is to have letters for."""
    fonts = [font_for(words, size) for size in (13, 12, 11, 10, 9)]
    font = next((font for font in fonts if font.getlength(text) <= width), fonts[-1])
    draw.text(place, legible(text, font), font=font, fill=SOFT)


def _tile_side(count: int) -> int:
    return 192 if count > 4 else 224


def _row(page: Image.Image, row: Row, place: tuple[int, int], body: Font, small: Font) -> None:
    """A row's label and its pictures. place: their upper edge and their side."""
    (y, tile), draw, width = place, ImageDraw.Draw(page), _LABEL - 14
    title = wrapped(row.title, body, width)
    for number, line in enumerate(title):
        draw.text((_MARGIN, y + 20 * number), line, font=body, fill=INK)
    _lines(draw, (_MARGIN, y + 20 * len(title) + 4), wrapped(row.note, small, width), small, SOFT)
    for i, picture in enumerate(row.pictures):
        page.paste(_tile(picture, tile), (_MARGIN + _LABEL + i * (tile + _GAP), y))


def _lines(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], font: Font, colour: str) -> None:
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + number * _LINE), line, font=font, fill=colour)


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
