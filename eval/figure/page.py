"""The page of a figure: per subject a collage of the inputs, then per prompt one tile per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from dash_vision.drawing.fonts import about_lacking, font_for, wrapped

INK, SOFT, PAPER = "#1b1f24", "#5b6570", "#ffffff"
TILE, GAP, ROOM, MARGIN = 256, 6, 26, 24
BASE = "base"  # the name of the tiles without an adapter


@dataclass(frozen=True)
class Sampled:
    """A block's pictures: tiles[prompt][method]. story: how they were made; footer: the same for a reader."""

    name: str
    inputs: list[Image.Image]
    methods: list[str]
    prompts: list[str]
    tiles: list[list[Image.Image]]
    story: dict[str, Any]
    footer: str = ""


def draw(blocks: Sequence[Sampled]) -> Image.Image:
    """All blocks below each other on one page."""
    rows = [_draw_block(block) for block in blocks]
    width = max(row.width for row in rows) + 2 * MARGIN
    height = sum(row.height for row in rows) + GAP * (len(rows) - 1) + 2 * MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    y = MARGIN
    for row in rows:
        page.paste(row, (MARGIN, y))
        y += row.height + GAP
    return page


def _draw_block(block: Sampled) -> Image.Image:
    """Collage on the left; beside it the prompts' tiles, the methods of one prompt close together; the footer below."""
    text = " ".join((block.name, *block.prompts, block.footer))
    font, small = font_for(text, 17), font_for(text, 14)
    methods = len(block.methods)
    pair = methods * TILE + (methods - 1) * GAP
    captions = [wrapped(prompt, font, pair) for prompt in block.prompts]
    about = wrapped(f"input: {block.name}", font, TILE)
    words = 10 + max(map(len, (about, *captions))) * 22 + 12
    width = TILE + ROOM + len(block.prompts) * pair + (len(block.prompts) - 1) * ROOM
    missing = about_lacking(text, font)
    footer = wrapped(f"{block.footer} {missing}", small, width) if block.footer or missing else []
    row = Image.new("RGB", (width, TILE + words + 19 * len(footer) + (8 if footer else 0)), PAPER)
    canvas = ImageDraw.Draw(row)
    row.paste(collage(block.inputs, TILE), (0, 0))
    _write(canvas, about, TILE / 2, font)
    for i, (tiles, lines) in enumerate(zip(block.tiles, captions, strict=True)):
        x = TILE + ROOM + i * (pair + ROOM)
        for j, (tile, method) in enumerate(zip(tiles, block.methods, strict=True)):
            row.paste(_named(tile, method), (x + j * (TILE + GAP), 0))
        _write(canvas, lines, x + pair / 2, font)
    for number, line in enumerate(footer):
        canvas.text((0, TILE + words + 19 * number), line, font=small, fill=SOFT)
    return row


def _write(canvas: ImageDraw.ImageDraw, lines: Sequence[str], x: float, font: Any) -> None:
    """Lines under the tiles, each with its middle at x."""
    for k, line in enumerate(lines):
        canvas.text((x, TILE + 10 + 22 * k), line, font=font, fill=INK, anchor="ma")


def collage(pictures: Sequence[Image.Image], side: int) -> Image.Image:
    """Up to nine pictures in a square of `side` pixels, each cut to a square."""
    shown = pictures[:9]
    columns = max(1, math.ceil(math.sqrt(len(shown))))
    rows = math.ceil(len(shown) / columns)
    cell = (side - (columns - 1) * 4) // columns
    square = Image.new("RGB", (side, side), PAPER)
    top = (side - rows * cell - (rows - 1) * 4) // 2
    for i, picture in enumerate(shown):
        # A last row that is not full stands in the middle.
        in_row = min(columns, len(shown) - i // columns * columns)
        left = (side - in_row * cell - (in_row - 1) * 4) // 2
        place = (left + i % columns * (cell + 4), top + i // columns * (cell + 4))
        square.paste(ImageOps.fit(picture, (cell, cell), Image.Resampling.LANCZOS), place)
    return square


def _named(tile: Image.Image, name: str) -> Image.Image:
    """The tile at its size in the figure, with the method's name in its lower left corner."""
    large = ImageOps.fit(tile.convert("RGB"), (TILE, TILE), Image.Resampling.BICUBIC)
    font = font_for(name, 17)
    lines = wrapped(name, font, TILE - 16)
    width = math.ceil(max(map(font.getlength, lines))) + 16
    label = Image.new("RGBA", (width, 22 * len(lines) + 5), (20, 24, 28, 190))
    for k, line in enumerate(lines):
        ImageDraw.Draw(label).text((8, 13 + 22 * k), line, font=font, fill="#ffffff", anchor="lm")
    large.paste(label, (0, TILE - label.height), label)
    return large
