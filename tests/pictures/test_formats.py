"""Formats, names and EXIF of the pictures that people have: each is read rightly."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.support.pictures import CAPTION, encoded, needs_avif, note, photo, read, read_one, save

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
