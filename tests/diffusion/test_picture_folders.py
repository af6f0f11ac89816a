"""Which pictures a run trains on: its folders, their names, the class pictures, and how often each is decoded."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, features

import dash_vision.pictures.folder as folder_module
from tests.support.pictures import save_pictures
from tests.support.scripts import dreambooth

PRIOR = ("--with_prior_preservation", "--num_class_images", 4, "--instance_prompt", "a photo of sks cat")


def run(bases, out, capsys, *more):
    """Status and what a short run says."""
    try:
        status = dreambooth(bases, out, "--checkpointing_steps", 0, *more)
    except SystemExit as leave:  # settings that contradict each other
        status = leave.code
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.fixture
def decoded(monkeypatch):
    """How often each file was decoded."""
    counts = Counter()
    read = folder_module.read_picture

    def counting(path, *more, **options):
        counts[path.name] += 1
        return read(path, *more, **options)

    monkeypatch.setattr(folder_module, "read_picture", counting)
    return counts


def test_every_picture_is_decoded_once(bases, tmp_path, capsys, decoded):
    save_pictures(tmp_path / "own", 4)
    assert run(bases, tmp_path / "out", capsys, *PRIOR, "--class_data_dir", tmp_path / "own")[0] == 0
    assert decoded == {**{f"{i}.png": 2 for i in range(4)}, "4.png": 1}  # 0 to 3 are in both folders


def test_a_bad_picture_is_found_before_the_base_is_looked_for(bases, tmp_path, capsys):
    save_pictures(tmp_path / "dog")
    data = (tmp_path / "dog/1.png").read_bytes()
    (tmp_path / "dog/1.png").write_bytes(data[: len(data) // 2])
    words = ("--instance_data", tmp_path / "dog", "--pretrained_model_name_or_path", tmp_path / "absent")
    status, said = run(bases, tmp_path / "out", capsys, *words)
    assert status == 2
    assert "1.png (truncated or damaged)" in said


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("10_sks dog", "a photo of sks dog"),
        ("1_ohwx man", "a photo of ohwx man"),
        ("sks_cat", "a photo of sks cat"),
        ("20_zwx", "a photo of zwx"),
        ("r2d2", "a photo of sks r2d2"),
        ("cafe\u0301", "a photo of sks caf\u00e9"),
    ],
)
def test_the_prompt_follows_from_the_folders_name(bases, tmp_path, capsys, name, prompt):
    save_pictures(tmp_path / name, 2)
    status, said = run(bases, tmp_path / "out", capsys, "--instance_data", tmp_path / name)
    assert status == 0
    assert f'prompt: "{prompt}"' in said
    assert json.loads((tmp_path / "out/run.json").read_text())["instance_prompt"] == prompt
    assert ("10 repeats" in said) == name.startswith("10_")


def test_kohyas_folder_of_subfolders_is_trained_on(bases, tmp_path, capsys):
    save_pictures(tmp_path / "set/10_sks dog", 2)
    save_pictures(tmp_path / "set/5_ohwx man", 1)
    status, said = run(bases, tmp_path / "out", capsys, "--instance_data", tmp_path / "set")
    assert status == 0
    assert "pictures: 3 in" in said
    assert '"a photo of sks dog" (from its name)' in said
    assert '"a photo of ohwx man" (from its name)' in said


def test_subfolders_of_several_classes_need_a_class_prompt(bases, tmp_path, capsys):
    save_pictures(tmp_path / "set/1_sks dog", 1)
    save_pictures(tmp_path / "set/1_ohwx man", 1)
    words = ("--instance_data", tmp_path / "set", "--with_prior_preservation")
    status, said = run(bases, tmp_path / "out", capsys, *words)
    assert status == 2
    assert "several classes (man, dog)" in said


# -- class pictures


@pytest.mark.parametrize(
    ("suffix", "format"),
    [
        ("bmp", "BMP"),
        ("tif", "TIFF"),
        ("gif", "GIF"),
        ("jfif", "JPEG"),
        pytest.param("avif", "AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF")),
    ],
)
def test_own_class_pictures_of_every_readable_kind_count(bases, tmp_path, capsys, suffix, format):
    own = tmp_path / "own"
    own.mkdir()
    for i in range(4):
        Image.new("RGB", (20, 20), (60 * i, 90, 120)).save(own / f"dog{i}.{suffix}", format)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    status, said = run(bases, tmp_path / "out", capsys, *PRIOR, "--class_data_dir", own)
    assert status == 0
    assert "none generated" in said
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_what_is_missing_is_generated_beside_own_pictures_and_never_over_them(bases, tmp_path, capsys):
    own = save_pictures(tmp_path / "own", 2)
    for i in range(2):
        (own / f"{i}.png").rename(own / f"000{i}.png")  # the names that generated ones have
        (own / f"._000{i}.png").write_bytes(b"\0\5\x16\7" + bytes(60))
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    status, said = run(bases, tmp_path / "out", capsys, *PRIOR, "--class_data_dir", own)
    assert status == 0
    assert "class pictures: 2 in" in said
    assert "generating 2 of" in said
    assert {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()} == before
    made = sorted(path.name for path in (own / "generated").iterdir())
    assert made == ["0000.png", "0001.png", "made_for.json"]
    assert "none generated" in run(bases, tmp_path / "out2", capsys, *PRIOR, "--class_data_dir", own)[1]
    (own / "0000.png").unlink()  # one fewer of the user's own: one more is made, the others stay
    first = np.asarray(Image.open(own / "generated/0000.png"))
    assert "generating 1 of" in run(bases, tmp_path / "out3", capsys, *PRIOR, "--class_data_dir", own)[1]
    assert np.array_equal(first, np.asarray(Image.open(own / "generated/0000.png")))
    assert len(list((own / "generated").glob("*.png"))) == 3


def test_an_unreadable_own_class_picture_is_named_before_anything_is_generated(bases, tmp_path, capsys):
    own = save_pictures(tmp_path / "own", 2)
    (own / "1.png").write_bytes(b"no picture")
    status, said = run(bases, tmp_path / "out", capsys, *PRIOR, "--class_data_dir", own)
    assert status == 2
    assert "1.png (named like a picture but none inside)" in said
    assert not (own / "generated").exists()


def test_generated_class_pictures_of_something_else_are_refused(bases, tmp_path, capsys):
    own = tmp_path / "own"
    assert run(bases, tmp_path / "out", capsys, *PRIOR, "--class_data_dir", own)[0] == 0
    words = (*PRIOR, "--class_data_dir", own, "--class_prompt", "a photo of a lion")
    status, said = run(bases, tmp_path / "out2", capsys, *words)
    assert status == 2
    assert "were generated for" in said
    (own / "generated/made_for.json").unlink()
    status, said = run(bases, tmp_path / "out2", capsys, *words)
    assert status == 2
    assert "unknown origin" in said


# -- results are no pictures


def test_the_folder_of_the_pictures_is_no_output_folder(bases, tmp_path, capsys):
    save_pictures(tmp_path / "dog", 2)
    (tmp_path / "link").symlink_to(tmp_path / "dog")
    for out in (tmp_path / "dog", tmp_path / "x/../dog", tmp_path / "link"):
        status, said = run(bases, out, capsys, "--instance_data", tmp_path / "dog")
        assert status == 2
        assert "is the folder of the pictures" in said
    assert len(list((tmp_path / "dog").iterdir())) == 2


def test_an_output_folder_inside_that_of_the_pictures_is_not_trained_on(bases, tmp_path, capsys):
    save_pictures(tmp_path / "dog", 2)
    for _ in range(2):
        status, said = run(bases, tmp_path / "dog/out", capsys, "--instance_data", tmp_path / "dog", "--overwrite")
        assert status == 0
        assert "pictures: 2 in" in said
    assert "did not look into 1 subfolder: out" in said


def test_an_earlier_output_is_no_folder_of_pictures(bases, tmp_path, capsys):
    assert run(bases, tmp_path / "out", capsys)[0] == 0
    for words in (("--instance_data", tmp_path / "out"), (*PRIOR, "--class_data_dir", tmp_path / "out")):
        status, said = run(bases, tmp_path / "out2", capsys, *words)
        assert status == 2
        assert "output folder of a run" in said


@pytest.mark.parametrize("folder", ["cat", "out"])
def test_the_folder_of_the_class_is_its_own(bases, tmp_path, capsys, folder):
    place = bases / "cat" if folder == "cat" else tmp_path / "out"
    status, said = run(bases, tmp_path / "out", capsys, *PRIOR, "--class_data_dir", place)
    assert status == 2
    assert "--class_data_dir" in said
