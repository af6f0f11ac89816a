"""Damaged pictures and files of other kinds are refused by name."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from dash_vision.files.errors import InputError
from tests.support.pictures import encoded, needs_avif, photo, read, refusal, save


def noise(width: int = 64, height: int = 48) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


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


def jpeg_of(frame: int, bits: int) -> bytes:
    """A JPEG whose frame header says that it is of that kind and depth."""
    data = bytearray(encoded(noise(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = frame, bits
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("12.jpg", jpeg_of(0xC1, 12), "a JPEG of 12 bits a colour, which has to be converted to 8 bits or PNG first"),
        ("lossless.jpg", jpeg_of(0xC3, 8), "a lossless or hierarchical JPEG, which has to be converted to"),
        ("ls.jpg", jpeg_of(0xF7, 8), "a lossless or hierarchical JPEG, which has to be converted to"),
        ("99.jpg", jpeg_of(0xC0, 99), "truncated or damaged"),
    ],
)
def test_a_jpeg_of_a_rare_kind_is_not_called_damaged(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    assert f"{name} ({reason}" in refusal(tmp_path)


def test_a_tiff_of_a_rare_kind_is_not_called_damaged(tmp_path):
    data = bytearray(encoded(noise(), "TIFF"))
    at = data.index(struct.pack("<HHI", 259, 3, 1))  # its compression
    data[at + 8 : at + 10] = struct.pack("<H", 34887)  # LERC
    (tmp_path / "a.tif").write_bytes(data)
    assert "a.tif (of a kind that cannot be decoded here (compression 34887), which has to" in refusal(tmp_path)


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
