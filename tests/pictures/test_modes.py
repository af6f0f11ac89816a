"""Transparency, palettes, colour spaces and more than 8 bits: pictures become RGB as a viewer shows them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import note, photo, png, read, read_one, refusal, save

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


def test_the_see_through_grey_of_a_16_bit_png_is_laid_on_white(tmp_path):
    values = np.full((32, 32), 20_000, np.uint16)
    values[:, 16:] = 77  # would be nearly black
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    data = png(32, 32, rows, depth=16, colour=0, chunks=((b"tRNS", struct.pack(">H", 77)),))
    (tmp_path / "a.png").write_bytes(data)
    pixels = read_one(tmp_path)
    assert (pixels[:, :16] == round(20_000 / 257)).all()
    assert (pixels[:, 16:] == 255).all()


def test_a_see_through_colour_of_16_bits_is_not_applied_and_said(tmp_path):
    colour = struct.pack(">HHH", 0x1234, 0x2000, 0x3000)
    data = png(32, 32, 32 * (b"\0" + 32 * colour), depth=16, chunks=((b"tRNS", colour),))
    (tmp_path / "a.png").write_bytes(data)
    assert (read_one(tmp_path) == (0x12, 0x20, 0x30)).all()
    assert note(read(tmp_path), "see-through")


def test_a_bitmap_of_windows_whose_fourth_byte_is_zero_is_opaque(tmp_path):
    size = struct.pack("<IiiHHIIiiII", 108, 32, 32, 1, 32, 3, 4096, 2835, 2835, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    pixels = bytes([40, 50, 200, 0]) * 1024
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 122 + 4096, 0, 0, 122) + size + masks + pixels)
    assert (read_one(tmp_path) == (200, 50, 40)).all()
