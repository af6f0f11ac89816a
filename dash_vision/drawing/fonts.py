"""A font that has the letters of a text, and text broken into lines."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import ImageFont

# Where Pillow's own font, which has little more than ASCII, lacks a letter: fonts of Linux, Windows and macOS.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "Helvetica.ttc",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "meiryo.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> Font:
    """Pillow's own font or, for text that it lacks letters of, the first of the system's that has all; its own where
    there is none."""
    own = ImageFont.load_default(size)
    if text.isascii() or not isinstance(own, ImageFont.FreeTypeFont):
        return own
    letters = {c for c in text if c.isprintable() and not c.isspace()}
    for font in (own, *_system_fonts(size)):
        nothing = bytes(font.getmask("\uffff"))  # what is drawn in place of a letter that is not there
        if all(bytes(font.getmask(c)) != nothing for c in letters):
            return font
    return own


def _system_fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    for name in _FONTS:
        try:
            yield ImageFont.truetype(name, size)
        except OSError:
            continue


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words, and within a word that is wider."""
    lines: list[str] = []
    for word in text.split():
        candidate = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(candidate) <= width:
            lines[-1] = candidate
        else:
            while font.getlength(word) > width and len(word) > 1:
                fits = next(n for n in range(len(word) - 1, 0, -1) if font.getlength(word[:n]) <= width or n == 1)
                lines.append(word[:fits])
                word = word[fits:]
            lines.append(word)
    return lines or [""]
