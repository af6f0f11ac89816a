"""Decode one picture file: what it is, whether it can be trusted, and its pixels as upright 8-bit RGB.

    picture = read_picture(Path("cat/01.jpg"), Limits(resolution=512, min_side=16, max_side=2048))

Whatever the bytes are, the answer is a `Picture` or `Refused` with a short reason.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

MAX_PIXELS = 2 * 89_478_485
"""About 179 megapixels, where pillow itself refuses: 60000x60000 pixels of one colour fit in a 4 MB file."""

MIN_SIDE = 16
EXTREME_RATIO = 3.0  # long side / short side; beyond it a crop shows a small part of the picture

# One plugin for each kind of picture that people have. Not "all": pillow's EPS plugin would run Ghostscript.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
READABLE = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF")
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (*_JPEG_SUFFIXES, ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
_CONVERT = ("HEIC", "JPEG XL", "JPEG 2000", "Photoshop", "camera raw", "SVG")
_CONVERT_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".psd", ".psb"), "Photoshop"),
    # These look like TIFF inside, and would be read as the thumbnail that the camera put in front.
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"), "camera raw"),
    ".jxl": "JPEG XL",
    ".svg": "SVG",
}
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"%PDF", "a PDF document"),
)
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_ANIMATED = "used only the first frame of {n}"
_TRANSPARENT = "put the transparent parts of {n} on white"
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
    """Sizes in pixels, as explained at `images.read_folder`."""

    resolution: int
    min_side: int
    max_side: int


@dataclass
class Picture:
    """A decoded file and what was remarkable about it."""

    image: Image.Image
    """RGB, 8 bit, upright; scaled down if it was much larger than needed."""
    original_size: tuple[int, int]
    """(height, width) of the upright picture in the file."""
    remarks: list[str]
    """Sentences with a place `{n}` for how many pictures they are true of."""


def read_picture(path: Path, limits: Limits) -> Picture:
    """Decode one file.

    Raises:
        Refused: not a picture, of a kind to be converted first, truncated, too small, too large, unreadable.
    """
    try:
        if path.stat().st_size == 0:
            raise Refused("empty, 0 bytes")
        with path.open("rb") as file, _strict_pillow() as caught:
            _check_kind(path, file.read(64))
            return _decode(file, limits, caught)
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
        raise Refused("truncated or damaged") from error


@contextmanager
def _strict_pillow() -> Iterator[list[warnings.WarningMessage]]:
    """Pillow without its warnings (they are recorded), and without patience for truncated files.

    Other libraries set LOAD_TRUNCATED_IMAGES for the whole process, which fills what is missing with grey.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse by kind what pillow would not open, or open wrongly; the content decides, then the extension."""
    kind = sniff(head)
    if path.suffix.lower() in _CONVERT_SUFFIXES and kind in ("", "TIFF"):
        kind = _CONVERT_SUFFIXES[path.suffix.lower()]
    if kind in _CONVERT or (kind == "AVIF" and not features.check("avif")):
        raise Refused(f"{kind}, which has to be converted to JPEG or PNG first")
    if kind and kind not in READABLE:
        raise Refused(f"not a picture but {kind}")


def _decode(file: BinaryIO, limits: Limits, caught: list[warnings.WarningMessage]) -> Picture:
    image = _open_header(file, limits)
    _check_end(image, file, limits)
    stored = image.size
    remarks = _remark_shape(stored, limits)
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a JPEG with previews behind it
        remarks.append(_ANIMATED)
    wanted = _shrunk(stored, limits)
    image.draft(None, (2 * wanted[0], 2 * wanted[1]))  # a JPEG decoder can leave out detail as it goes
    image.load()
    turn = _orientation(image)
    if turn is None or any("EXIF" in str(warning.message) for warning in caught):
        remarks.append(_BROKEN_EXIF)
    rgb = _to_rgb(image, wanted, remarks)
    if turn in _TURN:
        rgb = rgb.transpose(_TURN[turn])
    height, width = (stored[0], stored[1]) if (turn or 1) >= 5 else (stored[1], stored[0])
    return Picture(rgb, (height, width), remarks)


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
        if not _jpeg_ends(file.read()):
            raise Refused("truncated or damaged")
    elif image.format == "TIFF":
        tiles = getattr(image, "tile", [])  # an attribute of files that pillow opened, not of images in general
        reach = [max(tile.extents[i] for tile in tiles if tile.extents) for i in (2, 3)]
        # Sorted: the tiles lie as stored, while the size may already be that of the upright picture.
        if any(there < wanted for there, wanted in zip(sorted(reach), sorted(image.size), strict=True)):
            raise Refused("truncated or damaged")
    file.seek(place)


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first scan; one before it belongs to the EXIF thumbnail."""
    at = 2
    while at < len(data) - 1 and data[at : at + 2] != b"\xff\xda":
        # A segment is 0xff, its kind, and a length that counts itself; libjpeg skips what is in between.
        segment = data[at] == 0xFF and data[at + 1] not in (0x00, 0xFF)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if segment else 1
    return data.find(b"\xff\xd9", at) >= 0


def _open_header(file: BinaryIO, limits: Limits) -> Image.Image:
    """Open without decoding, and refuse by size: nothing large has been allocated yet."""
    try:
        image = Image.open(file, formats=_PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        known = sniff(file.read(64)) in READABLE
        raise Refused("truncated or damaged" if known else "named like a picture but none inside") from error
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


def _to_rgb(image: Image.Image, size: tuple[int, int], remarks: list[str]) -> Image.Image:
    """Any pillow mode -> RGB of `size`, 8 bit; transparency is laid on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey_to_8_bit(np.asarray(image), remarks)
    # "transparency" is the one colour, or the palette entries, that a GIF or PNG declares see-through.
    clear = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    image = image.convert("RGBA" if clear or (image.mode == "P" and _palette_has_alpha(image)) else "RGB")
    if image.size != size:
        # Pillow weighs colours by their alpha here, so what hides under transparency does not bleed out.
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _on_white(image, remarks) if image.mode == "RGBA" else image


def _palette_has_alpha(image: Image.Image) -> bool:
    return image.palette is not None and image.palette.mode.endswith("A")


def _on_white(image: Image.Image, remarks: list[str]) -> Image.Image:
    """RGBA -> RGB: colour * a + white * (1 - a)."""
    least, most = image.getchannel("A").getextrema()
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


def meant_as_image(path: Path) -> bool:
    """By its extension or by its first bytes; whether it can be read is another question."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in _CONVERT_SUFFIXES:
        return True
    return sniff(read_head(path)) in (*READABLE, *_CONVERT)


def read_head(path: Path) -> bytes:
    """The first 64 bytes, or b"" where they cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def sniff(head: bytes) -> str:
    """What the first 64 bytes say that a file is: a name in `READABLE` or `_CONVERT`, other words, or ""."""
    for magic, name in _SIGNATURES:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    # "BM" alone would make a bitmap of a text that begins with it: look at the zeros behind it as well.
    if head[:2] == b"BM" and head[6:10] == bytes(4) and head[15:18] == bytes(3):
        return "BMP"
    if head[4:8] == b"ftyp":
        return _sniff_brands(head)
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "a web page"
    return ""


def _sniff_brands(head: bytes) -> str:
    """AVIF, HEIC and video share one container and differ in the brands that it lists."""
    brands = [head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    heic = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
    return "HEIC" if heic.intersection(brands) else "a video"


def reason_of(error: OSError) -> str:
    """What the operating system says, without the path: "permission denied"."""
    return (error.strerror or "it cannot be opened").lower()
