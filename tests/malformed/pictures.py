"""Pictures and captions."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.malformed.cases import EIGHTHS, Case
from tests.malformed.files import Bomb
from tests.support.pictures import save_pictures

FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}


def noise(width: int = 40, height: int = 32, mode: str = "RGB") -> Image.Image:
    """A picture that does not compress to nothing."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels to show for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def bad_pictures() -> Iterator[tuple[str, str, bytes]]:
    """(what is wrong, file name, bytes) of pictures that nobody can use."""
    for suffix, format in FORMATS.items():
        data = encoded(noise(), format)
        for eighth in EIGHTHS:
            yield f"{format} cut at {eighth}/8", f"a.{suffix}", data[: len(data) * eighth // 8]
    whole = encoded(noise(), "PNG")
    for at in range(8):
        place = 20 + at * (len(whole) - 40) // 8
        changed = bytes([whole[place] ^ 255])
        yield f"PNG with byte {at} of 8 flipped", "a.png", whole[:place] + changed + whole[place + 1 :]
    yield "a web page", "a.jpg", b"<!doctype html><title>404</title>"
    yield "text", "a.png", b"this is no picture"
    yield "a pickle", "a.png", pickle.dumps(Bomb("a.png"))
    yield "an archive", "a.webp", b"PK\x03\x04" + bytes(200)
    yield "a PDF", "a.jpg", b"%PDF-1.7\n" + bytes(100)
    yield "EPS, which is a program", "a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(x) print\n"
    yield "zeros", "a.bmp", bytes(5000)
    yield "PNG bomb", "a.png", png_header(60_000, 60_000)
    yield "PNG of 0 x 0", "a.png", png_header(0, 0)
    gif = encoded(noise(), "GIF")
    yield "GIF bomb", "a.gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]
    bmp = encoded(noise(), "BMP")
    yield "BMP bomb", "a.bmp", bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:]
    yield "1 x 1", "a.png", encoded(noise(1, 1), "PNG")
    yield "20000 x 10", "a.png", encoded(Image.new("RGB", (20_000, 10)), "PNG")
    yield "not a number", "a.tif", encoded(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF")
    yield "nothing but transparent", "a.png", encoded(Image.new("RGBA", (32, 32)), "PNG")


def odd_pictures() -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of unusual pictures that can be used."""
    frames = [noise().rotate(90 * n) for n in range(1, 4)]
    deep = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    # EXIF whose orientation is a double that is not a number.
    entry = struct.pack("<HHIII", 0x112, 12, 1, 26, 0) + struct.pack("<d", np.nan)
    yield "cmyk.jpg", encoded(noise(mode="CMYK"), "JPEG")
    yield "16-bit.png", encoded(Image.fromarray(deep), "PNG")
    yield "palette.png", encoded(noise(mode="P"), "PNG", transparency=bytes(range(256)))
    yield "animated.gif", encoded(noise(), "GIF", save_all=True, append_images=frames)
    yield "wrong name.jpg", encoded(noise(), "PNG")
    yield "garbage exif.jpg", encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(range(200)))
    yield "nan exif.jpg", encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry)
    yield "grey.png", encoded(noise(mode="L"), "PNG")
    yield "bilevel.tif", encoded(noise(mode="1"), "TIFF")


def dreambooth(data: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("--instance_data", str(data), "--output_dir", str(out), "--instance_prompt", "a photo of sks cat", *more)


def images(root: Path) -> Iterator[Case]:
    def case(what: str, folder: Path, named: str) -> Case:
        return Case("image", what, "dreambooth", dreambooth(folder, root / "out"), named)

    for number, (what, name, data) in enumerate(bad_pictures()):
        folder = save_pictures(root / str(number), count=1)
        (folder / name).write_bytes(data)
        yield case(what, folder, name)
    folder = save_pictures(root / "link", count=1)
    (folder / "a.jpg").symlink_to("nowhere")
    yield case("a dead link", folder, "a.jpg")
    for name in ("folder", "pipe", "strange"):
        (root / name).mkdir(parents=True)
    (root / "folder" / "a.jpg").mkdir()
    yield case("a folder named like a picture", root / "folder", "a.jpg")
    os.mkfifo(root / "pipe" / "a.jpg")
    yield case("a pipe named like a picture", root / "pipe", "a.jpg")
    (root / "strange" / "a\n\x1b[31m.jpg").write_bytes(b"\xff\xd8\xff")
    yield case("line feed and escape in the name", root / "strange", ".jpg")
    yield case("no folder", root / "none", "none")
    yield case("zero byte in the path", Path("a\0b"), "a\N{REPLACEMENT CHARACTER}b")


SIDECARS = {
    "latin-1": "caf\xe9".encode("latin-1"),
    "UTF-16": "a cat".encode("utf-16"),
    "UTF-16 without a mark": "a cat".encode("utf-16-le"),
    "zero bytes": b"a\0cat",
    "2,001 characters": b"x" * 2001,
    "a megabyte": b"a cat " * 170_000,
    "lone continuation byte": b"a \x80 cat",
    "half a surrogate": b"\xed\xa0\x80",
}


RECORD = json.dumps({"file_name": "0.png", "text": "a cat on a mat"})
LINES = {
    "a list": "[1, 2]",
    "a number": "7",
    "not JSON": "0.png: a cat",
    "no file_name": '{"text": "a cat"}',
    "file_name is a number": '{"file_name": 7, "text": "a cat"}',
    "no text": '{"file_name": "0.png", "caption": "a cat"}',
    "text is a number": '{"file_name": "0.png", "text": 7}',
    "text is a list": '{"file_name": "0.png", "text": ["a cat"]}',
    "half a surrogate": '{"file_name": "0.png", "text": "\\ud800"}',
    "climbs out": '{"file_name": "../0.png", "text": "a cat"}',
    "absolute path": '{"file_name": "/etc/passwd", "text": "a cat"}',
    "Windows path": '{"file_name": "C:\\\\0.png", "text": "a cat"}',
    "no such picture": '{"file_name": "7.png", "text": "a cat"}',
    "the same picture twice": RECORD + "\n" + RECORD,
    "ten thousand brackets": "[" * 10_000,
    "ten thousand braces": '{"a":' * 10_000,
    "5,000 digits": '{"file_name": ' + "9" * 5000 + "}",
    "a very long text": json.dumps({"file_name": "0.png", "text": "x" * 5000}),
    "an escape sequence as name": '{"file_name": "\\u001b[31m\\n", "text": "a"}',
}


def captions(root: Path) -> Iterator[Case]:
    def case(what: str, name: str, data: bytes) -> Case:
        folder = save_pictures(root / str(len(list(root.glob("*")))), count=1)
        (folder / name).write_bytes(data)
        return Case("caption", what, "dreambooth", dreambooth(folder, root / "out"), name)

    for what, data in SIDECARS.items():
        yield case(what, "0.txt", data)
    for what, line in LINES.items():
        yield case(what, "metadata.jsonl", line.encode())
    for eighth in range(1, 8):
        yield case(f"metadata cut at {eighth}/8", "metadata.jsonl", RECORD[: len(RECORD) * eighth // 8].encode())
    yield case("metadata in latin-1", "metadata.jsonl", '{"file_name": "0.png", "text": "caf\xe9"}'.encode("latin-1"))
    folder = save_pictures(root / "two", count=1)
    (folder / "0.txt").write_text("a cat")
    (folder / "metadata.jsonl").write_text(RECORD)
    yield Case("caption", "two for one picture", "dreambooth", dreambooth(folder, root / "out"), "0.txt")
