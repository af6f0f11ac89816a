"""Which checkpoints are resumed, put aside or refused."""

import pytest
import torch

from dash_vision.diffusion.training import TrainingError
from dash_vision.files.checkpoint import load_checkpoint, save_checkpoint
from dash_vision.files.errors import InputError
from tests.support.bases import save_base
from tests.support.dreambooth import prepare, settings, train


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 3}, "--rank 2, this run has 3"),
        ({"learning_rate": 1e-3}, "--learning_rate 0.01, this run has 0.001"),
        ({"pretrained_model_name_or_path": "sd-v"}, None),
        ({"pretrained_model_name_or_path": "other"}, "another base"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(bases, tmp_path, changes, words):
    train(settings(bases, tmp_path / "out", checkpointing_steps=4))
    if "pretrained_model_name_or_path" in changes:
        base = changes["pretrained_model_name_or_path"]
        if base == "other":
            save_base(tmp_path / "other", seed=9)
            changes = {"pretrained_model_name_or_path": str(tmp_path / "other")}
        else:
            changes = {"pretrained_model_name_or_path": str(bases / base)}
    config = settings(bases, tmp_path / "out", resume_from_checkpoint="checkpoint-4", **changes)
    if words is None:  # the same weights under another schedule of noise: the state fits
        assert prepare(config).step == 4
        return
    with pytest.raises(InputError, match=words):
        prepare(config)


def test_broken_and_missing_checkpoints(bases, tmp_path):
    train(settings(bases, tmp_path / "out", checkpointing_steps=4))
    whole = (tmp_path / "out/checkpoint-8.safetensors").read_bytes()
    (tmp_path / "out/checkpoint-9.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"no complete \.safetensors file"):
        prepare(settings(bases, tmp_path / "out", resume_from_checkpoint="latest"))
    with pytest.raises(InputError, match=r"no checkpoint checkpoint-5; .*checkpoint-4, checkpoint-8"):
        prepare(settings(bases, tmp_path / "out", resume_from_checkpoint="checkpoint-5"))
    path = str(tmp_path / "out/pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match="of another kind"):
        prepare(settings(bases, tmp_path / "out", resume_from_checkpoint=path))


def test_going_on_with_another_number_of_processes_is_said(bases, tmp_path):
    train(settings(bases, tmp_path / "out", checkpointing_steps=4))
    path = tmp_path / "out/checkpoint-4.safetensors"
    save_checkpoint(path, load_checkpoint(path) | {"processes": 2})
    lines = []
    assert prepare(settings(bases, tmp_path / "out", resume_from_checkpoint="checkpoint-4"), lines).step == 4
    assert any("written by 2 processes, this run has 1" in line for line in lines)


def test_a_new_run_puts_old_checkpoints_aside(bases, tmp_path):
    train(settings(bases, tmp_path / "out", checkpointing_steps=4))
    lines = []
    train(settings(bases, tmp_path / "out", max_train_steps=2, prelaunch_steps=1), lines)
    assert (tmp_path / "out/earlier-1/checkpoint-8.safetensors").is_file()
    assert any("earlier-1" in line for line in lines)
    lines = []
    prepare(settings(bases, tmp_path / "new", resume_from_checkpoint="latest"), lines)
    assert any("no checkpoint" in line for line in lines)


def test_a_lost_loss_stops_the_run_and_keeps_the_last_good_checkpoint(bases, tmp_path):
    config = settings(bases, tmp_path / "out", checkpointing_steps=2, max_train_steps=41, prelaunch_steps=40)
    run = prepare(config)
    parameter = next(run.adapters["unet"].parameters())
    one_step = run._one_step

    def poisoned():
        if run.step == 5:
            with torch.no_grad():
                parameter.fill_(float("nan"))
        one_step()

    run._one_step = poisoned
    with pytest.raises(TrainingError, match=r"loss is nan at step 6.*checkpoint-4"):
        run.fit()
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint*")) == [
        "checkpoint-2.safetensors",
        "checkpoint-4.safetensors",
    ]
