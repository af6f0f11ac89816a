"""The layout of VTAB-1k on disk."""

import pytest

from dash_vision.classification.layout import class_names, data_root, present_tasks, read_split, task_folder
from dash_vision.files.errors import InputError
from dash_vision.runs.tasks import find_tasks
from tests.support.vtab import CIFAR, write_task


def test_a_split_lists_files_and_labels_in_order(task_folder):
    listing = read_split(task_folder, CIFAR, "test")
    assert [p.name for p in listing.paths] == [f"{i:06d}.png" for i in range(16)]
    assert listing.labels == [i % 4 for i in range(16)]


def test_without_its_own_list_train800val200_is_both_parts(task_folder):
    expected = read_split(task_folder, CIFAR, "train800val200")
    (task_folder / "train800val200.txt").unlink()
    found = read_split(task_folder, CIFAR, "train800val200")
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
def test_a_bad_list_is_named_with_its_line(task_folder, content, sentence):
    (task_folder / "test.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence):
        read_split(task_folder, CIFAR, "test")


def test_a_missing_list_is_explained_by_the_layout(task_folder):
    (task_folder / "val200.txt").unlink()
    with pytest.raises(InputError, match=r"val200\.txt is not there; the layout is cifar/\{train800,"):
        read_split(task_folder, CIFAR, "val200")


def test_class_names_come_from_an_optional_file(task_folder):
    assert class_names(task_folder, CIFAR)[7] == "class 7"
    (task_folder / "classes.txt").write_text("\n".join(f"thing {i}" for i in range(100)))
    assert class_names(task_folder, CIFAR)[7] == "thing 7"
    (task_folder / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match="has 2 names, but cifar has 100"):
        class_names(task_folder, CIFAR)
