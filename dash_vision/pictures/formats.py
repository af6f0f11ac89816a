"""Which files are pictures: the kinds that are read, the suffixes and first bytes that they are known by."""

from __future__ import annotations

from pathlib import Path

# One plugin for each kind of picture that people have. Not "all": pillow's EPS plugin would run Ghostscript.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM")
READABLE = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF", "PPM")
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_PPM_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm")
SUFFIXES = (*_JPEG_SUFFIXES, ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", *_PPM_SUFFIXES)
CONVERT = ("HEIC", "JPEG XL", "JPEG 2000", "Photoshop", "camera raw", "SVG")
CONVERT_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".psd", ".psb"), "Photoshop"),
    # These look like TIFF inside, and would be read as the thumbnail that the camera put in front.
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"), "camera raw"),
    ".jxl": "JPEG XL",
    ".svg": "SVG",
}
_LEFT_BEHIND = ("~", ".bak", ".orig", ".old", ".tmp", ".part", ".crdownload")
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    # Without the line feed a text that begins with "P5 " would be a picture.
    (b"P4\n", "PPM"),
    (b"P5\n", "PPM"),
    (b"P6\n", "PPM"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"%PDF", "a PDF document"),
)


def meant_as_picture(path: Path) -> bool:
    """By its extension or by its first bytes; whether it can be read is another question."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in CONVERT_SUFFIXES:
        return True
    return sniff(read_head(path)) in (*READABLE, *CONVERT)


def is_hidden(name: str) -> bool:
    """.ipynb_checkpoints, .DS_Store, and the ._01.jpg of a Mac, which is no picture whatever its name says; and what
    editors and downloads leave beside a picture, which may hold one."""
    return name.startswith(".") or name == "__MACOSX" or name.lower().endswith(_LEFT_BEHIND)


def read_head(path: Path) -> bytes:
    """The first 64 bytes, or b"" where they cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def sniff(head: bytes) -> str:
    """What the first 64 bytes say that a file is: a name in `READABLE` or `CONVERT`, other words, or ""."""
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
