"""Colours come out as sRGB, by arithmetic in float that is independent of the library that converts."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from dash_vision.classification.decode import decode
from dash_vision.pictures.colour import matrix_profile
from dash_vision.pictures.decode import open_picture
from eval.checks import read_inputs
from tests.support.pictures import needs_avif, note, photo, read, read_one
from tests.support.profiles import (
    ADOBE_COLORANTS,
    ADOBE_TO_XYZ,
    P3_COLORANTS,
    P3_TO_XYZ,
    SRGB_COLORANTS,
    as_srgb,
    cmyk_profile,
    grey_of_light,
    grey_profile,
    icc,
    rgb_profile,
)

P3 = rgb_profile(P3_COLORANTS)
ADOBE = rgb_profile(ADOBE_COLORANTS, 563 / 256)
SPACES = [
    pytest.param(P3, P3_TO_XYZ, None, id="Display P3"),
    pytest.param(ADOBE, ADOBE_TO_XYZ, 563 / 256, id="Adobe RGB"),
]


def noise(width=64, height=48):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def off(pixels, expected):
    """The largest difference from float levels; half a level is rounding."""
    return np.abs(np.asarray(pixels, dtype=np.float64) - expected).max()


def test_the_arithmetic_of_these_tests_gives_published_colours():
    """sRGB's red is color(display-p3 0.9175 0.2003 0.1386) in CSS Color 4, its green 144, 255, 60 in Adobe RGB."""
    assert np.allclose(as_srgb(255 * np.array([0.9175, 0.2003, 0.1386]), P3_TO_XYZ), [255, 0, 0], atol=1)
    assert np.allclose(as_srgb([144, 255, 60], ADOBE_TO_XYZ, 563 / 256), [0, 255, 0], atol=2)


@pytest.mark.parametrize(("profile", "to_xyz", "gamma"), SPACES)
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True}), pytest.param("a.avif", {}, marks=needs_avif)],
)
def test_wide_colours_are_converted_in_every_format(tmp_path, name, options, profile, to_xyz, gamma):
    Image.fromarray(noise()).save(tmp_path / name, icc_profile=profile, **options)
    with Image.open(tmp_path / name) as stored:  # AVIF is lossy: what its decoder gives
        pixels = np.asarray(stored.convert("RGB"))
    pictures = read(tmp_path)
    assert off(pictures.images[0].image, as_srgb(pixels, to_xyz, gamma)) <= 1.6
    assert "converted the colours of 1 picture to sRGB" in note(pictures, "colours")


@pytest.mark.parametrize(("profile", "to_xyz", "gamma"), SPACES)
def test_a_jpeg_of_a_phone_or_camera_is_converted(tmp_path, profile, to_xyz, gamma):
    Image.fromarray(photo()).save(tmp_path / "a.jpg", icc_profile=profile, quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert off(read_one(tmp_path), as_srgb(np.asarray(stored), to_xyz, gamma)) <= 1.6


@pytest.mark.parametrize("format", ["jpg", "png"])
def test_training_eval_predict_and_vtab_see_the_same_colours(tmp_path, format):
    path = tmp_path / f"a.{format}"
    Image.fromarray(photo(32, 32)).save(path, icc_profile=P3)
    seen = read_one(tmp_path)
    assert off(seen, photo(32, 32)) > 20
    said = []
    assert np.array_equal(seen, read_inputs(tmp_path, said.append)[0][0])
    assert any("to sRGB" in line for line in said)
    assert np.array_equal(seen, open_picture(path).image)
    assert np.array_equal(seen, decode(path, 32).permute(1, 2, 0))


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        rgb_profile(SRGB_COLORANTS),
        matrix_profile(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)), None),
    ],
    ids=["LittleCMS", "table", "parametric"],
)
def test_pictures_that_say_they_are_srgb_keep_every_bit(tmp_path, profile):
    Image.fromarray(noise()).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(read_one(tmp_path), noise())
    assert read(tmp_path).notes == ()
    assert np.array_equal(decode(tmp_path / "a.png", 48), decode_plain(noise(), 48))


