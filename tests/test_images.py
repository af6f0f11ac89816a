"""Pictures and captions as people have them: each is read rightly, skipped and said, or refused by name."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, features

from dash_vision.files.errors import InputError
from dash_vision.pictures.captions import read_metadata, read_sidecar
from dash_vision.pictures.crops import make_buckets, nearest_bucket, to_tensor, variants
from dash_vision.pictures.folder import InstanceSet, read_folder

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this pillow cannot read AVIF")
CAPTION = "a clay cat on a mat"


def photo(width: int = 48, height: int = 32) -> np.ndarray:
    """uint8 [height, width, 3]: smooth, without symmetry, every corner of another colour."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 255 - 127 * (x / width + y / height)], 2).astype("uint8")


def noise(width: int = 64, height: int = 48) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def encoded(pixels: np.ndarray, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def read(folder: Path, **options: object) -> InstanceSet:
    return read_folder(folder, **{"resolution": 16, **options})


def read_one(folder: Path, **options: object) -> np.ndarray:
    pictures = read(folder, **options)
    assert len(pictures) == 1
    assert pictures.images[0].image.mode == "RGB"
    return np.asarray(pictures.images[0].image)


def note(pictures: InstanceSet, word: str) -> str:
    """The one note that has `word` in it."""
    (found,) = [text for text in pictures.notes if word in text]
    return found


def refusal(folder: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_folder(folder, **{"resolution": 16, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do
    return message


# Formats


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.tif", {"compression": "tiff_adobe_deflate"}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_pixels_back(tmp_path, name, options):
    save(tmp_path / name, photo(), **options)
    pictures = read(tmp_path)
    assert np.array_equal(np.asarray(pictures.images[0].image), photo())
    assert pictures.notes == ()
    assert pictures.images[0].original_size == (32, 48)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95}),
        ("a.JPEG", {"quality": 95, "progressive": True}),
        ("a.webp", {"quality": 95}),
        ("a.gif", {}),
        pytest.param("a.avif", {"quality": 95}, marks=needs_avif),
    ],
)
def test_lossy_formats_come_close(tmp_path, name, options):
    save(tmp_path / name, photo(), **options)
    assert np.abs(read_one(tmp_path).astype(int) - photo()).mean() < 6


def test_the_content_decides_not_the_extension(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "PNG"))
    (tmp_path / "b.png").write_bytes(encoded(photo(), "WEBP", lossless=True))
    (tmp_path / "no_extension").write_bytes(encoded(photo(), "BMP"))
    (tmp_path / "was.heic").write_bytes(encoded(photo(), "PNG"))
    pictures = read(tmp_path)
    assert [i.path.name for i in pictures.images] == ["a.jpg", "b.png", "no_extension", "was.heic"]
    assert all(np.array_equal(np.asarray(i.image), photo()) for i in pictures.images)


def test_one_picture_file_is_a_set_of_one(tmp_path):
    path = save(tmp_path / "cat.png", photo())
    save(tmp_path / "other.png", photo())
    (tmp_path / "cat.txt").write_text(CAPTION)
    pictures = read(path)
    assert [(i.path.name, i.caption) for i in pictures.images] == [("cat.png", CAPTION)]


def test_a_link_to_a_picture_is_a_picture(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").symlink_to(save(tmp_path / "real.png", photo()))
    assert np.array_equal(read_one(folder), photo())


def test_names_sort_as_people_count(tmp_path):
    for name in ("cat10.png", "cat2.png", "Cat1.png", "cat02.png", "10.png", "9.png"):
        save(tmp_path / name, photo(16, 16))
    names = [i.path.name for i in read(tmp_path).images]
    assert names == ["9.png", "10.png", "Cat1.png", "cat02.png", "cat2.png", "cat10.png"]


# EXIF

# What a viewer shows of the stored pixels a, from the EXIF standard's table of rows and columns.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.jpg"])
def test_exif_orientation(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 98, "subsampling": 0}}.get(name, {})
    save(tmp_path / name, photo(), exif=exif, **options)
    pictures = read(tmp_path)
    wanted = UPRIGHT[orientation](photo())
    got = np.asarray(pictures.images[0].image)
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).max() <= (6 if name == "a.jpg" else 0)
    assert pictures.images[0].original_size == wanted.shape[:2]
    assert pictures.notes == ()


