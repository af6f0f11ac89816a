"""Moving pictures and sizes: the first frame, bombs, tiny and large pictures."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from dash_vision.pictures.crops import to_tensor
from tests.support.pictures import encoded, note, photo, png, read, refusal, save


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