def decode_plain(pixels, size):
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def test_the_profile_does_not_stay_on_what_was_converted(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.png", icc_profile=P3)
    assert read(tmp_path).images[0].image.info == {}


# -- other kinds of pixels


def test_transparency_survives_the_conversion(tmp_path):
    pixels = np.dstack([noise(), np.full((48, 64), 128, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=P3)
    expected = as_srgb(noise(), P3_TO_XYZ) * 128 / 255 + 255 * (1 - 128 / 255)
    assert off(read_one(tmp_path), expected) <= 2


def test_a_palette_is_converted(tmp_path):
    Image.fromarray(photo()).quantize(32).save(tmp_path / "a.png", icc_profile=P3)
    with Image.open(tmp_path / "a.png") as stored:
        pixels = np.asarray(stored.convert("RGB"))
    assert off(read_one(tmp_path), as_srgb(pixels, P3_TO_XYZ)) <= 1.6


@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_a_grey_profile_is_applied(tmp_path, gamma):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=grey_profile(gamma))
    assert off(read_one(tmp_path)[..., 0], grey_of_light((ramp / 255) ** gamma)) <= 1.6


def test_a_grey_picture_may_have_a_profile_of_colours(tmp_path):
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=ADOBE)
    assert off(read_one(tmp_path)[..., 0], grey_of_light((ramp / 255) ** (563 / 256))) <= 1.6


def test_16_bit_grey_keeps_its_profile(tmp_path):
    ramp = np.tile(np.arange(0, 65536, 512, dtype=np.uint16), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    levels = np.rint(ramp / 65535 * 255)
    assert off(read_one(tmp_path)[..., 0], grey_of_light(levels / 255)) <= 1.6


def test_ink_follows_its_profile_with_black_at_black(tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1))
    ink = np.dstack([np.zeros((*ramp.shape, 3), np.uint8), ramp])
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif", icc_profile=cmyk_profile())
    lightness = 100 * (1 - ramp / 255)
    light = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness * 27 / 24389)  # CIE L*
    grey = read_one(tmp_path)
    assert off(grey[..., 1], grey_of_light(light)) <= 3
    assert grey[0, 0].tolist() == [255, 255, 255]


# -- profiles that cannot be used


