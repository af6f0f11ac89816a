"""Decode one picture file: what it is, whether it can be trusted, and its pixels as 8-bit RGB in sRGB.

    picture = read_picture(Path("cat/01.jpg"), Limits(resolution=512, min_side=16, max_side=2048))
    picture = read_picture(Path("cat/01.jpg"))  # at its own size

Whatever the bytes are, the answer is a `Picture` or `Refused` with a short reason. Everything in the package that
reads pictures does it here. Threads may decode at the same time.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from ..files.errors import InputError
from .colour import code_points, profile_of, to_srgb
from .formats import CONVERT, CONVERT_SUFFIXES, PILLOW_FORMATS, READABLE, reason_of, sniff

MAX_PIXELS = 2 * 89_478_485
"""About 179 megapixels, where pillow itself refuses: 60000x60000 pixels of one colour fit in a 4 MB file."""

MIN_SIDE = 16
EXTREME_RATIO = 3.0  # long side / short side; beyond it a crop shows a small part of the picture

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Words of pillow's reasons that tell of the kind of a file and not of damage.
_OF_KINDS = ("unknown pixel mode", "unknown data organization", "unsupported", "not available")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers; the three are tables and an extension
_JPEG_DECODED = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # baseline, extended and progressive, by Huffman or arithmetic codes
_ANIMATED = "used only the first frame of {n}"
_TRANSPARENT = "put the transparent parts of {n} on white"
_KEY = "ignored that one colour of {n} is see-through: it is given in 16 bits, of which 8 are read"
_BROKEN_EXIF = "ignored unreadable EXIF data in {n} (look whether they stand upright)"
_STRETCHED = "stretched the grey values of {n} from black to white, their range being unknown"
_EXTREME = "{n} more than " + f"{EXTREME_RATIO:g}" + " times as long as wide, of which a crop shows only a part"


def _too_small(resolution: int) -> str:
    return f"{{n}} with a side below {resolution} pixels will be enlarged and look soft"


def _remark_shape(size: tuple[int, int], limits: Limits) -> list[str]:
    remarks = [_too_small(limits.resolution)] if min(size) < limits.resolution else []
    return remarks + ([_EXTREME] if max(size) > EXTREME_RATIO * min(size) else [])


class Refused(Exception):
    """Why one file cannot be used, in a few words; the caller collects them and names the file."""


@dataclass(frozen=True)
class Limits:
    """Sizes in pixels, as explained at `folder.read_folder`."""

    resolution: int
    min_side: int
    max_side: int


ANY_SIZE = Limits(resolution=1, min_side=1, max_side=MAX_PIXELS)


@dataclass
class Picture:
    """A decoded file and what was remarkable about it."""

    image: Image.Image
    """RGB, 8 bit, sRGB, white where it was transparent; scaled down if it was much larger than needed."""
    original_size: tuple[int, int]
    """(height, width) of the picture in the file, upright if that was asked for."""
    remarks: list[str]
    """Sentences with a place `{n}` for how many pictures they are true of."""
    format: str
    """Pillow's name of the kind of file, such as "JPEG"."""


def read_picture(path: Path, limits: Limits = ANY_SIZE, upright: bool = True) -> Picture:
    """Decode one file.

    Args:
        path: the file; its content says what it is, not its name.
        limits: what is refused, remarked or scaled down; without them any size is taken as it is.
        upright: turn it as its EXIF orientation says.

    Raises:
        Refused: not a picture, of a kind to be converted first, truncated, too small, too large, unreadable.
    """
    with _opened(path) as (file, warned):
        return _decode(file, limits, upright, warned)


def check_picture(path: Path, limits: Limits = ANY_SIZE) -> None:
    """All that can be told without decoding: kind, size, whether the end of the file is there.

    Raises:
        Refused: as `read_picture`.
    """
    with _opened(path) as (file, _):
        _check_end(_open_header(file, limits), file, limits)


def open_picture(path: Path) -> Picture:
    """`read_picture` at its own size, for a file that the user named.

    Raises:
        InputError: there is no such file, or it cannot be used; with the reason.
    """
    if not path.exists():
        raise InputError(f"there is no image {path}; check the name")
    try:
        return read_picture(path)
    except Refused as reason:
        raise InputError(f"{path} cannot be read as an image ({reason}); give another file") from None


