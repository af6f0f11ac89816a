"""What a VTAB run records of its base, and that nothing goes on on another one."""

import dataclasses
import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file

from dash_vision.bases.backbones import describe, weights_digest
from dash_vision.classification.run import execute, finished
from dash_vision.classification.trained import load_trained
from dash_vision.files.errors import InputError, Stopped
from dash_vision.runs.record import read_record
from tests.support.vtab import StopAt, cpu, one_run


def weights(file, seed, head=3):
    """A file of weights of a small model: the trunk follows from the seed."""
    torch.manual_seed(seed)
    state = timm.create_model("test_vit", img_size=32, num_classes=2).state_dict()
    width = state["head.weight"].shape[1]
    save_file(state | {"head.weight": torch.rand(head, width), "head.bias": torch.rand(head)}, file)
    return str(file)


def run_on(data, checkpoint):
    return one_run(
        data, model="test_vit", image_size=32, random_weights=False, checkpoint=checkpoint, selection="last", epochs=3
    )


def test_the_digest_is_of_the_weights_without_the_head(tmp_path):
    first, again = weights(tmp_path / "a.safetensors", 1), weights(tmp_path / "b.safetensors", 1, head=7)
    other = weights(tmp_path / "c.safetensors", 2)
    digests = [weights_digest(describe("test_vit", 32, checkpoint=file)) for file in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    weights(tmp_path / "a.safetensors", 2)  # another file at the same place
    assert weights_digest(describe("test_vit", 32, checkpoint=first)) == digests[2]


def test_a_result_is_of_one_checkpoint_wherever_it_lies(data, tmp_path):
    first, other = weights(tmp_path / "a.safetensors", 1), weights(tmp_path / "b.safetensors", 2)
    run = run_on(data, first)
    record = execute(run, cpu())
    assert record.backbone.name == "test_vit"
    assert record.backbone.source == "timm's test_vit.r160_in1k"
    assert record.backbone.weights == weights_digest(describe("test_vit", 32, checkpoint=first))
    assert read_record(run.folder / "result.json") == record
    assert finished(run_on(data, shutil.copy(first, tmp_path / "moved.safetensors"))) == record
    with pytest.raises(InputError, match=r"of a run on other weights of test_vit than .*b\.safetensors"):
        finished(run_on(data, other))


@pytest.mark.parametrize("method", ["linear", "lora"])
def test_a_trained_model_is_loaded_on_its_own_weights_alone(data, tmp_path, method):
    """A head by itself would be put on any base."""
    first, other = weights(tmp_path / "a.safetensors", 1), weights(tmp_path / "b.safetensors", 2)
    run = dataclasses.replace(run_on(data, first), method=method)
    execute(run, cpu())
    moved = shutil.move(first, tmp_path / "moved.safetensors")
    images = torch.rand(2, 3, 32, 32)
    model = load_trained(run.folder, str(moved)).model
    assert torch.isfinite(model(images)).all()
    with pytest.raises(InputError, match=r"was trained on another base: .*b\.safetensors holds other weights"):
        load_trained(run.folder, other)


def test_a_stopped_run_goes_on_with_its_own_checkpoint_alone(data, tmp_path):
    first, other = weights(tmp_path / "a.safetensors", 1), weights(tmp_path / "b.safetensors", 2)
    with pytest.raises(Stopped):
        execute(run_on(data, first), cpu(), StopAt(2))
    with pytest.raises(InputError, match="of a run on other weights of test_vit"):
        execute(run_on(data, other), cpu())
    assert execute(run_on(data, first), cpu()).test_accuracy is not None
