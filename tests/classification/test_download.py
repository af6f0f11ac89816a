"""The download of VTAB-1k, without a network."""

import zipfile

import pytest

from dash_vision.classification import download as download_module
from dash_vision.classification.data import load_task
from dash_vision.classification.download import download, fetch_archive
from dash_vision.files.errors import InputError
from tests.support.vtab import CIFAR, write_task


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
