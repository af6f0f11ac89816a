"""python -m dash_vision predict and merge, on finished runs."""

import pytest
import torch

from dash_vision.__main__ import main
from dash_vision.bases.backbones import Normalize
from dash_vision.classification.data import load_task
from dash_vision.classification.trained import load_trained
from dash_vision.files.native import NATIVE_NAME
from dash_vision.runs.tasks import find_task
from tests.support.vtab import BASE


def test_predict_prints_the_likeliest_classes(finished, capsys):
    folder, run, _ = finished("dash")
    image = folder / "data/cifar/images/train800/000001.png"
    assert main(["predict", str(run.folder / NATIVE_NAME), str(image), str(image), "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{image}:"
    assert len(lines) == 8
    shares = [float(line.split()[0]) for line in lines[1:4]]
    assert shares == sorted(shares, reverse=True)
    trained = load_trained(run.folder)
    data = load_task(find_task("cifar"), str(folder / "data"), 32, None)
    with torch.no_grad():
        probabilities = trained.model(Normalize(BASE)(data.split("train800").images[1:2])).softmax(1)[0]
    assert lines[1].endswith(f"class {probabilities.argmax()}")
    assert shares[0] == pytest.approx(100 * probabilities.max().item(), abs=0.06)


def test_predict_turns_a_photograph_upright(finished, tmp_path, capsys):
    folder, run, _ = finished("dash")
    from PIL import Image

    upright = Image.open(folder / "data/cifar/images/train800/000001.png").resize((40, 20))
    upright.save(tmp_path / "upright.png")
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    lying.save(tmp_path / "lying.png", exif=exif)
    assert main(["predict", str(run.folder), str(tmp_path / "upright.png"), str(tmp_path / "lying.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:6] == lines[7:]


def test_merge_from_the_command_line(finished, tmp_path, capsys):
    _, run, _ = finished("lora")
    assert main(["merge", str(run.folder), str(tmp_path / "m.safetensors")]) == 0
    assert "a plain timm checkpoint" in capsys.readouterr().out
    assert (tmp_path / "m.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["predict", "{run}", "{run}/absent.png"], "there is no image"),
        (["predict", "{run}", "{run}/result.json"], "cannot be read as an image"),
        (["predict", "{run}/nowhere", "x.png"], "is not there; give a run folder of train_vtab.py"),
        (["predict", "{run}/peft", "{run}/result.json"], "cannot be read as an image"),
        (["predict", "{run}/result.json", "x.png"], "was not written by train_vtab.py"),
        (["predict", "{run}", "x.png", "--top", "0"], "--top is 1 or more"),
        (["merge", "{run}", "{run}/out.bin"], "is a .safetensors file, got out.bin"),
        (["merge", "{run}/..", "{run}/out.safetensors"], "a folder without a trained model"),
    ],
)
def test_what_cannot_be_used_is_answered_in_a_sentence(finished, capsys, words, sentence):
    _, run, _ = finished("dash")
    assert main([w.format(run=run.folder) for w in words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
