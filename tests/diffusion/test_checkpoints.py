"""Which checkpoints are resumed, put aside or refused."""

import shutil

import pytest
import torch

from dash_vision.diffusion.run import fit
from dash_vision.files.checkpoint import load_checkpoint, save_checkpoint
from dash_vision.files.errors import InputError, RunError
from tests.support.bases import save_base
from tests.support.dreambooth import before_each_batch, prepare, settings, train


@pytest.fixture(scope="module")
def finished(bases, tmp_path_factory):
    """The folder of a finished run of 8 steps with checkpoints after 4 and 8; to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    train(settings(bases, folder, checkpointing_steps=4))
    return folder


@pytest.fixture
def out(finished, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(finished, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 3}, "--rank 2, this run has 3"),
        ({"learning_rate": 1e-3}, "--learning_rate 0.01, this run has 0.001"),
        ({"pretrained_model_name_or_path": "other"}, "another base"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(bases, out, tmp_path, changes, words):
    if "pretrained_model_name_or_path" in changes:
        changes = {"pretrained_model_name_or_path": str(save_base(tmp_path / "other", seed=9))}
    config = settings(bases, out, resume_from_checkpoint="checkpoint-4", **changes)
    with pytest.raises(InputError, match=words):
        prepare(config)


def test_broken_and_missing_checkpoints(bases, out):
    whole = (out / "checkpoint-8.safetensors").read_bytes()
    (out / "checkpoint-9.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"no complete \.safetensors file"):
        prepare(settings(bases, out, resume_from_checkpoint="latest"))
    with pytest.raises(InputError, match=r"no checkpoint checkpoint-5; .*checkpoint-4, checkpoint-8"):
        prepare(settings(bases, out, resume_from_checkpoint="checkpoint-5"))
    path = str(out / "pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match="of another kind"):
        prepare(settings(bases, out, resume_from_checkpoint=path))


def test_going_on_with_another_number_of_processes_is_said(bases, out):
    path = out / "checkpoint-4.safetensors"
    save_checkpoint(path, load_checkpoint(path) | {"processes": 2})
    lines = []
    assert prepare(settings(bases, out, resume_from_checkpoint="checkpoint-4"), lines).training.step == 4
    assert any("written by 2 processes, this run has 1" in line for line in lines)


def test_a_new_run_puts_old_checkpoints_aside(bases, out, tmp_path):
    lines = []
    (out / "adapters/out-000004").mkdir(parents=True)
    (out / "checkpoints").mkdir()
    measured = ("evaluation.json", "progress.png", "checkpoints/checkpoints.json")
    for name in measured:
        (out / name).write_text("of the old run")
    train(settings(bases, out, max_train_steps=2, prelaunch_steps=1, overwrite=True), lines)
    assert (out / "earlier-1/checkpoint-8.safetensors").is_file()
    assert (out / "earlier-1/adapters/out-000004").is_dir()
    for name in measured:
        assert (out / "earlier-1" / name).is_file()
        assert not (out / name).exists()
    assert any("earlier-1" in line for line in lines)
    lines = []
    prepare(settings(bases, tmp_path / "new", resume_from_checkpoint="latest"), lines)
    assert any("no checkpoint" in line for line in lines)


def test_a_finished_run_is_replaced_only_on_demand(bases, out):
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=r"out holds a finished run; .*--overwrite"):
        prepare(settings(bases, out))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert prepare(settings(bases, out, resume_from_checkpoint="latest", max_train_steps=9)).training.step == 8
    assert prepare(settings(bases, out, overwrite=True)).training.step == 0
    with pytest.raises(InputError, match="leave one of them out"):
        settings(bases, out, overwrite=True, resume_from_checkpoint="latest")


def test_a_finished_run_without_checkpoints_is_not_begun_anew_in_its_folder(bases, out):
    for checkpoint in out.glob("checkpoint-*"):
        checkpoint.unlink()
    with pytest.raises(InputError, match="holds a finished run and no checkpoint to go on from"):
        prepare(settings(bases, out, resume_from_checkpoint="latest", max_train_steps=9))


def test_an_interrupted_run_goes_on_with_the_same_command(bases, out):
    (out / "run.json").unlink()  # which the end of a run writes
    (out / "checkpoint-8.safetensors").unlink()
    lines = []
    assert prepare(settings(bases, out), lines).training.step == 4
    assert any("at step 4; --overwrite starts anew" in line for line in lines)
    with pytest.raises(InputError, match="has 4 steps, --max_train_steps is 3; give at least 4, or --overwrite"):
        prepare(settings(bases, out, max_train_steps=3, prelaunch_steps=2))
    assert prepare(settings(bases, out, overwrite=True)).training.step == 0


def test_a_rate_that_falls_belongs_to_a_number_of_steps(bases, tmp_path):
    falling = {"lr_scheduler": "cosine", "checkpointing_steps": 4}
    train(settings(bases, tmp_path / "out", max_train_steps=8, prelaunch_steps=2, **falling))
    with pytest.raises(InputError, match="holds a finished run") as finished:
        prepare(settings(bases, tmp_path / "out", **falling))
    assert "further" not in str(finished.value)
    (tmp_path / "out/run.json").unlink()
    (tmp_path / "out/checkpoint-8.safetensors").unlink()
    for steps in (6, 9):
        with pytest.raises(InputError, match=f"a run of --max_train_steps 8, on .*cosine.*this run has {steps}"):
            prepare(settings(bases, tmp_path / "out", max_train_steps=steps, prelaunch_steps=2, **falling))
    # To end it where it stands is something else: no step is made at another rate.
    ended = prepare(settings(bases, tmp_path / "out", max_train_steps=4, prelaunch_steps=2, **falling))
    assert ended.training.step == 4


def test_a_lost_loss_stops_the_run_and_keeps_the_last_good_checkpoint(bases, tmp_path):
    config = settings(bases, tmp_path / "out", checkpointing_steps=2, max_train_steps=41, prelaunch_steps=40)
    job = prepare(config)
    parameter = next(job.adapters["unet"].parameters())

    def poison(batch):
        if batch == 5:
            with torch.no_grad():
                parameter.fill_(float("nan"))

    before_each_batch(job, poison)
    with pytest.raises(RunError, match=r"loss is nan at step 6.*checkpoint-4"):
        fit(job)
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint*")) == [
        "checkpoint-2.safetensors",
        "checkpoint-4.safetensors",
    ]