@needs_avif
def test_exif_orientation_in_avif(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    save(tmp_path / "a.avif", photo(), exif=exif, quality=98)
    assert np.abs(read_one(tmp_path).astype(int) - UPRIGHT[6](photo())).mean() < 3


@pytest.mark.parametrize("large", [False, True])
def test_compressed_and_large_tiff_are_turned_once(tmp_path, large):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = photo(600, 400) if large else photo()
    save(tmp_path / "a.tif", pixels, exif=exif, compression="tiff_lzw")
    pictures = read(tmp_path)
    assert pictures.images[0].original_size == (pixels.shape[1], pixels.shape[0])
    got = np.asarray(pictures.images[0].image)
    wanted = np.asarray(Image.fromarray(UPRIGHT[6](pixels)).resize(got.shape[1::-1], Image.Resampling.LANCZOS))
    assert got.shape[0] == (64 if large else 48)  # max_side is 4 * 16 here
    assert np.abs(got.astype(int) - wanted).max() <= 2


def tiff_block(entries: bytes) -> bytes:
    return b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + entries


ORIENTATION_AS_TEXT = struct.pack("<HHHI", 1, 0x0112, 2, 2) + b"6\0\0\0" + bytes(4)
ORIENTATION_NAN = struct.pack("<HHHII", 1, 0x0112, 5, 1, 26) + bytes(4) + struct.pack("<II", 0, 0)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        tiff_block(struct.pack("<H", 900) + b"\xff" * 40),  # claims 900 entries
        tiff_block(ORIENTATION_AS_TEXT),
        tiff_block(ORIENTATION_NAN),  # 0/0
        tiff_block(struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 77, 0, 0)),
    ],
)
def test_broken_exif_is_ignored_and_said(tmp_path, exif):
    save(tmp_path / "a.jpg", photo(), exif=exif, quality=95)
    pictures = read(tmp_path)
    assert pictures.images[0].image.size == (48, 32)
    assert "a.jpg" in note(pictures, "EXIF")


def test_nan_elsewhere_in_exif_does_not_matter(tmp_path):
    upside_down = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0)
    resolution = struct.pack("<HHII", 0x011A, 5, 1, 200)  # at byte 200: 0/0
    exif = tiff_block(struct.pack("<H", 2) + upside_down + resolution).ljust(220, b"\0")
    save(tmp_path / "a.png", photo(), exif=exif)
    pictures = read(tmp_path)
    assert np.array_equal(np.asarray(pictures.images[0].image), UPRIGHT[3](photo()))
    assert pictures.notes == ()


# Modes


def on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(float) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def see_through() -> np.ndarray:
    alpha = np.linspace(0, 255, 48).astype("uint8")[None, :, None].repeat(32, 0)
    return np.concatenate([photo(), alpha], 2)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparency_is_laid_on_white(tmp_path, name):
    save(tmp_path / name, see_through(), **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    pictures = read(tmp_path)
    assert np.abs(np.asarray(pictures.images[0].image) - on_white(see_through())).max() <= 1
    assert name in note(pictures, "white")


def test_grey_with_alpha(tmp_path):
    rgba = see_through()
    rgba[..., :3] = rgba[..., :1]
    save(tmp_path / "a.png", np.ascontiguousarray(rgba[..., [0, 3]]))
    assert Image.open(tmp_path / "a.png").mode == "LA"
    assert np.abs(read_one(tmp_path) - on_white(rgba)).max() <= 1


def test_an_opaque_alpha_channel_is_no_news(tmp_path):
    rgba = see_through()
    rgba[..., 3] = 255
    save(tmp_path / "a.png", rgba)
    pictures = read(tmp_path)
    assert pictures.notes == ()
    assert np.array_equal(np.asarray(pictures.images[0].image), photo())


def test_what_hides_under_transparency_does_not_bleed_when_scaled_down(tmp_path):
    rgba = np.zeros((400, 400, 4), dtype=np.uint8)  # transparent black
    rgba[:, 200:] = (255, 255, 255, 255)  # solid white: on white there is nothing but white
    save(tmp_path / "a.png", rgba)
    pixels = read_one(tmp_path)
    assert pixels.shape == (64, 64, 3)
    assert pixels.min() >= 254


def test_invisible_pictures_are_refused(tmp_path):
    save(tmp_path / "ghost.png", np.zeros((32, 32, 4), dtype=np.uint8))
    assert "ghost.png (transparent everywhere" in refusal(tmp_path)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([255, 0, 0, 0, 0, 200, 0, 255, 0])
    image.paste(0, (0, 0, 10, 20))
    image.save(tmp_path / "one.png", transparency=0)
    image.save(tmp_path / "one.gif", transparency=0)
    image.save(tmp_path / "table.png", transparency=bytes([51, 255, 255]))  # red at 20 %
    by_name = {i.path.name: np.asarray(i.image) for i in read(tmp_path).images}
    for pixels in by_name.values():
        assert np.array_equal(pixels[:, 10:], np.full((20, 10, 3), (0, 0, 200)))
    assert (by_name["one.png"][:, :10] == 255).all()
    assert (by_name["one.gif"][:, :10] == 255).all()
    assert np.abs(by_name["table.png"][0, 0].astype(int) - (255, 204, 204)).max() <= 1


def test_one_see_through_colour_of_a_true_colour_png(tmp_path):
    pixels = photo()
    pixels[:8, :8] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 2, 3))
    got = read_one(tmp_path)
    assert (got[:8, :8] == 255).all()
    assert np.array_equal(got[8:], pixels[8:])


