"""Stopped runs resume exactly, in every phase."""

import dataclasses
import os
import signal
import time

import pytest
import torch

import train_vtab
from dash_vision.classification.job import VtabJob
from dash_vision.classification.run import CHECKPOINT, execute
from dash_vision.classification.trained import load_trained
from dash_vision.files.checkpoint import load_checkpoint
from dash_vision.files.errors import InputError, Stopped
from dash_vision.files.native import read_native
from tests.support.paths import ROOT
from tests.support.processes import Process
from tests.support.shared import shared_run
from tests.support.vtab import StopAt, Watching, cpu, one_run


def outcome(record):
    timing = {"seconds", "finished", "launch", "data"}
    return {k: v for k, v in dataclasses.asdict(record).items() if k not in timing}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """(folder with the data, run, result) of a run that nothing stopped."""
    with shared_run(tmp_path_factory, "whole-run", lambda root: {"selection": "last", "lora_dropout": 0.1}) as found:
        yield found


# 12 steps on train800 (3 an epoch, launch after 5), then up to 20 on train800val200 (5 an epoch).
@pytest.mark.parametrize("step", [0, 2, 5, 9, 12, 14, 18])
def test_a_stopped_run_goes_on_exactly(tmp_path, whole_run, step):
    folder, whole, expected = whole_run
    own = {"output_dir": str(tmp_path / "parts"), "cache_dir": str(tmp_path / "cache")}
    run = one_run(folder, **own, selection="last", lora_dropout=0.1)
    with pytest.raises(Stopped, match="stopped in epoch"):
        execute(run, cpu(), StopAt(step))
    assert [p.name for p in run.folder.iterdir()] == [CHECKPOINT]
    found = execute(run, cpu())
    assert outcome(found) == outcome(expected)
    name = "dash_adapter.safetensors"
    assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not (run.folder / CHECKPOINT).exists()


def test_kept_adapters_are_the_model_between_epochs_and_survive_a_stop(tmp_path, data, monkeypatch):
    models = {}

    def remember(path, state):
        if state["selection"] is not None and state["job"]:
            models[state["job"]["training"]["step"]] = {k: v.clone() for k, v in state["job"]["model"].items()}

    monkeypatch.setattr("dash_vision.classification.run.save_checkpoint", remember)
    whole = one_run(data, keep_every=1, checkpoint_every=1, selection="last")
    execute(whole, cpu())
    monkeypatch.undo()
    files = sorted((whole.folder / "adapters").iterdir())
    assert [file.stem for file in files] == ["step-000005", "step-000010", "step-000015"]
    for file, step in zip(files, sorted(models), strict=True):
        model = models[step]
        state = read_native(file)["model"]
        assert state.launched  # after step 5 of the retraining
        kept = [k for k in state.tensors if k.endswith((".A", ".B", ".dsigma"))]
        assert len(kept) == 3 * len(state.kinds)
        for key in kept:
            module, name = key.rsplit(".", 1)
            (trained,) = (v for k, v in model.items() if k.startswith(f"{module}.") and k.endswith(f".{name}"))
            assert torch.equal(state.tensors[key], trained)
        head = load_trained(file).model.get_classifier()
        assert torch.equal(head.weight, model["head.weight"])

    parts = one_run(data, output_dir=str(tmp_path / "parts"), keep_every=1, selection="last")
    with pytest.raises(Stopped):
        execute(parts, cpu(), StopAt(12 + 8))
    execute(parts, cpu())
    again = sorted((parts.folder / "adapters").iterdir())
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
    execute(one_run(data, output_dir=str(tmp_path / "parts"), overwrite=True, selection="last"), cpu())
    assert not list((parts.folder / "adapters").iterdir())


@pytest.mark.parametrize("method", ["linear", "full", "bitfit"])
def test_other_methods_go_on_exactly_too(tmp_path, data, method):
    whole = one_run(data, output_dir=str(tmp_path / "whole"), methods=[method], selection="last")
    expected = execute(whole, cpu())
    run = one_run(data, output_dir=str(tmp_path / "parts"), methods=[method], selection="last")
    for step in (4, 10):
        with pytest.raises(Stopped):
            execute(run, cpu(), StopAt(step))
    assert outcome(execute(run, cpu())) == outcome(expected)
    assert (run.folder / "trained.safetensors").read_bytes() == (whole.folder / "trained.safetensors").read_bytes()


def test_a_search_goes_on_with_the_candidate_it_was_at(tmp_path, data):
    search = {"search": ["learning_rate=1e-3,1e-2"]}
    expected = execute(one_run(data, output_dir=str(tmp_path / "whole"), **search), cpu())
    run = one_run(data, output_dir=str(tmp_path / "parts"), **search)
    with pytest.raises(Stopped):
        execute(run, cpu(), StopAt(17))
    phases = []
    found = execute(run, cpu(), progress=Watching(lambda job: phases.append(job.phase)))
    assert outcome(found) == outcome(expected)
    assert phases.count("select") == 3  # of 8: the first candidate's 4 and 1 of the second's were done


def test_a_val_only_run_says_when_its_chosen_candidate_launched(tmp_path, data):
    settings = {"val_only": True, "search": ["prelaunch_steps=5,7"]}
    expected = execute(one_run(data, output_dir=str(tmp_path / "whole"), **settings), cpu())
    assert expected.launch.step == expected.selected_settings["prelaunch_steps"]
    run = one_run(data, output_dir=str(tmp_path / "parts"), **settings)
    with pytest.raises(Stopped):
        execute(run, cpu(), StopAt(14))  # in the second candidate; each has 12 steps
    state = load_checkpoint(run.folder / CHECKPOINT)
    assert [launch["step"] for launch in state["launches"]] == [5]
    assert execute(run, cpu()).launch.step == expected.launch.step


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(data):
    run = one_run(data)
    with pytest.raises(Stopped):
        execute(run, cpu(), StopAt(4))
    with pytest.raises(InputError, match=r"other settings \(rank 2 there, 3 here\).*--overwrite"):
        execute(one_run(data, rank=3), cpu())
    assert execute(one_run(data, rank=3, overwrite=True), cpu()).arguments["rank"] == 3


def test_checkpoints_are_written_between_epochs(data, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "dash_vision.classification.run.save_checkpoint",
        lambda path, state: saved.append(
            (state["selection"] is not None, state["job"] and state["job"]["training"]["step"])
        ),
    )
    execute(one_run(data, checkpoint_every=2, selection="last"), cpu())
    assert saved == [(False, 6), (True, None), (True, 10)]


def saying_so(words):
    """train_vtab.py, which says when it begins to train."""
    fit = VtabJob.fit
    VtabJob.fit = lambda self, *rest: (print("training", flush=True), fit(self, *rest))[1]
    return train_vtab.main(words)


def test_a_signal_leaves_a_checkpoint_and_its_own_exit_status(data):
    words = [
        "--task",
        "cifar",
        "--data_root",
        str(data / "data"),
        "--cache_dir",
        "none",
        "--output_dir",
        str(data / "runs"),
    ]
    words += [
        "--model",
        "test_vit",
        "--random_weights",
        "--image_size",
        "32",
        "--epochs",
        "5000",
        "--train_batch_size",
        "4",
    ]
    process = Process(saying_so, (words,), ROOT)
    deadline = time.monotonic() + 300
    while "training\n" not in process.stdout and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.stdout.startswith("1 run to do, ")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    errors = process.stderr
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert (data / "runs/cifar/dash/seed-0" / CHECKPOINT).is_file()
