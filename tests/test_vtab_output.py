"""What a run leaves behind: the result, and files that this package, stock PEFT and stock timm load alike."""

import json

import pytest
import timm
import torch
from peft import PeftModel
from test_vtab_models import PEFT_CONFIGS
from vtab_helpers import trained_run

from dash_vision import InputError, load_adapter
from dash_vision.__main__ import main
from dash_vision.bases.backbones import Backbone, build
from dash_vision.classification.data import load_task
from dash_vision.classification.loop import Normalize
from dash_vision.classification.trained import load_trained, merge
from dash_vision.files.native import NATIVE_NAME, read_native
from dash_vision.runs.tasks import find_task

BASE = Backbone("vtab_tiny", 32, (0.5,) * 3, (0.5,) * 3, random=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished runs by method, each trained once for all tests here."""
    made = {}

    def run(method):
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            settings = {"methods": [method]}
            if method in PEFT_CONFIGS:
                (folder / f"{method}.json").write_text(json.dumps(PEFT_CONFIGS[method]))
                settings = {"methods": [], "peft_config": [str(folder / f"{method}.json")]}
            made[method] = (folder, *trained_run(folder, selection="last", learning_rate=3e-3, **settings))
        return made[method]

    return run


def inputs(folder):
    data = load_task(find_task("cifar"), str(folder / "data"), 32, None)
    return Normalize(BASE)(data.split("train800val200").images)


def accuracy_of(model, folder):
    """On the test images, which a test may open."""
    data = load_task(find_task("cifar"), str(folder / "data"), 32, None)
    labels = data.split("train800").labels[:16]  # test has the same labels in the same order
    images = torch.cat(list(data.test._SealedTest__load().chunks()))
    with torch.no_grad():
        return 100 * (model(Normalize(BASE)(images)).argmax(1) == labels).double().mean().item()


METHODS = ("dash", "lora", "linear", "full", "bitfit", "dora", "ia3")


@pytest.mark.parametrize("method", METHODS)
def test_what_is_loaded_again_scores_what_the_result_says(finished, method):
    folder, run, result = finished(method)
    trained = load_trained(run.folder)
    assert accuracy_of(trained.model, folder) == pytest.approx(result["test_accuracy"])
    assert trained.about["classes"] == [f"class {i}" for i in range(100)]


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_checkpoint_is_one_that_stock_timm_loads(finished, tmp_path, method):
    folder, run, _ = finished(method)
    merge(run.folder, tmp_path / "merged.safetensors")
    plain = timm.create_model("vtab_tiny", num_classes=100, checkpoint_path=str(tmp_path / "merged.safetensors")).eval()
    x = inputs(folder)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), load_trained(run.folder).model(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["dash", "lora"])
def test_native_and_peft_files_give_the_same_logits_head_included(finished, method):
    folder, run, _ = finished(method)
    x = inputs(folder)
    ours = build(BASE, 100, head_seed=77).eval()
    load_adapter(ours, run.folder / NATIVE_NAME)
    stock = PeftModel.from_pretrained(build(BASE, 100, head_seed=78).eval(), str(run.folder / "peft"))
    with torch.no_grad():
        expected = ours(x)
        torch.testing.assert_close(stock(x), expected, atol=1e-5, rtol=0)
        assert (expected - build(BASE, 100, head_seed=77).eval()(x)).abs().max() > 0.01


def test_a_dash_run_has_directions_and_shifts(finished):
    _, run, result = finished("dash")
    (state,) = read_native(run.folder / NATIVE_NAME).values()
    assert state.launched
    assert max(t.abs().max() for k, t in state.tensors.items() if k.endswith("dsigma")) > 0
    assert sorted(state.whole) == ["head.bias", "head.weight"]
    assert result["launch"]["step"] == 5
    assert 0 <= result["launch"]["mean_relative_index"] <= 1


def test_an_adapter_does_not_go_onto_another_number_of_classes_or_another_base(finished):
    _, run, _ = finished("dash")
    with pytest.raises(InputError, match=r"head\.\w+ is \(100.*create the model with the file's number of classes"):
        load_adapter(build(BASE, 7), run.folder / NATIVE_NAME)
    other = build(BASE, 100)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError, match="another base"):
        load_adapter(other, run.folder / NATIVE_NAME)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_the_result_says_everything(finished):
    _, run, result = finished("dash")
    stored = json.loads((run.folder / "result.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert (stored["task"], stored["group"], stored["method"], stored["seed"]) == ("cifar", "natural", "dash", 0)
    assert (stored["synthetic"], stored["official_split"]) == (False, False)
    assert stored["sizes"]["images"] == {"train800": 24, "val200": 12, "train800val200": 36, "test": 16}
    assert [s["epoch"] for s in stored["selection"]["curves"][0]] == [1, 2, 3, 4]
    assert {"train_loss", "val_accuracy", "val_loss", "launched"} <= stored["selection"]["curves"][0][0].keys()
    assert {"selection 0", "retrain", "test", "total"} == stored["seconds"].keys()
    assert stored["versions"].keys() >= {"torch", "timm", "dash-vision", "python"}
    assert stored["normalization"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    for name in ("learning_rate", "rank", "prelaunch_steps", "batch_size", "normalization", "drop_path", "seed"):
        assert name in stored["arguments"]


# -- python -m dash_vision


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