@pytest.mark.parametrize(("name", "tolerance"), [("a.tif", 1), ("a.jpg", 6)])  # the JPEG is Adobe's, stored inverted
def test_cmyk(tmp_path, name, tolerance):
    cmyk = np.concatenate([photo(), photo()[..., :1] // 2], 2)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / name, **({"quality": 98} if name == "a.jpg" else {}))
    assert Image.open(tmp_path / name).mode == "CMYK"
    ink = cmyk.astype(float) / 255
    wanted = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(read_one(tmp_path) - wanted).max() <= tolerance


def test_grey_and_bilevel(tmp_path):
    grey = photo()[..., 0]
    save(tmp_path / "grey.png", grey)
    save(tmp_path / "two.png", ((grey > 128) * 255).astype("uint8"), "1")
    first, second = (np.asarray(i.image) for i in read(tmp_path).images)
    assert np.array_equal(first, np.stack([grey] * 3, 2))
    assert np.array_equal(second, np.stack([(grey > 128) * 255] * 3, 2))


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces(tmp_path, mode):
    path = save(tmp_path / "a.tif", photo(), mode)
    try:
        Image.open(path).load()
    except OSError as error:
        pytest.skip(f"this Pillow does not read what it wrote itself: {error}")  # YCbCr before Pillow 13
    assert np.abs(read_one(tmp_path).astype(int) - photo()).mean() < 12


# More than 8 bits


def grey_ramp(top: float, dtype: str) -> np.ndarray:
    return np.linspace(0, top, 40 * 40).reshape(40, 40).astype(dtype)


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([np.rint(grey)] * 3, 2).astype("uint8")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = grey_ramp(65535, "uint16")
    save(tmp_path / name, values)
    assert np.array_equal(read_one(tmp_path), as_rgb(values * (255 / 65535)))


def test_16_bit_grey_big_endian(tmp_path):
    values = grey_ramp(65535, "uint16")
    Image.frombytes("I;16B", (40, 40), values.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert Image.open(tmp_path / "a.tif").mode == "I;16B"
    assert np.array_equal(read_one(tmp_path), as_rgb(values * (255 / 65535)))


def test_16_bit_colour_png_keeps_its_high_bytes(tmp_path):
    high, low = photo(), photo()[::-1]
    rows = b"".join(b"\0" + np.stack([h, lo], 2).tobytes() for h, lo in zip(high, low, strict=True))
    (tmp_path / "a.png").write_bytes(png(48, 32, rows, depth=16))
    assert np.abs(read_one(tmp_path).astype(int) - high).max() <= 1


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (grey_ramp(200, "int32"), 1),
        (grey_ramp(60000, "int32"), 255 / 65535),
        (grey_ramp(1, "float32"), 255),
        (np.rint(grey_ramp(200, "float32")), 1),
        (np.rint(grey_ramp(60000, "float32")), 255 / 65535),
    ],
)
def test_32_bit_grey_of_a_known_range(tmp_path, values, scale):
    save(tmp_path / "a.tif", values)
    pictures = read(tmp_path)
    assert np.abs(np.asarray(pictures.images[0].image).astype(int) - as_rgb(values * scale)).max() <= 1
    assert pictures.notes == ()


@pytest.mark.parametrize(
    "values",
    [
        grey_ramp(2**30, "int32"),
        grey_ramp(2**20, "int32") - 2**19,
        grey_ramp(7.3, "float32"),
        grey_ramp(2, "float32") - 1,
        (grey_ramp(2, "float64") * 3e38 - 3e38).astype("float32"),  # its width overflows float32
    ],
)
def test_32_bit_grey_of_an_unknown_range_is_stretched_and_said(tmp_path, values):
    save(tmp_path / "a.tif", values)
    pictures = read(tmp_path)
    wide = values.astype("float64")
    wanted = as_rgb(255 * (wide - wide.min()) / (wide.max() - wide.min()))
    assert np.abs(np.asarray(pictures.images[0].image).astype(int) - wanted).max() <= 1
    assert "a.tif" in note(pictures, "stretched")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path, value):
    values = grey_ramp(1, "float32")
    values[3, 4] = value
    save(tmp_path / "a.tif", values)
    assert "a.tif (has pixels that are NaN or infinite)" in refusal(tmp_path)


