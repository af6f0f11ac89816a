"""One reader for everybody: threads, files without folders, and what is checked without decoding."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFile

from dash_vision.classification.decode import decode, decode_chunks
from dash_vision.files.errors import InputError
from dash_vision.pictures.crops import make_buckets, variants
from dash_vision.pictures.decode import Refused, check_picture, open_picture, read_picture, read_png_text
from dash_vision.pictures.folder import check_folder, list_folder, picture_files
from tests.support.pictures import photo, save


def turned_jpeg(path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(photo()).save(path, exif=exif, quality=95)


def test_vtab_reads_as_stored_and_predict_reads_upright(tmp_path):
    turned_jpeg(tmp_path / "a.jpg", 6)
    with Image.open(tmp_path / "a.jpg") as stored:
        pixels = np.asarray(stored.convert("RGB"))
    assert np.array_equal(read_picture(tmp_path / "a.jpg", upright=False).image, pixels)
    assert np.array_equal(open_picture(tmp_path / "a.jpg").image, np.rot90(pixels, 3))
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(decode(tmp_path / "a.jpg", 16).permute(1, 2, 0), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_vtab_pixels_are_pillows_own_for_ordinary_files(tmp_path, mode, suffix):
    if (mode == "CMYK") != (suffix == "jpg") and mode not in ("RGB", "L"):
        pytest.skip("no such file")
    Image.fromarray(photo(70, 50)).convert(mode).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        expected = stored.convert("RGB").resize((24, 24), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(tmp_path / f"a.{suffix}", 24).permute(1, 2, 0), expected)


def test_netpbm_files_are_pictures(tmp_path):
    save(tmp_path / "a.ppm", photo())
    assert np.array_equal(open_picture(tmp_path / "a.ppm").image, photo())
    (tmp_path / "b.pgm").write_bytes(b"P5 4 2 65535\n" + np.array([[0, 65535, 32768, 1]] * 2, dtype=">u2").tobytes())
    assert np.asarray(open_picture(tmp_path / "b.pgm").image)[0, :, 0].tolist() == [0, 255, 128, 0]


def test_threads_that_decode_together_neither_mix_their_warnings_nor_lose_the_switches(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    broken_exif = io.BytesIO()
    Image.fromarray(photo()).save(broken_exif, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    whole = io.BytesIO()
    Image.fromarray(photo(200, 150)).save(whole, "JPEG")
    contents = [broken_exif.getvalue(), whole.getvalue(), whole.getvalue()[:2000]]
    paths = [tmp_path / f"{i}.jpg" for i in range(90)]
    for i, path in enumerate(paths):
        path.write_bytes(contents[i % 3])
    filters = list(warnings.filters)

    def look(path):
        try:
            return [remark for remark in read_picture(path).remarks if "EXIF" in remark]
        except Refused:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, paths))
    assert [len(f) for f in found[0::3]] == [1] * 30
    assert found[1::3] == [[]] * 30
    assert found[2::3] == ["refused"] * 30
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert warnings.filters == filters


def test_chunks_are_in_order_however_many_threads_decode(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 9, 9, 3), dtype=np.uint8)
    paths = [save(tmp_path / f"{i}.png", p) for i, p in enumerate(pixels)]
    assert torch.equal(torch.cat(list(decode_chunks(paths, 9))), torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_a_text_of_a_png_is_read_and_other_files_are_refused(tmp_path):
    notes = Image.new("RGB", (4, 4))
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt("story", "{é}")
    notes.save(tmp_path / "a.png", pnginfo=text)
    assert read_png_text(tmp_path / "a.png", "story") == "{é}"
    assert read_png_text(tmp_path / "a.png", "other") is None
    notes.save(tmp_path / "b.png", "JPEG")
    with pytest.raises(Refused, match="not a PNG"):
        read_png_text(tmp_path / "b.png", "story")


def test_an_absent_or_unreadable_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="there is no image"):
        open_picture(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image \(.*\); give another"):
        open_picture(tmp_path / "a.png")


def test_the_check_of_a_folder_finds_faults_without_decoding(tmp_path, monkeypatch):
    save(tmp_path / "whole.png", photo())
    save(tmp_path / "whole.jpg", photo())
    save(tmp_path / "small.png", photo(8, 8))
    for name in ("whole.png", "whole.jpg"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name.replace("whole", "cut")).write_bytes(data[: len(data) * 3 // 4])
    monkeypatch.setattr(Image.Image, "convert", lambda *a, **b: pytest.fail("decoded"))
    with pytest.raises(InputError) as caught:
        check_folder(list_folder(tmp_path))
    assert "cannot use 3 pictures" in str(caught.value)
    for name in ("cut.jpg (truncated", "cut.png (truncated", "small.png (8x8 pixels"):
        assert name in str(caught.value)
    check_picture(tmp_path / "whole.png")


def test_hidden_files_are_no_pictures_of_a_folder(tmp_path):
    for name in ("b10.png", "b9.png", "._b9.png", ".hidden.png"):
        save(tmp_path / name, photo())
    assert [path.name for path in picture_files(tmp_path)] == ["b9.png", "b10.png"]
    assert picture_files(tmp_path / "absent") == []


# -- views


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_half_of_the_random_crops_are_mirrored_however_many_are_asked_for(n):
    """Red on the left, black on the right: where red ends up tells whether a view is mirrored."""
    pixels = np.zeros((16, 200, 3), np.uint8)
    pixels[..., 0] = np.linspace(255, 0, 200).astype(np.uint8)
    g = torch.Generator().manual_seed(0)
    views = [t for t, _ in variants(Image.fromarray(pixels), (16, 16), n, crop="random", flip=True, generator=g)]
    falling = [bool(view[0, 0, 0] > view[0, 0, -1]) for view in views]
    assert len(views) == n + n % 2
    assert sum(falling) * 2 == len(views)


def test_a_resolution_below_the_step_of_buckets_is_one_sentence():
    with pytest.raises(InputError, match=r"multiples of 64.*--resolution 64 or more"):
        make_buckets(16, 64)
