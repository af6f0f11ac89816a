"""What a run leaves behind: the result, and files that this package, stock timm and PEFT load."""

import dataclasses
import json

import pytest
import timm
import torch
from peft import PeftModel

from dash_vision import InputError, load_adapter
from dash_vision.bases.backbones import Normalize, build
from dash_vision.classification.data import load_task
from dash_vision.classification.trained import load_trained, merge
from dash_vision.files.native import NATIVE_NAME, read_native
from dash_vision.runs.record import read_record
from dash_vision.runs.tasks import find_task
from tests.support.vtab import BASE


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
    assert accuracy_of(trained.model, folder) == pytest.approx(result.test_accuracy)
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
    assert result.launch.step == 5
    assert 0 <= result.launch.mean_relative_index <= 1


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
    assert stored == json.loads(json.dumps(dataclasses.asdict(result)))
    assert read_record(run.folder / "result.json") == result
    assert (stored["task"], stored["group"], stored["method"], stored["seed"]) == ("cifar", "natural", "dash", 0)
    assert (stored["synthetic"], stored["official_split"]) == (False, False)
    assert stored["images"] == {"train800": 24, "val200": 12, "train800val200": 36, "test": 16}
    assert [s["epoch"] for s in stored["selection"]["curves"][0]] == [1, 2, 3, 4]
    assert {"train_loss", "val_accuracy", "val_loss", "launched"} <= stored["selection"]["curves"][0][0].keys()
    assert {"selection 0", "retrain", "test", "total"} == stored["seconds"].keys()
    assert stored["versions"].keys() >= {"torch", "timm", "dash-vision", "python"}
    assert stored["normalization"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    for name in ("learning_rate", "rank", "prelaunch_steps", "batch_size", "normalization", "drop_path", "seed"):
        assert name in stored["arguments"]