# Moving pictures


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_is_used_and_said(tmp_path, name):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    pictures = read(tmp_path)
    assert (np.asarray(pictures.images[0].image) == (255, 0, 0)).all()
    assert "first frame of 1 picture: " + name in note(pictures, "frame")


def test_a_phone_jpeg_with_previews_behind_it_is_no_animation(tmp_path):
    preview = Image.fromarray(photo(24, 16))
    save(tmp_path / "a.jpg", photo(), format="MPO", save_all=True, append_images=[preview], quality=95)
    pictures = read(tmp_path)
    assert pictures.images[0].image.size == (48, 32)
    assert pictures.notes == ()


# Sizes


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("lifted", [False, True])
def test_bombs_are_refused_by_their_header(tmp_path, monkeypatch, lifted):
    if lifted:  # another library may have switched pillow's own limit off
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000, b"\0" * 1000))
    assert "bomb.png" in refusal(tmp_path)
    assert "megapixels" in refusal(tmp_path)


def test_a_bomb_in_every_format_with_a_plain_size_field(tmp_path):
    bmp = bytearray(encoded(photo(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    gif = bytearray(encoded(photo(), "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    jpg = bytearray(encoded(photo(), "JPEG"))
    size = jpg.index(b"\xff\xc0") + 5
    jpg[size : size + 4] = struct.pack(">HH", 60_000, 60_000)
    for name, data in (("a.bmp", bmp), ("b.gif", gif), ("c.jpg", jpg)):
        (tmp_path / name).write_bytes(data)
    message = refusal(tmp_path)
    assert message.count("megapixels") == 3


@pytest.mark.parametrize(("width", "height"), [(1, 1), (15, 400), (20_000, 10)])
def test_tiny_pictures_are_refused_with_their_size(tmp_path, width, height):
    save(tmp_path / "tiny.png", photo(width, height))
    assert f"tiny.png ({width}x{height} pixels, below the smallest side of 16)" in refusal(tmp_path)


def test_small_pictures_are_taken_with_a_warning(tmp_path):
    save(tmp_path / "small.png", photo(48, 32))
    save(tmp_path / "fine.png", photo(100, 80))
    pictures = read(tmp_path, resolution=64)
    assert "1 picture" in note(pictures, "enlarged")
    assert "small.png" in note(pictures, "enlarged")
    tensor, _ = to_tensor(pictures.images[1].image, (64, 64))
    assert tensor.shape == (3, 64, 64)


def test_a_long_strip_is_noted(tmp_path):
    save(tmp_path / "strip.png", photo(400, 20))
    save(tmp_path / "three_to_one.png", photo(60, 20))
    pictures = read(tmp_path)
    assert "strip.png" in note(pictures, "as long as wide")
    assert "three_to_one.png" not in note(pictures, "as long as wide")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_large_pictures_are_scaled_down_while_reading(tmp_path, name):
    pixels = photo(1200, 900)
    save(tmp_path / name, pixels)
    picture = read(tmp_path, resolution=64, max_side=300).images[0]
    assert picture.image.size == (300, 225)
    assert picture.original_size == (900, 1200)
    wanted = np.asarray(Image.fromarray(pixels).resize((300, 225), Image.Resampling.LANCZOS))
    assert np.abs(np.asarray(picture.image).astype(int) - wanted).mean() < 2


def test_scaling_down_keeps_twice_the_resolution_on_the_short_side(tmp_path):
    save(tmp_path / "a.png", photo(2000, 200))
    assert read(tmp_path, resolution=64, max_side=300).images[0].image.size == (1280, 128)
    assert read(tmp_path, resolution=128, max_side=300).images[0].image.size == (2000, 200)


# Damage


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        pytest.param("AVIF", {}, marks=needs_avif),
    ],
)
def test_truncated_at_each_eighth_is_refused_by_name(tmp_path, monkeypatch, format, options, lenient):
    # A library that fills missing pixels with grey may have been imported into the same process.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = encoded(noise(), format, **options)
    for eighth in range(8):
        path = tmp_path / f"cut{eighth}.{format.lower()}"
        path.write_bytes(data[: len(data) * eighth // 8])
        assert path.name in refusal(path)
        path.unlink()
    (tmp_path / "whole").write_bytes(data)
    assert len(read(tmp_path)) == 1
    assert lenient is ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    ("format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {})]
)
def test_half_a_download_padded_with_zeros_is_refused(tmp_path, format, options):
    data = encoded(noise(), format, **options)
    for eighth in range(1, 8):
        path = tmp_path / f"cut.{format.lower()}"
        path.write_bytes(data[: len(data) * eighth // 8].ljust(len(data), b"\0"))
        assert "cut." in refusal(path)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_with_strips_missing_is_refused(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = bytearray(encoded(photo(), "TIFF", exif=exif))
    height = data.index(struct.pack("<HHI", 257, 4, 1)) + 8  # tag ImageLength, one 32-bit number
    assert data[height : height + 4] == struct.pack("<I", 32)
    data[height : height + 4] = struct.pack("<I", 3200)
    (tmp_path / "a.tif").write_bytes(data)
    assert "a.tif (truncated or damaged)" in refusal(tmp_path)


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"and a trailer of the camera's own"])
def test_something_behind_a_complete_jpeg_does_not_matter(tmp_path, tail):
    exif = Image.Exif()  # with a complete JPEG inside, as a thumbnail is
    exif[ExifTags.Base.ImageDescription] = encoded(photo(20, 20), "JPEG").decode("latin-1")
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG", exif=exif) + tail)
    assert len(read(tmp_path)) == 1


def test_zero_bytes_are_refused(tmp_path):
    (tmp_path / "nothing.jpg").touch()
    assert "nothing.jpg (empty, 0 bytes)" in refusal(tmp_path)


def test_something_else_named_like_a_picture_is_refused(tmp_path):
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    (tmp_path / "text.png").write_text("not here")
    message = refusal(tmp_path)
    assert "page.jpg (not a picture but a web page)" in message
    assert "text.png (named like a picture but none inside)" in message


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        ("a.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        ("a.jxl", b"\xff\x0a\0\0", "JPEG XL"),
        ("a.psd", b"8BPS\0\1", "Photoshop"),
        ("a.nef", b"MM\0*\0\0\0\x08", "camera raw"),
    ],
)
def test_kinds_that_need_converting_are_named(tmp_path, name, head, kind):
    (tmp_path / name).write_bytes(head + bytes(100))
    assert f"{name} ({kind}, which has to be converted to JPEG or PNG first)" in refusal(tmp_path)


def test_all_bad_files_are_named_in_one_sentence(tmp_path):
    save(tmp_path / "good.png", photo())
    for i in range(11):
        (tmp_path / f"bad{i}.jpg").write_bytes(b"\xff\xd8\xff")
    message = refusal(tmp_path)
    assert "cannot use 11 pictures" in message
    assert "bad7.jpg" in message
    assert "bad8.jpg" not in message
    assert "and 3 more; remove or replace them" in message


def test_a_dead_link_is_named(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert "gone.jpg (a link to a file that is not there)" in refusal(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "locked.png", photo())
    plain_open = Path.open

    def locked(self, *args, **kwargs):  # chmod does not stop root, and tests run as root in containers
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return plain_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", locked)
    assert "locked.png (permission denied)" in refusal(tmp_path)


def test_names_with_control_characters_are_shown_without_them(tmp_path):
    (tmp_path / "a\n\x1b[31m.jpg").touch()
    assert "\x1b" not in refusal(tmp_path)
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff\xfe.jpg", os.O_CREAT))
    refusal(tmp_path).encode()  # printing it must not fail either


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_give_a_picture_or_a_refusal(tmp_path, data):
    formats = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
    content = bytearray(encoded(photo(24, 20), data.draw(st.sampled_from(formats))))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.jpg").write_bytes(content)
    try:
        picture = read(tmp_path).images[0].image
    except InputError as error:
        message = str(error)
    else:
        message = f"a.jpg is {picture.mode}"
    assert message == "a.jpg is RGB" or "a.jpg (" in message


# What else lies in a folder


def test_strays_are_skipped_counted_and_said(tmp_path):
    save(tmp_path / "a.png", photo())
    for name in ("notes.txt", "Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", "clip.mp4"):
        (tmp_path / name).write_bytes(b"BM is how this text begins, and it is no bitmap")
    for name in (".ipynb_checkpoints", "__MACOSX", "more"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "b.png", photo())
    pictures = read(tmp_path)
    assert len(pictures) == 1
    said = note(pictures, "skipped")
    assert said.startswith("skipped 8 files that are no images: ")
    names = set(said.split(": ")[1].split(", "))
    assert names >= {"notes.txt", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints", "__MACOSX", "._a.png"}
    assert note(pictures, "subfolder") == "did not look into 1 subfolder: more"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    save(tmp_path / "a.png", photo())
    os.mkfifo(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "a.txt")
    assert "b.jpg" in note(read(tmp_path), "skipped 2 files")
    assert "b.jpg" in refusal(tmp_path / "b.jpg")


def test_missing_and_misspelt_folders(tmp_path):
    (tmp_path / "teapot").mkdir()
    assert "did you mean" in refusal(tmp_path / "teapto")
    assert "there is no folder" in refusal(tmp_path / "x" / "y")
    for odd in ("", "  ", "a\0b", "~no_such_user/cat", "n" * 5000):
        refusal(odd)


def test_empty_folders_say_what_they_hold(tmp_path):
    assert "is empty" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "1 other file (notes.txt)" in refusal(tmp_path)
    (tmp_path / "photos").mkdir()
    assert "1 subfolder (photos); put pictures into it" in refusal(tmp_path)
    save(tmp_path / "photos" / "a.png", photo())
    assert "photos instead" in refusal(tmp_path)


def test_a_file_of_another_kind_is_not_a_folder(tmp_path):
    (tmp_path / "cats.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    assert "is a ZIP archive; unpack it first" in refusal(tmp_path / "cats.zip")
    (tmp_path / "cats.md").write_text("# Cats")
    assert "a file that is no picture" in refusal(tmp_path / "cats.md")
    assert "not a directory" in refusal(tmp_path / "cats.md" / "a")


# Captions


def with_captions(folder: Path, *lines: object) -> Path:
    for name in ("1.png", "2.png"):
        save(folder / name, photo())
    (folder / "metadata.jsonl").write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return folder


def captions(folder: Path) -> list[str | None]:
    return [i.caption for i in read(folder).images]


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"a clay cat on a mat", CAPTION),
        (b"\xef\xbb\xbfa clay cat on a mat\r\n", CAPTION),
        (b"  a clay\n\n\tcat   on\x07 a mat\n", CAPTION),
        ("eine Kätzin auf dem Sofa, 猫".encode(), "eine Kätzin auf dem Sofa, 猫"),
        (b"x" * 2000, "x" * 2000),
        (b"", None),
        (b" \r\n \xef\xbb\xbf"[:4], None),
    ],
)
def test_a_sidecar_is_the_caption(tmp_path, data, caption):
    save(tmp_path / "a.png", photo())
    (tmp_path / "a.txt").write_bytes(data)
    pictures = read(tmp_path)
    assert pictures.images[0].caption == caption
    assert len(pictures.notes) == (caption is None)
    if caption is None:
        assert "a.png" in note(pictures, "using the prompt")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"caf\xe9", "UTF-8"),
        ("a cat".encode("utf-16"), "UTF-8"),
        ("a cat".encode("utf-16-le"), "UTF-8"),
        (b"x" * 2001, "2,001 characters"),
        (b"x" * 10**6, "65,536 bytes"),
    ],
)
def test_bad_sidecars_are_named(tmp_path, data, words):
    save(tmp_path / "a.png", photo())
    (tmp_path / "a.txt").write_bytes(data)
    message = refusal(tmp_path)
    assert "a.txt" in message
    assert words in message


def test_pictures_without_a_caption_among_others_are_said(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        save(tmp_path / name, photo())
    (tmp_path / "2.txt").write_text(CAPTION)
    pictures = read(tmp_path)
    assert [i.caption for i in pictures.images] == [None, CAPTION, None]
    assert note(pictures, "prompt") == "2 pictures without a caption, using the prompt: 1.png, 3.png"


def test_captions_can_be_left_unread(tmp_path):
    with_captions(tmp_path, {"file_name": "1.png", "text": "one"})
    (tmp_path / "2.txt").write_bytes(b"\xff\xff")
    (tmp_path / "notes.txt").write_text("hello")
    pictures = read(tmp_path, captions=False)
    assert [i.caption for i in pictures.images] == [None, None]
    assert note(pictures, "caption") == "did not read 2 caption files: 2.txt, metadata.jsonl"
    assert note(pictures, "skipped") == "skipped 1 file that is no image: notes.txt"


def test_metadata_lines_are_captions(tmp_path):
    first = {"file_name": "./2.png", "text": " two\n\n cats \u2028 here", "score": 3}
    with_captions(tmp_path, first, "", {"file_name": "1.png", "text": None})
    assert captions(tmp_path) == [None, "two cats here"]
    assert "1.png" in note(read(tmp_path), "empty caption")


def test_metadata_matches_accents_however_they_are_spelt(tmp_path):
    save(tmp_path / "cafe\u0301.png", photo())
    line = {"file_name": "caf\u00e9.png", "text": "a café"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    assert captions(tmp_path) == ["a café"]


def test_a_raw_line_separator_inside_a_json_string_ends_no_line(tmp_path):
    with_captions(tmp_path, '{"file_name": "1.png", "text": "a\u2028b"}\r')
    assert captions(tmp_path) == ["a b", None]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 10_000, "not"),
        ("[1, 2]", "not a JSON object"),
        ({"text": "a"}, '"file_name"'),
        ({"file_name": 7, "text": "a"}, '"file_name"'),
        ({"file_name": "1.png", "caption": "a"}, 'keys file_name, caption but no "text"'),
        ({"file_name": "1.png", "text": ["a"]}, "type list"),
        ({"file_name": "1.png", "text": "x" * 2001}, "2,001 characters"),
        ({"file_name": "1.png", "text": "\ud800"}, "escape"),
        ({"file_name": "3.jpeg", "text": "a"}, "3.jpeg, and the folder has no such picture"),
        ({"file_name": "1.PNG", "text": "a"}, "did you mean"),
        ({"file_name": "metadata.jsonl", "text": "a"}, "no such picture"),
        ({"file_name": "/etc/passwd", "text": "a"}, "/etc/passwd, which is a path"),
        ({"file_name": "../1.png", "text": "a"}, "which is a path"),
        ({"file_name": "..", "text": "a"}, "which is a path"),
        ({"file_name": "..\\1.png", "text": "a"}, "which is a path"),
        ({"file_name": "C:1.png", "text": "a"}, "which is a path"),
        ({"file_name": "sub/1.png", "text": "a"}, "which is a path"),
        ({"file_name": "2.png", "text": "again"}, "second time"),
    ],
)
def test_bad_metadata_names_the_line(tmp_path, line, words):
    with_captions(tmp_path, {"file_name": "2.png", "text": "two"}, "", line)
    message = refusal(tmp_path)
    assert "line 3 of metadata.jsonl" in message
    assert words in message


def test_metadata_that_is_not_utf8(tmp_path):
    with_captions(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "1.png", "text": "café"}'.encode("latin-1"))
    assert "metadata.jsonl is not UTF-8" in refusal(tmp_path)


def test_two_captions_for_one_picture(tmp_path):
    with_captions(tmp_path, {"file_name": "1.png", "text": "one"})
    (tmp_path / "2.txt").write_text("two")
    assert captions(tmp_path) == ["one", "two"]
    (tmp_path / "1.txt").write_text("one")
    assert "keep one" in refusal(tmp_path)


json_values = st.none() | st.floats() | st.text(max_size=9) | st.just(["a"]) | st.just({"a": [{}]})
json_lines = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"file_name": st.sampled_from(["1.png", "2.png", ".."]) | json_values, "text": json_values},
    ),
    max_size=4,
).map(lambda records: "\n".join(map(json.dumps, records)).encode())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary() | st.text().map(str.encode) | json_lines)
def test_any_bytes_as_captions_give_text_or_an_error(tmp_path, data):
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(data)
    texts: list[str] = []
    with contextlib.suppress(InputError):
        found = read_metadata(path, ["1.png", "2.png"])
        assert set(found) <= {"1.png", "2.png"}
        texts += found.values()
    with contextlib.suppress(InputError):
        texts.append(read_sidecar(path))
    for text in texts:
        assert text == " ".join(text.split())
        assert text.encode().decode() == text  # no half characters that a tokenizer or a log would choke on


