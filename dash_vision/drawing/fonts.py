"""A font that has the letters of a text, text broken into lines, and what is done about letters that no font has."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import ImageFont

# Where Pillow's own font, which has little more than ASCII, lacks a letter: fonts of Linux, Windows and macOS. Those
# from NotoSansCJK on have Chinese, Japanese or Korean letters.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "Helvetica.ttc",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansCJKjp-Regular.otf",
    "NotoSansSC-Regular.otf",
    "NotoSansJP-Regular.otf",
    "NotoSansKR-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "uming.ttc",
    "ipagp.ttf",
    "ipag.ttf",
    "TakaoPGothic.ttf",
    "VL-PGothic-Regular.ttf",
    "NanumGothic.ttf",
    "msyh.ttc",
    "simsun.ttc",
    "malgun.ttf",
    "meiryo.ttc",
    "msgothic.ttc",
    "YuGothM.ttc",
    "PingFang.ttc",
    "STHeiti Light.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "Arial Unicode MS.ttf",
)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_STAND_IN = "?"  # for a letter that no font has


def font_for(text: str, size: int) -> Font:
    """Pillow's own font or, for text that it lacks letters of, the first of the system's that has all; where there is
    none, the one that lacks the fewest."""
    own = ImageFont.load_default(size)
    if text.isascii() or not isinstance(own, ImageFont.FreeTypeFont):
        return own
    best, fewest = own, len(lacking(text, own))
    for font in _system_fonts(size) if fewest else ():
        lacks = len(lacking(text, font))
        if lacks < fewest:
            best, fewest = font, lacks
        if not lacks:
            break
    return best


def lacking(text: str, font: Font) -> list[str]:
    """The different letters of a text that a font does not have, in the text's order."""
    letters = dict.fromkeys(c for c in text if c.isprintable() and not c.isspace() and not c.isascii())
    if not letters or isinstance(font, ImageFont.ImageFont):  # Pillow's font of pixels has ASCII alone
        return list(letters)
    nothing = bytes(font.getmask("\uffff"))  # what is drawn in place of a letter that is not there
    return [c for c in letters if bytes(font.getmask(c)) == nothing]


def legible(text: str, font: Font) -> str:
    """The text with a question mark in place of every letter that the font lacks: no empty boxes."""
    gone = set(lacking(text, font))
    return "".join(_STAND_IN if c in gone else c for c in text) if gone else text


def about_lacking(text: str, font: Font) -> str:
    """A sentence about the letters of a text that are replaced; "" where all are there."""
    count = len(lacking(text, font))
    if not count:
        return ""
    letters = "1 letter" if count == 1 else f"{count} letters"
    font_with = "a font with it" if count == 1 else "a font with them"
    return f"{_STAND_IN} stands for {letters} that no font here has; install {font_with}, such as Noto Sans CJK."


def _system_fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    for name in _FONTS:
        try:
            yield ImageFont.truetype(name, size)
        except OSError:
            continue


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words, and within a word that is wider. Letters that
    the font lacks are replaced as by `legible`."""
    lines: list[str] = []
    for word in legible(text, font).split():
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