def read_png_text(path: Path, key: str) -> str | None:
    """A text chunk of a PNG file; None where there is none of that name.

    Raises:
        Refused: no complete PNG file.
    """
    with _opened(path) as (file, _):
        if sniff(file.read(64)) != "PNG":
            raise Refused("not a PNG file")
        file.seek(0)
        image = Image.open(file, formats=("PNG",))
        image.load()  # chunks may lie behind the pixels
        text = getattr(image, "text", {}).get(key)
        return None if text is None else str(text)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, list[str]]]:
    """The file, checked by its first bytes and at its beginning, and the warnings that pillow will give.

    Raises:
        Refused: for everything that goes wrong inside.
    """
    try:
        if path.stat().st_size == 0:
            raise Refused("empty, 0 bytes")
        with path.open("rb") as file, _strict_pillow() as warned:
            _check_kind(path, file.read(64))
            file.seek(0)
            yield file, warned
    except Refused:
        raise
    except FileNotFoundError as error:
        raise Refused("a link to a file that is not there") from error
    except MemoryError as error:
        raise Refused("too large for the memory of this machine") from error
    except Exception as error:
        # On arbitrary bytes decoders raise SyntaxError, struct.error, KeyError, ...: here all mean the same.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a bad seek
            raise Refused(reason_of(error)) from error
        raise Refused(_not_decoded(str(error)) or "truncated or damaged") from error


# Both switches below belong to the whole process: the first thread that decodes sets them, the last one puts them back.
_lock, _inside, _put_back = Lock(), 0, ExitStack()
_heard = local()  # .texts: the warnings of this thread's picture


@contextmanager
def _strict_pillow() -> Iterator[list[str]]:
    """Pillow without its warnings (their texts are recorded), and without patience for truncated files.

    Other libraries set LOAD_TRUNCATED_IMAGES for the whole process, which fills what is missing with grey.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _set_switches()
        _inside += 1
    texts: list[str] = []
    _heard.texts = texts
    try:
        yield texts
    finally:
        _heard.texts = None
        with _lock:
            _inside -= 1
            if _inside == 0:
                _put_back.close()


def _set_switches() -> None:
    _put_back.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    _put_back.enter_context(warnings.catch_warnings())
    warnings.simplefilter("always")
    pass_on = warnings.showwarning

    def hear(message: Warning | str, *place: Any, **more: Any) -> None:
        texts = getattr(_heard, "texts", None)
        if texts is None:  # of a thread that does something else
            pass_on(message, *place, **more)
        else:
            texts.append(str(message))

    warnings.showwarning = hear


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse by kind what pillow would not open, or open wrongly; the content decides, then the extension."""
    kind = sniff(head)
    if path.suffix.lower() in CONVERT_SUFFIXES and kind in ("", "TIFF"):
        kind = CONVERT_SUFFIXES[path.suffix.lower()]
    if kind in CONVERT or (kind == "AVIF" and not features.check("avif")):
        raise Refused(f"{kind}, which has to be converted to JPEG or PNG first")
    if kind and kind not in READABLE:
        raise Refused(f"not a picture but {kind}")


def _why_not(file: BinaryIO) -> str:
    """Why pillow knows no picture in a file, which may be whole and of a kind that it does not decode.

    Raises:
        Refused: a JPEG of such a kind.
    """
    file.seek(0)
    kind = sniff(file.read(64))
    if kind not in READABLE:
        return "named like a picture but none inside"
    file.seek(0)
    if kind == "JPEG":
        _check_jpeg(file.read())
        file.seek(0)
    try:
        Image.OPEN[kind.upper()][0](file, "")  # `Image.open` keeps the plugin's reason to itself
    except Exception as error:  # see `_opened`
        return _not_decoded(str(error)) or "truncated or damaged"
    return "truncated or damaged"


def _not_decoded(reason: str) -> str | None:
    """What a file is whose kind pillow does not decode, by its reason; None where the reason tells of damage."""
    if any(word in reason.lower() for word in _OF_KINDS) or reason.isdigit():  # a TIFF's compression is a number
        what = f"compression {reason}" if reason.isdigit() else reason
        return f"of a kind that cannot be decoded here ({what}), which has to be converted to PNG first"
    return None