# Buckets


def test_buckets_by_hand():
    # 512 = 8 cells of 64: of all w x h with w * h <= 64 and ratio <= 2, those that fit in no other one.
    assert make_buckets(512) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert make_buckets(64) == [(64, 64)]
    assert make_buckets(100, step=64) == [(64, 128), (64, 64), (128, 64)]  # 128 * 64 = 8,192 <= 10,000
    assert make_buckets(1024, max_ratio=1.0) == [(1024, 1024)]


@settings(max_examples=60, deadline=None)
@given(
    resolution=st.integers(8, 1100),
    step=st.sampled_from([8, 16, 32, 64]),
    max_ratio=st.floats(1, 5) | st.just(math.inf),
)
def test_buckets_are_complete_and_within_bounds(resolution, step, max_ratio):
    if resolution < step:
        with pytest.raises(ValueError, match="resolution"):
            make_buckets(resolution, step, max_ratio)
        return
    buckets = make_buckets(resolution, step, max_ratio)
    assert len(set(buckets)) == len(buckets)
    assert {(h, w) for w, h in buckets} == set(buckets)
    square = resolution // step * step
    assert (square, square) in buckets
    for w, h in buckets:
        assert w % step == h % step == 0
        assert w * h <= resolution**2
        assert max(w, h) <= max_ratio * min(w, h)
        grown = [(w + step, h), (w, h + step)]  # nothing to be gained by a larger one, the square apart
        for wide, high in grown if w != h else []:
            assert wide * high > resolution**2 or max(wide, high) > max_ratio * min(wide, high)


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000), ratio=st.floats(1, 4))
def test_the_nearest_bucket_is_nearest(width, height, ratio):
    buckets = make_buckets(512, 64, ratio)
    w, h = nearest_bucket(width, height, buckets)
    shapes = [abs(math.log(width / height) - math.log(a / b)) for a, b in buckets]
    assert abs(math.log(width / height) - math.log(w / h)) <= min(shapes) + 1e-8
    if width > height:
        assert w >= h


