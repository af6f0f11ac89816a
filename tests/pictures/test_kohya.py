"""Folders as kohya's trainers have them: REPEATS_NAME CLASS, alone or side by side in one folder."""

from pathlib import Path

from dash_vision.pictures.folder import list_folder, read_folder, subfolder_names
from dash_vision.pictures.names import FolderName
from tests.support.pictures import note, photo, read, refusal, save


def fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        save(folder / f"{i}.png", photo())


def prompt(name):
    return f"a photo of {name.words}"


def test_subfolders_are_read_with_their_repeats(tmp_path):
    fill(tmp_path / "10_sks dog", 2)
    fill(tmp_path / "5_ohwx toy", 1)
    fill(tmp_path / "drafts", 1)
    pictures = read(tmp_path)
    assert {image.name: image.repeats for image in pictures.images} == {
        "5_ohwx toy/0.png": 1,
        "10_sks dog/0.png": 2,
        "10_sks dog/1.png": 2,
    }
    assert "1 (5_ohwx toy/), 2 (10_sks dog/)" in note(pictures, "proportion")
    assert note(pictures, "did not look into") == "did not look into 1 subfolder: drafts"
    assert subfolder_names(tmp_path) == [FolderName("ohwx toy", 5), FolderName("sks dog", 10)]


def test_each_subject_has_its_own_prompt_and_captions_come_first(tmp_path):
    fill(tmp_path / "1_sks dog", 2)
    fill(tmp_path / "1_ohwx toy", 1)
    (tmp_path / "1_sks dog" / "1.caption").write_text("a running sks dog")
    pictures = read(tmp_path, prompt=prompt)
    assert {image.name: image.caption for image in pictures.images} == {
        "1_ohwx toy/0.png": "a photo of ohwx toy",
        "1_sks dog/0.png": "a photo of sks dog",
        "1_sks dog/1.png": "a running sks dog",
    }
    assert '"a photo of ohwx toy"' in note(pictures, "prompt of 1_ohwx toy")


def test_one_subject_in_two_subfolders_is_left_to_the_prompt_of_the_run(tmp_path):
    fill(tmp_path / "1_sks dog", 1)
    fill(tmp_path / "3_sks dog", 1)
    pictures = read(tmp_path, prompt=prompt)
    assert [(image.caption, image.repeats) for image in pictures.images] == [(None, 1), (None, 3)]


def test_a_single_subfolder_is_read_and_its_repeats_are_said_to_mean_nothing(tmp_path):
    fill(tmp_path / "10_sks dog", 2)
    for folder in (tmp_path, tmp_path / "10_sks dog"):
        pictures = read(folder)
        assert [image.repeats for image in pictures.images] == [1, 1]
        assert "10 repeats" in note(pictures, "make no difference")


def test_equal_repeats_are_said_to_mean_nothing(tmp_path):
    fill(tmp_path / "10_sks dog", 1)
    fill(tmp_path / "10_ohwx toy", 1)
    pictures = read(tmp_path)
    assert [image.repeats for image in pictures.images] == [1, 1]
    assert "all pictures have the same" in note(pictures, "make no difference")


def test_a_folder_with_pictures_of_its_own_is_read_alone(tmp_path):
    fill(tmp_path / "10_sks dog", 2)
    save(tmp_path / "a.png", photo())
    pictures = read(tmp_path)
    assert [image.name for image in pictures.images] == ["a.png"]
    assert "10_sks dog" in note(pictures, "did not look into")
    assert subfolder_names(tmp_path) == []


def test_subfolders_without_repeats_are_named_with_the_one_to_give(tmp_path):
    fill(tmp_path / "dog", 1)
    assert "give " + str(tmp_path / "dog") in refusal(tmp_path)


def test_repeats_beyond_reason_are_refused(tmp_path):
    fill(tmp_path / "1_sks dog", 1)
    fill(tmp_path / "9999_ohwx toy", 1)
    assert "1, 9999" in refusal(tmp_path)


def test_a_bad_picture_is_named_with_its_subfolder(tmp_path):
    fill(tmp_path / "1_sks dog", 1)
    fill(tmp_path / "2_ohwx toy", 1)
    (tmp_path / "2_ohwx toy" / "0.png").write_bytes(b"no picture")
    assert "2_ohwx toy/0.png" in refusal(tmp_path)


def test_the_output_of_a_run_is_never_read_as_pictures(tmp_path):
    fill(tmp_path / "1_sks dog", 1)
    fill(tmp_path / "2_out", 1)
    for folder in (tmp_path / "2_out", tmp_path / "dash-out"):
        folder.mkdir(exist_ok=True)
        save(folder / "samples.png", photo())
        for name in ("run.json", "dash_adapter.safetensors"):
            (folder / name).write_text("{}")
    assert [file.name for file in list_folder(tmp_path).files] == ["1_sks dog/0.png"]
    assert "output folder of a run" in refusal(tmp_path / "dash-out")


def test_names_alone_are_listed_without_opening_a_picture(tmp_path, monkeypatch):
    fill(tmp_path / "1_sks dog", 2)
    monkeypatch.setattr("PIL.Image.open", lambda *a, **b: (_ for _ in ()).throw(AssertionError("opened")))
    assert len(list_folder(tmp_path).files) == 2


def test_reading_and_listing_agree(tmp_path):
    fill(tmp_path / "2_sks dog", 2)
    fill(tmp_path / "3_sks dog", 1)
    names = [file.name for file in list_folder(tmp_path).files]
    assert names == [image.name for image in read_folder(tmp_path, resolution=16).images]