def _decode(file: BinaryIO, limits: Limits, upright: bool, warned: list[str]) -> Picture:
    image = _open_header(file, limits)
    _check_end(image, file, limits)
    stored, kind = image.size, image.format or ""
    remarks = _remark_shape(stored, limits)
    if getattr(image, "is_animated", False) and kind != "MPO":  # MPO: a JPEG with previews behind it
        remarks.append(_ANIMATED)
    wanted = _shrunk(stored, limits)
    if wanted != stored:
        image.draft(None, (2 * wanted[0], 2 * wanted[1]))  # a JPEG decoder can leave out detail as it goes
    image.load()
    turn = _orientation(image) if upright else 1
    if turn is None or (upright and any("EXIF" in text for text in warned)):
        remarks.append(_BROKEN_EXIF)
    rgb = _to_rgb(image, wanted, code_points(file, kind), remarks)
    if turn in _TURN:
        rgb = rgb.transpose(_TURN[turn])
    rgb.info.clear()  # a profile or a text of the file is not true of what is made of it
    height, width = (stored[0], stored[1]) if (turn or 1) >= 5 else (stored[1], stored[0])
    return Picture(rgb, (height, width), remarks, kind)


def _check_end(image: Image.Image, file: BinaryIO, limits: Limits) -> None:
    """Refuse pictures with a part missing that pillow would fill with black or grey and hand out.

    Half a download, padded with zeros to its full length, is the usual case; the other is a TIFF whose header
    claims more rows than it has strips for.
    """
    place = file.tell()
    if image.format == "PNG":
        _open_header(file, limits).verify()  # checksums, which are not looked at when pixels are read
    elif image.format in ("JPEG", "MPO"):
        file.seek(0)
        data = file.read()
        _check_jpeg(data)
        if not _jpeg_ends(data):
            raise Refused("truncated or damaged")
    elif image.format == "TIFF":
        tiles = getattr(image, "tile", [])  # an attribute of files that pillow opened, not of images in general
        reach = [max(tile.extents[i] for tile in tiles if tile.extents) for i in (2, 3)]
        # Sorted: the tiles lie as stored, while the size may already be that of the upright picture.
        if any(reached < wanted for reached, wanted in zip(sorted(reach), sorted(image.size), strict=True)):
            raise Refused("truncated or damaged")
    file.seek(place)


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Where the segments of a JPEG begin, up to its first scan, which is the last of them."""
    at = 2
    while at < len(data) - 1:
        # A segment is 0xff, its kind, and a length that counts itself; libjpeg skips what is in between.
        segment = data[at] == 0xFF and data[at + 1] not in (0x00, 0xFF)
        if segment:
            yield at
        if data[at : at + 2] == b"\xff\xda":
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if segment else 1


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first scan; one before it belongs to the EXIF thumbnail."""
    scan = max(_jpeg_segments(data), default=len(data))
    return data[scan : scan + 2] == b"\xff\xda" and data.find(b"\xff\xd9", scan) >= 0


def _check_jpeg(data: bytes) -> None:
    """Refuse the kinds of JPEG that pillow does not decode: they are whole, and it calls them broken."""
    for at in _jpeg_segments(data):
        kind, bits = data[at + 1], data[at + 4] if at + 4 < len(data) else 8
        if kind == 0xF7 or (kind in _JPEG_FRAMES and kind not in _JPEG_DECODED):
            raise Refused("a lossless or hierarchical JPEG, which has to be converted to a usual one or PNG first")
        if kind in _JPEG_FRAMES and bits in (12, 16):
            raise Refused(f"a JPEG of {bits} bits a colour, which has to be converted to 8 bits or PNG first")