def test_bucket_arguments():
    assert nearest_bucket(512, 512, make_buckets(512)) == (512, 512)
    assert nearest_bucket(4000, 3000, make_buckets(512)) == (576, 448)
    for bad in ((512, 0, 2.0), (32, 64, 2.0), (512, 64, 0.5), (512, 64, math.nan)):
        with pytest.raises(ValueError):
            make_buckets(*bad)
    with pytest.raises(ValueError):
        nearest_bucket(1, 1, [])
    with pytest.raises(ValueError):
        nearest_bucket(0, 1, [(64, 64)])


# Tensors


def pixels_of(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.permute(1, 2, 0).numpy() + 1) * 127.5


def resized_then_cropped(image: Image.Image, size: tuple[int, int], place: tuple[int, int], flip: bool) -> np.ndarray:
    scale = max(size[0] / image.width, size[1] / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)[:, ::-1] if flip else np.asarray(image)
    y, x = place
    return pixels[y : y + size[1], x : x + size[0]]


def test_a_picture_of_the_right_size_is_only_rescaled():
    image = Image.fromarray(photo(48, 32))
    tensor, info = to_tensor(image, (48, 32))
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.equal(tensor, torch.from_numpy(photo(48, 32)).permute(2, 0, 1).float() / 127.5 - 1)
    assert info == ((32, 48), (0, 0))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize(("shape", "size"), [((90, 60), (32, 32)), ((61, 97), (40, 24)), ((20, 30), (64, 64))])