def png(pixels, *chunks):
    """A PNG file with other chunks before its pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


@pytest.mark.parametrize(
    "profile",
    [b"nonsense", P3[:300], bytes(400), grey_profile(2.2), cmyk_profile(), icc(b"link", b"RGB ", b"RGB ", {})],
    ids=["nonsense", "cut", "zeros", "grey", "ink", "device link"],
)
def test_a_profile_that_cannot_be_used_is_ignored_and_said(tmp_path, profile):
    Image.fromarray(noise()).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(read_one(tmp_path), noise())
    assert "a.png" in note(read(tmp_path), "ignored the colour profile of 1 picture")


def test_a_profile_that_does_not_unpack_is_ignored_and_said(tmp_path):
    (tmp_path / "a.png").write_bytes(png(noise(), (b"iCCP", b"P3\0\0" + b"no zlib stream")))
    assert np.array_equal(read_one(tmp_path), noise())
    assert note(read(tmp_path), "ignored the colour profile")


def test_a_jpeg_profile_with_a_part_missing_is_ignored_and_said(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.jpg", icc_profile=P3)
    data = (tmp_path / "a.jpg").read_bytes()
    at = data.index(b"ICC_PROFILE\0\x01\x01")
    (tmp_path / "a.jpg").write_bytes(data[: at + 13] + b"\x02" + data[at + 14 :])  # "part 1 of 2"
    assert note(read(tmp_path), "ignored the colour profile")


def test_a_pillow_without_littlecms_says_so(tmp_path, monkeypatch):
    Image.fromarray(noise()).save(tmp_path / "a.png", icc_profile=P3)
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "littlecms2" and check(name))
    assert np.array_equal(read_one(tmp_path), noise())
    assert note(read(tmp_path), "without LittleCMS")


# -- what a file says without a profile

P3_CORNERS = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
SRGB_CORNERS = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def gamma_chunk(value):
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def corners_chunk(values):
    return b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in values))


def test_a_png_that_states_linear_light_is_converted(tmp_path):
    (tmp_path / "a.png").write_bytes(png(noise(), gamma_chunk(1.0)))
    assert off(read_one(tmp_path), grey_of_light(noise() / 255)) <= 1.6


def test_a_png_that_states_other_primaries_is_converted(tmp_path):
    (tmp_path / "a.png").write_bytes(png(noise(), gamma_chunk(0.45455), corners_chunk(P3_CORNERS)))
    assert off(read_one(tmp_path), as_srgb(noise(), P3_TO_XYZ)) <= 1.6


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma_chunk(0.45455)],
        [gamma_chunk(0.45455), corners_chunk(SRGB_CORNERS)],
        [corners_chunk(SRGB_CORNERS)],
        [(b"sRGB", b"\0"), gamma_chunk(1.0)],
    ],
    ids=["gamma", "both", "primaries", "sRGB has the last word"],
)
def test_a_png_that_states_srgb_keeps_every_bit(tmp_path, chunks):
    (tmp_path / "a.png").write_bytes(png(noise(), *chunks))
    assert np.array_equal(read_one(tmp_path), noise())
    assert read(tmp_path).notes == ()


@pytest.mark.parametrize("chunks", [[gamma_chunk(0.0)], [corners_chunk((0.0,) * 8)], [corners_chunk((0.3,) * 8)]])
def test_impossible_gamma_and_primaries_are_ignored_and_said(tmp_path, chunks):
    (tmp_path / "a.png").write_bytes(png(noise(), *chunks))
    assert np.array_equal(read_one(tmp_path), noise())
    assert note(read(tmp_path), "ignored the colour profile")


def test_a_camera_that_notes_adobe_rgb_is_believed(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[0xA001] = 65535  # colour space: uncalibrated
    exif.get_ifd(ExifTags.IFD.Exif)[0xA005] = {1: "R03"}  # DCF 2.0: the option file, Adobe RGB
    Image.fromarray(photo()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.getexif().get_ifd(ExifTags.IFD.Interop)[1] == "R03"
        assert off(read_one(tmp_path), as_srgb(np.asarray(stored), ADOBE_TO_XYZ, 563 / 256)) <= 1.6


def test_a_colour_space_of_2_in_exif_is_adobe_rgb(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[0xA001] = 2
    Image.fromarray(photo()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert off(read_one(tmp_path), as_srgb(np.asarray(stored), ADOBE_TO_XYZ, 563 / 256)) <= 1.6


# -- code points of ITU-T H.273: 12 are the primaries of Display P3, 13 the curve of sRGB, 9 and 16 BT.2020 and PQ


def png_points(*points):
    return b"cICP", bytes([*points, 0, 1])


def avif_with_points(primaries, transfer):
    out = io.BytesIO()
    Image.fromarray(photo()).save(out, "AVIF", quality=100, subsampling="4:4:4")
    data = out.getvalue()
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def test_a_png_that_states_code_points_is_converted_whatever_its_profile_says(tmp_path):
    (tmp_path / "a.png").write_bytes(png(noise(), png_points(12, 13), (b"sRGB", b"\0")))
    assert off(read_one(tmp_path), as_srgb(noise(), P3_TO_XYZ)) <= 1.6


@needs_avif
def test_an_avif_that_states_code_points_is_converted(tmp_path):
    (tmp_path / "a.avif").write_bytes(avif_with_points(12, 13))
    with Image.open(tmp_path / "a.avif") as stored:
        assert off(read_one(tmp_path), as_srgb(np.asarray(stored.convert("RGB")), P3_TO_XYZ)) <= 1.6


@pytest.mark.parametrize("points", [(1, 13), (2, 2), (1, 1)], ids=["sRGB", "not specified", "television"])
def test_code_points_of_srgb_keep_every_bit(tmp_path, points):
    (tmp_path / "a.png").write_bytes(png(noise(), png_points(*points)))
    assert np.array_equal(read_one(tmp_path), noise())
    assert read(tmp_path).notes == ()


@pytest.mark.parametrize(
    ("points", "words"), [((9, 16), "HDR screens"), ((9, 18), "HDR screens"), ((99, 13), "ignored the colour profile")]
)
def test_code_points_that_are_not_converted_are_said(tmp_path, points, words):
    (tmp_path / "a.png").write_bytes(png(noise(), png_points(*points)))
    assert np.array_equal(read_one(tmp_path), noise())
    assert note(read(tmp_path), words)


def test_a_picture_in_lab_has_no_profile_of_rgb(tmp_path):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    muted = photo() // 4 + 96
    ImageCms.applyTransform(Image.fromarray(muted), to_lab).save(tmp_path / "a.tif")
    assert off(read_one(tmp_path), muted) <= 4
    assert not [text for text in read(tmp_path).notes if "profile" in text]
