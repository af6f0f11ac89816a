"""Decoding images and the cache of decoded images."""

import numpy as np
import pytest
import torch
from PIL import Image

from dash_vision.classification.cache import cached, open_cache, whole
from dash_vision.classification.data import load_task
from dash_vision.classification.decode import decode, decode_chunks
from dash_vision.classification.layout import read_split
from dash_vision.files.errors import InputError
from tests.support.vtab import CIFAR, COUNTS


def test_an_image_becomes_the_bicubic_resize_of_the_whole_picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.array(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(decode(tmp_path / "a.png", 16).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (9, 9), 3 if mode in ("L", "P", "I;16") else None).save(tmp_path / f"a.{suffix}")
    assert decode(tmp_path / f"a.{suffix}", 8).shape == (3, 8, 8)


def test_a_bad_image_is_named_when_it_is_met(task_folder, tmp_path):
    (task_folder / "images/train800/000002.png").write_bytes(b"broken")
    data = load_task(CIFAR, str(task_folder.parent), 16, tmp_path / "cache")
    with pytest.raises(InputError, match=r"000002\.png cannot be read as an image.*--check_data"):
        data.split("train800")
    assert not list((tmp_path / "cache").glob("*train800-*"))


def test_the_cache_gives_what_decoding_gives_and_is_not_made_twice(task_folder, tmp_path, monkeypatch):
    paths = read_split(task_folder, CIFAR, "test").paths
    expected = torch.cat(list(decode_chunks(paths, 16)))
    assert torch.equal(whole(cached("t", paths, 16, tmp_path / "cache")), expected)
    monkeypatch.setattr("dash_vision.classification.cache.decode_chunks", None)
    assert torch.equal(whole(cached("t", paths, 16, tmp_path / "cache")), expected)


def test_changed_images_are_never_read_from_an_old_cache(task_folder, tmp_path):
    paths = read_split(task_folder, CIFAR, "test").paths
    before = whole(cached("t", paths, 16, tmp_path / "cache"))
    paths[0].write_bytes(paths[1].read_bytes())
    after = whole(cached("t", paths, 16, tmp_path / "cache"))
    assert torch.equal(after[0], before[1])
    assert torch.equal(after[1:], before[1:])


def test_a_cut_cache_file_is_made_anew(task_folder, tmp_path):
    paths = read_split(task_folder, CIFAR, "test").paths
    expected = whole(cached("t", paths, 16, tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert open_cache(file, 16, 16) is None
    assert torch.equal(whole(cached("t", paths, 16, tmp_path / "cache")), expected)


def test_without_a_cache_or_above_its_limit_nothing_is_written(task_folder, tmp_path):
    paths = read_split(task_folder, CIFAR, "test").paths
    expected = torch.cat(list(decode_chunks(paths, 16)))
    assert torch.equal(whole(cached("t", paths, 16, None)), expected)
    assert torch.equal(whole(cached("t", paths, 16, tmp_path / "cache", limit=16 * 3 * 16 * 16 - 1)), expected)
    assert not (tmp_path / "cache").exists()
    cached("t", paths, 16, tmp_path / "cache", limit=16 * 3 * 16 * 16)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_no_error(task_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    images = cached("t", read_split(task_folder, CIFAR, "test").paths, 16, tmp_path / "file" / "cache")
    assert whole(images).shape == (16, 3, 16, 16)


def test_a_task_on_disk_gives_its_splits(task_folder):
    data = load_task(CIFAR, str(task_folder.parent), 16, None)
    assert data.sizes == {**COUNTS, "train800val200": 36}
    assert not data.official
    both, train, val = (data.split(s) for s in ("train800val200", "train800", "val200"))
    assert torch.equal(both.images, torch.cat([train.images, val.images]))
    assert torch.equal(both.labels, torch.cat([train.labels, val.labels]))
    with pytest.raises(ValueError, match="split is one of train800, val200, train800val200, got 'test'"):
        data.split("test")