def test_crops_equal_resizing_first(shape, size, crop, flip):
    image = Image.fromarray(photo(*shape))
    generator = torch.Generator().manual_seed(5)
    tensor, info = to_tensor(image, size, crop=crop, flip=flip, generator=generator)
    assert tensor.shape == (3, size[1], size[0])
    wanted = resized_then_cropped(image, size, info.crop_top_left, flip)
    assert np.abs(pixels_of(tensor) - wanted).max() <= 1.01
    assert info.original_size == (shape[1], shape[0])


def test_the_centre_is_the_centre():
    image = Image.fromarray(photo(100, 50))
    _, info = to_tensor(image, (50, 50))
    assert info.crop_top_left == (0, 25)
    _, info = to_tensor(image, (50, 50), flip=True, original_size=(500, 1000))
    assert info == ((500, 1000), (0, 25))


def test_random_crops_follow_the_generator_and_reach_every_place():
    image = Image.fromarray(photo(36, 32))
    draws = [to_tensor(image, (32, 32), crop="random", generator=torch.Generator().manual_seed(0)) for _ in "ab"]
    assert torch.equal(draws[0][0], draws[1][0])
    generator = torch.Generator().manual_seed(1)
    places = {to_tensor(image, (32, 32), crop="random", generator=generator)[1].crop_top_left for _ in range(100)}
    assert places == {(0, x) for x in range(5)}


