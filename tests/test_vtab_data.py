"""The layout, the checks of what lies on disk, the cache of decoded images, and the download."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from vtab_helpers import CIFAR, COUNTS, write_task

from dash_vision.classification import download as download_module
from dash_vision.classification.cache import cached, open_cache, whole
from dash_vision.classification.check import check_task
from dash_vision.classification.data import load_task
from dash_vision.classification.decode import decode, decode_chunks
from dash_vision.classification.download import download, fetch_archive
from dash_vision.classification.layout import class_names, data_root, present_tasks, read_split, task_folder
from dash_vision.files.errors import InputError
from dash_vision.runs.tasks import TASKS, find_tasks


@pytest.fixture
def folder(tmp_path):
    return write_task(tmp_path / "data")


@pytest.fixture
def root(folder):
    return folder.parent


# -- the layout


def test_a_split_lists_files_and_labels_in_order(folder):
    listing = read_split(folder, CIFAR, "test")
    assert [p.name for p in listing.paths] == [f"{i:06d}.png" for i in range(16)]
    assert listing.labels == [i % 4 for i in range(16)]


def test_without_its_own_list_train800val200_is_both_parts(folder):
    expected = read_split(folder, CIFAR, "train800val200")
    (folder / "train800val200.txt").unlink()
    found = read_split(folder, CIFAR, "train800val200")
    assert (found.paths, found.labels) == (expected.paths, expected.labels)


@pytest.mark.parametrize("name", ["cifar100", "CIFAR-100", "cifar"])
def test_a_folder_is_found_under_any_spelling(tmp_path, name):
    write_task(tmp_path, name)
    assert task_folder(tmp_path, CIFAR).name == name
    assert [t.name for t in present_tasks(tmp_path, find_tasks(["all"]))] == ["cifar"]


def test_the_task_s_own_name_goes_before_an_alias(tmp_path):
    write_task(tmp_path, "CIFAR100")
    write_task(tmp_path, "cifar")
    assert task_folder(tmp_path, CIFAR).name == "cifar"


@pytest.mark.parametrize("exists", [True, False])
def test_missing_data_says_where_how_large_and_what_to_do(tmp_path, exists):
    root = tmp_path / "here"
    if exists:
        root.mkdir()
    with pytest.raises(InputError) as caught:
        task_folder(root, CIFAR)
    sentence = str(caught.value)
    for part in (
        str(root),
        "4.7 GB",
        f"python train_vtab.py --download --data_root {root}",
        "VTAB_ROOT",
        "mini_location",
    ):
        assert part in sentence


def test_the_root_is_the_flag_then_the_environment_then_the_default(monkeypatch):
    monkeypatch.setenv("VTAB_ROOT", "/elsewhere")
    assert str(data_root("given")) == "given"
    assert str(data_root(None)) == "/elsewhere"
    monkeypatch.delenv("VTAB_ROOT")
    assert str(data_root(None)) == "data/vtab-1k"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("images/test/000000.png 100\n", r"line 1: label 100, but cifar has the labels 0 to 99"),
        ("images/test/000000.png -1\n", r"line 1: label -1"),
        ("images/test/000000.png 3\n\nimages/test/000001.png\n", r"line 3: expected `<image path> <label>`"),
        ("images/test/000000.png three\n", r"line 1: expected"),
        ("\n", r"is empty"),
        (b"\xff\xfe\x00", r"cannot read"),
    ],
)
def test_a_bad_list_is_named_with_its_line(folder, content, sentence):
    (folder / "test.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence):
        read_split(folder, CIFAR, "test")


def test_a_missing_list_is_explained_by_the_layout(folder):
    (folder / "val200.txt").unlink()
    with pytest.raises(InputError, match=r"val200\.txt is not there; the layout is cifar/\{train800,"):
        read_split(folder, CIFAR, "val200")


def test_class_names_come_from_an_optional_file(folder):
    assert class_names(folder, CIFAR)[7] == "class 7"
    (folder / "classes.txt").write_text("\n".join(f"thing {i}" for i in range(100)))
    assert class_names(folder, CIFAR)[7] == "thing 7"
    (folder / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match="has 2 names, but cifar has 100"):
        class_names(folder, CIFAR)


# -- check_data


def official(tmp_path, kind="png"):
    """A tiny picture for every image of the smallest task, KITTI, so that all counts are right."""
    task = TASKS["kitti"]
    counts = {split: task.size(split) for split in ("train800", "val200", "test")}
    return write_task(tmp_path / "data", "kitti", counts, classes=4, size=4, kind=kind), task


def test_good_data_has_nothing_to_report(tmp_path):
    folder, task = official(tmp_path)
    report = check_task(folder.parent, task)
    assert (report.problems, report.warnings) == ([], [])
    assert report.counts == {"train800": 800, "val200": 200, "train800val200": 1000, "test": 711}
    assert next(report.lines()).startswith("kitti: ok (train800 800")


def problems(root):
    return "\n".join(check_task(root, CIFAR).problems)


def test_wrong_counts_are_problems_in_training_and_warnings_in_test(root):
    report = check_task(root, CIFAR)
    assert any("train800 lists 24 images, the official split has 800" in p for p in report.problems)
    assert any("test lists 16" in w and "cannot be compared" in w for w in report.warnings)
    assert any("no example of 96 of the 100 classes" in w for w in report.warnings)


def test_labels_out_of_range_are_counted(folder, root):
    lines = (folder / "test.txt").read_text().splitlines()
    lines[3] = lines[3].rsplit(" ", 1)[0] + " 100"
    lines[4] = lines[4].rsplit(" ", 1)[0] + " 250"
    (folder / "test.txt").write_text("\n".join(lines))
    assert "test.txt: 2 labels outside 0 to 99, the first is 100 for 000003.png" in problems(root)


def test_unreadable_files_are_named(folder, root):
    (folder / "images/test/000001.png").unlink()
    (folder / "images/test/000002.png").write_bytes(b"no image at all")
    whole_file = (folder / "images/test/000003.png").read_bytes()
    (folder / "images/test/000003.png").write_bytes(whole_file[: len(whole_file) // 2])
    found = problems(root)
    assert "3 image files cannot be read: images/test/000001.png (No such file" in found
    assert "images/test/000003.png" in found


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        (
            "train800",
            "test",
            "both in train800val200 and in test (000005.png = 000009.png): test accuracy measures memory",
        ),
        ("val200", "test", "both in train800val200 and in test"),
        ("train800", "val200", "both in train800 and in val200"),
    ],
)
def test_the_same_image_in_two_splits_is_found_by_content(folder, root, source, target, sentence):
    copied = (folder / f"images/{source}/000005.png").read_bytes()
    (folder / f"images/{target}/000009.png").write_bytes(copied)
    assert sentence in problems(root)


def test_a_list_that_is_not_the_union_of_its_parts_is_found(folder, root):
    lines = (folder / "train800val200.txt").read_text().splitlines()
    (folder / "train800val200.txt").write_text("\n".join(lines[:-1]))
    assert "train800val200.txt is not train800 and val200 together: 1 lines differ" in problems(root)


def test_small_images_stored_as_jpeg_are_a_warning_that_says_what_is_lost(tmp_path):
    write_task(tmp_path, "cifar", size=32, kind="jpg")
    warnings = "\n".join(check_task(tmp_path, CIFAR).warnings)
    assert "52 images of 32x32 pixels are stored as JPEG" in warnings
    assert "70 instead of 80 %" in warnings
    write_task(tmp_path / "large", "cifar", size=64, kind="jpg")
    assert "JPEG" not in "\n".join(check_task(tmp_path / "large", CIFAR).warnings)


# -- decoding and the cache


def test_an_image_becomes_the_bicubic_resize_of_the_whole_picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.array(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(decode(tmp_path / "a.png", 16).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    colour = {"RGBA": (9, 30, 60, 128), "CMYK": (9, 30, 60, 12)}.get(mode, 3)
    Image.new(mode, (9, 9), colour).save(tmp_path / f"a.{suffix}")
    assert decode(tmp_path / f"a.{suffix}", 8).shape == (3, 8, 8)


def test_a_bad_image_is_named_when_it_is_met(folder, tmp_path):
    (folder / "images/train800/000002.png").write_bytes(b"broken")
    data = load_task(CIFAR, str(folder.parent), 16, tmp_path / "cache")
    with pytest.raises(InputError, match=r"000002\.png cannot be read as an image.*--check_data"):
        data.split("train800")
    assert not list((tmp_path / "cache").glob("*train800-*"))


def test_the_cache_gives_what_decoding_gives_and_is_not_made_twice(folder, tmp_path, monkeypatch):
    paths = read_split(folder, CIFAR, "test").paths
    expected = torch.cat(list(decode_chunks(paths, 16)))
    assert torch.equal(whole(cached("t", paths, 16, tmp_path / "cache")), expected)
    monkeypatch.setattr("dash_vision.classification.cache.decode_chunks", None)
    assert torch.equal(whole(cached("t", paths, 16, tmp_path / "cache")), expected)


def test_changed_images_are_never_read_from_an_old_cache(folder, tmp_path):
    paths = read_split(folder, CIFAR, "test").paths
    before = whole(cached("t", paths, 16, tmp_path / "cache"))
    paths[0].write_bytes(paths[1].read_bytes())
    after = whole(cached("t", paths, 16, tmp_path / "cache"))
    assert torch.equal(after[0], before[1])
    assert torch.equal(after[1:], before[1:])


def test_a_cut_cache_file_is_made_anew(folder, tmp_path):
    paths = read_split(folder, CIFAR, "test").paths
    expected = whole(cached("t", paths, 16, tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert open_cache(file, 16, 16) is None
    assert torch.equal(whole(cached("t", paths, 16, tmp_path / "cache")), expected)


def test_without_a_cache_or_above_its_limit_nothing_is_written(folder, tmp_path):
    paths = read_split(folder, CIFAR, "test").paths
    expected = torch.cat(list(decode_chunks(paths, 16)))
    assert torch.equal(whole(cached("t", paths, 16, None)), expected)
    assert torch.equal(whole(cached("t", paths, 16, tmp_path / "cache", limit=16 * 3 * 16 * 16 - 1)), expected)
    assert not (tmp_path / "cache").exists()
    cached("t", paths, 16, tmp_path / "cache", limit=16 * 3 * 16 * 16)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    images = cached("t", read_split(folder, CIFAR, "test").paths, 16, tmp_path / "file" / "cache")
    assert whole(images).shape == (16, 3, 16, 16)


def test_a_task_on_disk_gives_its_splits(folder):
    data = load_task(CIFAR, str(folder.parent), 16, None)
    assert data.sizes == {**COUNTS, "train800val200": 36}
    assert not data.official
    both, train, val = (data.split(s) for s in ("train800val200", "train800", "val200"))
    assert torch.equal(both.images, torch.cat([train.images, val.images]))
    assert torch.equal(both.labels, torch.cat([train.labels, val.labels]))
    with pytest.raises(ValueError, match="split is one of train800, val200, train800val200, got 'test'"):
        data.split("test")


# -- the download


def archive(tmp_path, prefix="vtab-1k/", names=("cifar", "svhn")):
    file = tmp_path / "vtab.zip"
    with zipfile.ZipFile(file, "w") as out:
        for name in names:
            folder = write_task(tmp_path / "source", name)
            for path in sorted(folder.rglob("*")):
                out.write(path, f"{prefix}{name}/{path.relative_to(folder)}")
    return file


@pytest.mark.parametrize("prefix", ["", "vtab-1k/", "a/b/"])
def test_an_archive_is_unpacked_whatever_folder_it_wraps_the_tasks_in(tmp_path, prefix):
    file = archive(tmp_path, prefix)
    root = tmp_path / "root"
    assert download(root, lambda: file) == ["cifar", "svhn"]
    assert load_task(CIFAR, str(root), 16, None).sizes["test"] == 16
    assert sorted(p.name for p in root.iterdir()) == ["cifar", "svhn"]


def test_what_is_there_already_is_left_alone(tmp_path):
    file = archive(tmp_path)
    mine = tmp_path / "root" / "cifar"
    mine.mkdir(parents=True)
    assert download(tmp_path / "root", lambda: file) == ["svhn"]
    assert list(mine.iterdir()) == []


def test_an_archive_that_climbs_out_of_its_folder_is_refused(tmp_path):
    file = archive(tmp_path)
    with zipfile.ZipFile(file, "a") as out:
        out.writestr("vtab-1k/cifar/../../../evil.txt", "x")
    with pytest.raises(InputError, match="outside its folder"):
        download(tmp_path / "root", lambda: file)
    assert list((tmp_path / "root").iterdir()) == []


def test_other_archives_are_refused_in_words(tmp_path):
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as out:
        out.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="not a VTAB-1k archive"):
        download(tmp_path / "root", lambda: other)
    other.write_bytes(b"PK but not really")
    with pytest.raises(InputError, match="damaged"):
        download(tmp_path / "root", lambda: other)


def test_a_failed_fetch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "_NEEDED_BYTES", 0)
    with pytest.raises(InputError, match=r"could not fetch the hub dataset XiN0919/VTAB-1k .*check the network"):
        download(tmp_path / "root")


def test_the_archive_is_that_of_the_revision(tmp_path, monkeypatch):
    asked = []

    def listed(self, repo, **options):
        asked.append((repo, options))
        return ["README.md", "vtab-1k.zip"]

    def fetched(repo, name, **options):
        asked.append((repo, options))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", listed)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    assert fetch_archive("abc123") == tmp_path / "vtab-1k.zip"
    assert asked == [("XiN0919/VTAB-1k", {"repo_type": "dataset", "revision": "abc123"})] * 2


def test_a_full_disk_is_noticed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "_NEEDED_BYTES", 10**18)
    with pytest.raises(InputError, match=r"GB free; the data needs 4\.7 GB"):
        download(tmp_path / "root")
