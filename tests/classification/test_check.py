"""Checks of what lies on disk."""

import pytest

from dash_vision.classification.check import check_task
from dash_vision.runs.tasks import TASKS
from tests.support.vtab import CIFAR, write_task


@pytest.fixture
def root(task_folder):
    return task_folder.parent


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


def test_labels_out_of_range_are_counted(task_folder, root):
    lines = (task_folder / "test.txt").read_text().splitlines()
    lines[3] = lines[3].rsplit(" ", 1)[0] + " 100"
    lines[4] = lines[4].rsplit(" ", 1)[0] + " 250"
    (task_folder / "test.txt").write_text("\n".join(lines))
    assert "test.txt: 2 labels outside 0 to 99, the first is 100 for 000003.png" in problems(root)


def test_unreadable_files_are_named(task_folder, root):
    (task_folder / "images/test/000001.png").unlink()
    (task_folder / "images/test/000002.png").write_bytes(b"no image at all")
    whole_file = (task_folder / "images/test/000003.png").read_bytes()
    (task_folder / "images/test/000003.png").write_bytes(whole_file[: len(whole_file) // 2])
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
def test_the_same_image_in_two_splits_is_found_by_content(task_folder, root, source, target, sentence):
    copied = (task_folder / f"images/{source}/000005.png").read_bytes()
    (task_folder / f"images/{target}/000009.png").write_bytes(copied)
    assert sentence in problems(root)


def test_a_list_that_is_not_the_union_of_its_parts_is_found(task_folder, root):
    lines = (task_folder / "train800val200.txt").read_text().splitlines()
    (task_folder / "train800val200.txt").write_text("\n".join(lines[:-1]))
    assert "train800val200.txt is not train800 and val200 together: 1 lines differ" in problems(root)


def test_small_images_stored_as_jpeg_are_a_warning_that_says_what_is_lost(tmp_path):
    write_task(tmp_path, "cifar", size=32, kind="jpg")
    warnings = "\n".join(check_task(tmp_path, CIFAR).warnings)
    assert "52 images of 32x32 pixels are stored as JPEG" in warnings
    assert "70 instead of 80 %" in warnings
    write_task(tmp_path / "large", "cifar", size=64, kind="jpg")
    assert "JPEG" not in "\n".join(check_task(tmp_path / "large", CIFAR).warnings)