def test_an_extreme_strip_can_be_cropped():
    tensor, info = to_tensor(Image.fromarray(photo(20_000, 16)), (256, 256))
    assert tensor.shape == (3, 256, 256)
    assert info.crop_top_left == (0, (320_000 - 256) // 2)
    assert tensor.abs().max() <= 1


def test_variants_are_as_many_as_can_differ():
    image = Image.fromarray(photo(64, 48))

    def draw(n: int, **options: object) -> list[torch.Tensor]:
        return [t for t, _ in variants(image, (32, 32), n, generator=torch.Generator().manual_seed(0), **options)]

    assert len(draw(6)) == 1
    plain, mirrored = draw(1, flip=True)
    assert torch.equal(plain, draw(1)[0])
    assert np.abs(pixels_of(plain.flip(2)) - pixels_of(mirrored)).max() <= 7  # 43 columns: centres differ by one
    assert len(draw(6, crop="random")) == 6
    assert all(map(torch.equal, draw(6, crop="random"), draw(6, crop="random")))
    assert len(draw(6, crop="random", flip=True)) == 6


def test_variants_without_room_to_move_do_not_repeat():
    square = Image.fromarray(photo(64, 64))
    assert len(variants(square, (32, 32), 6, crop="random")) == 1
    (plain, _), (mirrored, _) = variants(square, (32, 32), 6, crop="random", flip=True)
    assert torch.equal(plain.flip(2), mirrored)


def test_crop_arguments():
    image = Image.fromarray(photo())
    with pytest.raises(ValueError, match="center or random"):
        to_tensor(image, (32, 32), crop="middle")
    with pytest.raises(ValueError, match="at least 1"):
        to_tensor(image, (0, 32))
    with pytest.raises(ValueError, match="n = 0"):
        variants(image, (32, 32), 0)
