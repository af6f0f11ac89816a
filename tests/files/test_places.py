"""Links keep their own names."""

import os
from pathlib import Path

from dash_vision.bases.backbones import describe
from dash_vision.bases.loading import load_again, load_base
from dash_vision.classification.trained import _resolved
from dash_vision.files.places import from_root
from dash_vision.pictures.names import name_of
from tests.support.single_file import save_single_file


def linked(target, link):
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    return link


def test_the_last_part_of_a_path_is_kept_and_those_before_it_are_resolved(tmp_path, monkeypatch):
    (tmp_path / "data" / "2024").mkdir(parents=True)
    link = linked(tmp_path / "data" / "2024", tmp_path / "dog")
    monkeypatch.chdir(link)
    here = Path(os.path.realpath(tmp_path))
    assert from_root(link) == here / "dog"
    assert from_root(link / "x") == here / "data" / "2024" / "x"
    assert from_root(".") == here / "data" / "2024"
    assert from_root("..") == here / "data"


def test_pictures_in_a_linked_folder_are_of_what_the_link_is_called(tmp_path):
    (tmp_path / "0193ab").mkdir()
    assert name_of(linked(tmp_path / "0193ab", tmp_path / "my_dog")).words == "my dog"


def test_a_base_in_the_hubs_cache_is_found_again_from_its_record(bases, tmp_path):
    """The cache links names to files that are called after their digests and have no suffix."""
    blob = save_single_file(load_base(str(bases / "sd")).pipeline, tmp_path / "made.safetensors").rename(
        tmp_path / "9f2c"
    )
    file = linked(blob, tmp_path / "snapshots" / "model.safetensors")
    base = load_base(str(file), single_file_config=str(bases / "sd"))
    assert load_again(base.specification).identity() == base.identity()


def test_a_checkpoint_in_the_hubs_cache_is_noted_by_its_name(tmp_path):
    (tmp_path / "9f2c").write_bytes(b"weights")
    file = linked(tmp_path / "9f2c", tmp_path / "snapshots" / "model.npz")
    backbone = describe("vit_tiny_patch16_224", checkpoint=str(file))
    assert _resolved({}, backbone)["backbone"]["checkpoint"] == os.path.realpath(file.parent) + "/model.npz"
