"""--dataset_name: a data set's pictures are read like those of a folder."""

import json
import sys

import pytest
from PIL import Image

from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.dataset import dataset_pictures
from dash_vision.files.errors import InputError
from tests.support.dreambooth import settings, train

datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def imagefolder(folder, count=3, side=20):
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (side, side), (i * 60, 0, 0)).save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "words": f"a photo {i}"}) for i in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def config(source, **changes):
    common = {"dataset_name": str(source), "instance_prompt": "a photo of sks cat"}
    return DreamBoothConfig(**{**common, **changes})


def test_a_run_trains_on_a_data_set_with_its_captions(bases, tmp_path):
    source = imagefolder(tmp_path / "source")
    named = {"instance_data_dir": "", "dataset_name": str(source), "instance_prompt": "a photo of sks cat"}
    job = train(settings(bases, tmp_path / "out", caption_column="words", **named))
    assert [e.prompt for e in job.material.examples] == ["a photo 0", "a photo 1", "a photo 2"]
    assert [image.getpixel((0, 0)) for image in job.material.inputs] == [(i * 60, 0, 0) for i in range(3)]
    arguments = json.loads((tmp_path / "out/run.json").read_text())["arguments"]
    assert (arguments["dataset_name"], arguments["caption_column"]) == (str(source), "words")


def test_pictures_are_the_bytes_of_the_data_set_written_once(tmp_path):
    source = imagefolder(tmp_path / "source")
    folder = dataset_pictures(config(source), tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert (folder / "00001.png").read_bytes() == (source / "1.png").read_bytes()
    (source / "1.png").unlink()  # a run that is resumed goes on with what it had
    assert dataset_pictures(config(source), tmp_path / "out") == folder
    other = dataset_pictures(config(imagefolder(tmp_path / "other", 1)), tmp_path / "out")
    assert [path.name for path in other.iterdir()] == ["00000.png"]


def test_a_column_of_any_name_holds_the_pictures_and_bytes_need_no_file(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    picture = Image.new("RGB", (20, 20), (9, 8, 7))
    rows = datasets.Dataset.from_dict(
        {"jpeg": [picture], "text": ["x"]},
        features=datasets.Features(jpeg=datasets.Image(), text=datasets.Value("string")),
    )
    rows.to_parquet(source / "train.parquet")
    folder = dataset_pictures(config(source, image_column="jpeg"), tmp_path / "out")
    (written,) = folder.iterdir()
    assert Image.open(written).getpixel((0, 0)) == (9, 8, 7)
    with pytest.raises(InputError, match=r"no column 'image'; its columns are jpeg, text: give one by --image_column"):
        dataset_pictures(config(source), tmp_path / "out2")
    with pytest.raises(InputError, match=r"'text' .* holds no pictures"):
        dataset_pictures(config(source, image_column="text"), tmp_path / "out3")
    with pytest.raises(InputError, match=r"has no column 'caption'.*--caption_column"):
        dataset_pictures(config(source, image_column="jpeg", caption_column="caption"), tmp_path / "out4")


def test_a_data_set_that_is_not_there_is_told_in_a_sentence(tmp_path):
    for name in (str(tmp_path / "nothing"), "somebody/nothing"):
        with pytest.raises(InputError, match=f"cannot read the data set {name}"):
            dataset_pictures(config(name), tmp_path / "out")


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'dash-vision\[datasets\]'"):
        dataset_pictures(config("x"), tmp_path / "out")
