"""Fonts for letters that the built-in one lacks."""

import pytest
from PIL import ImageFont

from dash_vision.drawing import fonts as drawing_fonts


@pytest.mark.parametrize(
    ("installed", "chosen"), [("none", None), ("few", "few"), ("few all", "all"), ("all few", "all")]
)
def test_letters_that_pillow_s_font_lacks_come_from_the_font_that_has_most_of_them(monkeypatch, installed, chosen):
    own = ImageFont.load_default(17)
    box = bytes(own.getmask("\uffff"))
    assert bytes(own.getmask("é")) == bytes(own.getmask("猫")) == box  # else there is nothing to be mended

    class Installed:
        def __init__(self, letters):
            self.letters = letters

        def getmask(self, letter):
            return f"glyph {letter}".encode() if letter in self.letters else b"box"

    fonts = {"few": Installed("é"), "all": Installed("é猫 b")}

    original = ImageFont.truetype

    def truetype(font, size, **options):
        if not isinstance(font, str):  # Pillow's own
            return original(font, size, **options)
        if font not in fonts:
            raise OSError("cannot open resource")
        return fonts[font]

    monkeypatch.setattr(drawing_fonts, "_FONTS", ("missing", *installed.split()))
    monkeypatch.setattr(ImageFont, "truetype", truetype)
    found = drawing_fonts.font_for("é 猫", 17)
    assert found is fonts[chosen] if chosen else isinstance(found, ImageFont.FreeTypeFont)
    assert isinstance(drawing_fonts.font_for("cat b", 17), ImageFont.FreeTypeFont)  # Pillow's own, where it will do


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(drawing_fonts, "_FONTS", ())


def test_letters_that_no_font_has_are_replaced_and_counted(no_system_fonts):
    text = "a photo of sks 猫 and 猫, 犬"
    font = drawing_fonts.font_for(text, 13)
    assert drawing_fonts.lacking(text, font) == ["猫", "犬"]
    assert drawing_fonts.legible(text, font) == "a photo of sks ? and ?, ?"
    assert "2 letters that no font here has" in drawing_fonts.about_lacking(text, font)
    assert " ".join(drawing_fonts.wrapped(text, font, 90)) == "a photo of sks ? and ?, ?"
    plain = "a photo of sks cat?"
    assert drawing_fonts.legible(plain, font) == plain
    assert drawing_fonts.about_lacking(plain, font) == ""