def _open_header(file: BinaryIO, limits: Limits) -> Image.Image:
    """Open without decoding, and refuse by size: nothing large has been allocated yet."""
    try:
        image = Image.open(file, formats=PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        raise Refused(_why_not(file)) from error
    except Image.DecompressionBombError as error:
        raise Refused(f"claims more than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down") from error
    width, height = image.size
    if width * height > MAX_PIXELS:  # pillow's own limit may have been lifted by somebody
        raise Refused(f"{width}x{height} pixels, more than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down")
    if min(width, height) < limits.min_side:
        raise Refused(f"{width}x{height} pixels, below the smallest side of {limits.min_side}")
    return image


def _shrunk(size: tuple[int, int], limits: Limits) -> tuple[int, int]:
    """The size to keep: long side at most max_side, unless the short one would fall below 2 * resolution."""
    scale = max(limits.max_side / max(size), 2 * limits.resolution / min(size))
    return size if scale >= 1 else (round(size[0] * scale), round(size[1] * scale))


def _orientation(image: Image.Image) -> int | None:
    """EXIF orientation 1 to 8 (1: upright, also when there is none); None when it cannot be read."""
    try:
        # Parsed once more: a JPEG's has been parsed for its dpi already, and after an error reads as empty.
        Image.Exif().load(image.info.get("exif", b""))
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF breaks its parser in many ways, and none of them harms the pixels
        return None
    if value == 0:  # "unknown", which scanners write
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else None


# Pixels


def _to_rgb(
    image: Image.Image, size: tuple[int, int], points: tuple[int, int] | None, remarks: list[str]
) -> Image.Image:
    """Any pillow mode -> RGB of `size`, 8 bit, sRGB; transparency is laid on white. points: of `code_points`."""
    profile, kind = profile_of(image, points, remarks), image.format
    key = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        image = _grey_to_8_bit(values, remarks)
        if isinstance(key, int):  # the one grey that such a PNG declares see-through
            image = Image.merge("LA", (image, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
    elif isinstance(key, tuple) and max(key) > 255:  # of 16 bits a colour, of which pillow reads the higher 8
        del image.info["transparency"]
        remarks.append(_KEY)
    # "transparency" is the one colour, or the palette entries, that a GIF or PNG declares see-through.
    clear = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    clear = clear or (image.mode == "P" and _palette_has_alpha(image))
    image = to_srgb(image, profile, "RGBA" if clear else "RGB", remarks)
    if image.size != size:
        # Pillow weighs colours by their alpha here, so what hides under transparency does not bleed out.
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _on_white(image, kind or "", remarks) if image.mode == "RGBA" else image


def _palette_has_alpha(image: Image.Image) -> bool:
    return image.palette is not None and image.palette.mode.endswith("A")


def _on_white(image: Image.Image, kind: str, remarks: list[str]) -> Image.Image:
    """RGBA -> RGB: colour * a + white * (1 - a)."""
    least, most = image.getchannel("A").getextrema()
    if most == 0 and kind == "BMP":  # Windows leaves the fourth byte at zero, and means an opaque picture
        return image.convert("RGB")
    if most == 0:
        raise Refused("transparent everywhere, nothing to see")
    if least == 255:
        return image.convert("RGB")
    remarks.append(_TRANSPARENT)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey_to_8_bit(values: np.ndarray, remarks: list[str]) -> Image.Image:
    """Grey values of more than 8 bits [height, width] -> mode L; pillow's own conversion clips at 255.

    The full range of the kind becomes 0..255. Where it is not known (float or 32-bit numbers that are neither
    0..1 nor 8- nor 16-bit counts), the darkest pixel becomes black and the brightest white, with a remark.
    """
    wide = values.astype(np.float32)
    if not np.isfinite(wide).all():
        raise Refused("has pixels that are NaN or infinite")
    low, white = 0.0, _white_level(values)
    if white is None:
        remarks.append(_STRETCHED)
        wide = wide.astype(np.float64)  # max - min of float32 may overflow float32
        low, white = float(wide.min()), float(wide.max())
    wide -= low  # in place: a large scan is as large as its memory allows
    wide *= 255 / ((white - low) or 1)
    return Image.fromarray(np.rint(wide, out=wide).astype(np.uint8))


def _white_level(values: np.ndarray) -> float | None:
    """The number that stands for white, or None when the kind of number and the values do not tell."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return 65535.0
    low, high = float(values.min()), float(values.max())
    if low < 0:
        return None
    if values.dtype.kind == "f":
        if high <= 1:
            return 1.0
        if not (values == np.rint(values)).all():
            return None
    return next((level for level in (255.0, 65535.0) if high <= level), None)
