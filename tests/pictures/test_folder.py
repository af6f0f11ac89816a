"""What else lies in a folder of pictures is skipped, counted and said."""

from __future__ import annotations

import os

import pytest

from tests.support.pictures import note, photo, read, refusal, save


def test_strays_are_skipped_counted_and_said(tmp_path):
    save(tmp_path / "a.png", photo())
    for name in ("notes.txt", "Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", "clip.mp4"):
        (tmp_path / name).write_bytes(b"BM is how this text begins, and it is no bitmap")
    for name in (".ipynb_checkpoints", "__MACOSX", "more"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "b.png", photo())
    pictures = read(tmp_path)
    assert len(pictures) == 1
    said = note(pictures, "skipped")
    assert said.startswith("skipped 8 files that are no images: ")
    names = set(said.split(": ")[1].split(", "))
    assert names >= {"notes.txt", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints", "__MACOSX", "._a.png"}
    assert note(pictures, "subfolder") == "did not look into 1 subfolder: more"


def test_masks_of_other_trainers_are_said(tmp_path):
    for number, name in enumerate(("01.png", "01-masklabel.png", "02.png", "gas_mask.png")):
        save(tmp_path / name, photo(48 + number))
    pictures = read(tmp_path)
    assert len(pictures) == 4
    assert "1 picture named like the mask of another" in note(pictures, "mask")
    assert "01-masklabel.png" in note(pictures, "mask")


def test_copies_of_a_picture_are_said(tmp_path):
    save(tmp_path / "a.png", photo())
    save(tmp_path / "b.bmp", photo())  # other bytes, the same pixels
    save(tmp_path / "c.png", photo()[:, ::-1])
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes())
    pictures = read(tmp_path)
    assert len(pictures) == 4
    assert note(pictures, "same") == (
        "2 pictures the same as another one, which so counts more than once (remove copies): b.bmp (as a.png), d.png "
        "(as a.png)"
    )


def test_backups_and_downloads_under_way_are_no_pictures(tmp_path):
    save(tmp_path / "a.png", photo())
    data = (tmp_path / "a.png").read_bytes()
    for name in ("a.png~", "a.png.bak", "b.jpg.ORIG", "c.png.part", "d.png.crdownload"):
        (tmp_path / name).write_bytes(data)
    pictures = read(tmp_path)
    assert [picture.name for picture in pictures.images] == ["a.png"]
    assert note(pictures, "skipped").startswith("skipped 5 files that are no images")


def test_repeats_in_a_folder_name_are_no_copies(tmp_path):
    for folder, pixels in (("10_cat", photo()), ("2_dog", photo()[::-1])):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "a.png", pixels)
    assert not any("same as another" in text for text in read(tmp_path).notes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    save(tmp_path / "a.png", photo())
    os.mkfifo(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "a.txt")
    assert "b.jpg" in note(read(tmp_path), "skipped 2 files")
    assert "b.jpg" in refusal(tmp_path / "b.jpg")


def test_missing_and_misspelt_folders(tmp_path):
    (tmp_path / "teapot").mkdir()
    assert "did you mean" in refusal(tmp_path / "teapto")
    assert "there is no folder" in refusal(tmp_path / "x" / "y")
    for odd in ("", "  ", "a\0b", "~no_such_user/cat", "n" * 5000):
        refusal(odd)


def test_empty_folders_say_what_they_hold(tmp_path):
    assert "is empty" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "1 other file (notes.txt)" in refusal(tmp_path)
    (tmp_path / "photos").mkdir()
    assert "1 subfolder (photos); put pictures into it" in refusal(tmp_path)
    save(tmp_path / "photos" / "a.png", photo())
    assert "photos instead" in refusal(tmp_path)


def test_a_file_of_another_kind_is_not_a_folder(tmp_path):
    (tmp_path / "cats.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    assert "is a ZIP archive; unpack it first" in refusal(tmp_path / "cats.zip")
    (tmp_path / "cats.md").write_text("# Cats")
    assert "a file that is no picture" in refusal(tmp_path / "cats.md")
    assert "not a directory" in refusal(tmp_path / "cats.md" / "a")
