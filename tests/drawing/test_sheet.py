"""The sheet of samples: its words, and the places of its tiles."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dash_vision.drawing import fonts
from dash_vision.drawing.sheet import Row, draw_sheet, sheet_tiles


@pytest.fixture
def words(monkeypatch):
    """What is written on the sheets, with its place."""
    seen = []
    original = ImageDraw.ImageDraw.text

    def spy(canvas, place, text, **options):
        seen.append((text, canvas.textbbox(place, text, font=options["font"]), canvas.im.size))
        return original(canvas, place, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return seen


def sheet(headline="sks cat", prompts=("a photo of sks cat",), foot="25 sampling steps, guidance 2, seed 0"):
    def row(title, colour):
        return Row(title, "rank 4, 150 training steps", [Image.new("RGB", (64, 64), colour)] * len(prompts))

    inputs = Row("input", "1 picture", [Image.new("RGB", (64, 64), "#00ff00")])
    return draw_sheet(inputs, prompts, [row("base", "#ff0000"), row("LoRA", "#0000ff")], headline, foot)


@pytest.mark.parametrize(
    ("headline", "foot"),
    [
        ("sks cat", "25 sampling steps"),
        ("a subject of very many words that no line of a small sheet could ever hold, " * 2, "25 sampling steps"),
        ("sks cat", "50 sampling steps, guidance 7.55, seed 9223372036854775807; same starting noise within a column."),
        ("猫", "25 sampling steps"),
    ],
)
def test_tiles_are_found_and_words_stay_inside_whatever_they_are(words, monkeypatch, headline, foot):
    monkeypatch.setattr(fonts, "_FONTS", ())
    page = sheet(headline, foot=foot)
    pixels = np.asarray(page)
    for row, colour in ((-1, (0, 0, 255)), (-2, (255, 0, 0))):
        ((left, top, side),) = sheet_tiles(page.size, 1, row)
        of_colour = np.argwhere((pixels == colour).all(axis=2))
        assert of_colour.min(axis=0).tolist() == [top, left]
        assert of_colour.max(axis=0).tolist() == [top + side - 1, left + side - 1]
    for text, (left, top, right, bottom), (width, height) in words:
        assert min(left, top) >= 0, text
        assert right <= width, text
        assert bottom <= height, text


def test_letters_that_no_font_has_are_said_instead_of_drawn_as_boxes(words, monkeypatch):
    monkeypatch.setattr(fonts, "_FONTS", ())
    sheet("sks 猫", ["a photo of sks 猫"])
    texts = [text for text, _, _ in words]
    assert "sks ?" in texts
    assert "a photo of sks ?" in texts
    assert "? stands for 1 letter that no font here has" in " ".join(texts)
    assert "猫" not in "".join(texts)
    words.clear()
    sheet()
    assert not any("stands for" in text for text, _, _ in words)
