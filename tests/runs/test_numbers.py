"""Both scripts with numbers at their limits: lost losses, fp16 overflow, rates, ranks and k."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file

import dash_vision.runs.loop
from dash_vision.files.checkpoint import load_checkpoint
from tests.support.scripts import dreambooth, vtab


def numbers(state):
    """Every tensor in nested dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from numbers(value)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_lost_loss_of_dreambooth_keeps_the_last_good_checkpoint(bases, tmp_path, capsys, precision):
    assert dreambooth(bases, tmp_path / "out", "--learning_rate", 1e25, "--mixed_precision", precision) == 1
    said = capsys.readouterr().err
    assert "error: the loss is" in said or "error: the dash cannot be launched" in said
    assert "Traceback" not in said
    kept = list((tmp_path / "out").glob("checkpoint-*.safetensors"))
    assert kept
    assert all(torch.isfinite(t).all() for path in kept for t in numbers(load_checkpoint(path)["adapters"]))
    assert not (tmp_path / "out" / "dash_adapter.safetensors").exists()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_lost_loss_of_vtab_is_a_failed_run_and_no_result(bases, tmp_path, capsys, precision):
    more = ("--methods", "full", "--learning_rate", 1e25, "--mixed_precision", precision)
    assert vtab(bases, tmp_path, *more) == 1
    said = capsys.readouterr().err
    assert "failed: cifar full seed 0: the loss is" in said
    assert "--learning_rate" in said
    assert not list(tmp_path.rglob("result.json"))
    for path in tmp_path.rglob("checkpoint.safetensors"):
        assert all(torch.isfinite(t).all() for t in numbers(load_checkpoint(path)["job"]["model"]))


def scaled_from(monkeypatch, scale):
    """The loss scaler begins there instead of at 2 ** 16."""
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=scale))


def test_fp16_steps_that_overflow_change_nothing_and_do_not_count(bases, tmp_path, monkeypatch):
    """From a loss scale of 2 ** 30 the first gradients overflow fp16; each such step halves the scale, no more."""
    scaled_from(monkeypatch, 2.0**30)
    more = ["--mixed_precision", "fp16", "--max_train_steps", 24, "--checkpoints_total_limit", 24]
    assert dreambooth(bases, tmp_path / "out", *more) == 0
    states = [load_checkpoint(tmp_path / "out" / f"checkpoint-{step}.safetensors") for step in range(1, 25)]
    trained = [state["training"] for state in states]
    scales = [training["scaler"]["scale"] for training in trained]
    skipped = [after < before for before, after in zip([2.0**30, *scales], scales, strict=False)]
    assert scales == [2.0 ** (30 - sum(skipped[:n])) for n in range(1, 25)]
    first = skipped.index(False)
    assert 5 < first < 20
    for state in states[:first]:
        assert all(not t.any() for key, t in state["adapters"]["unet"].items() if key.endswith(".B"))
        assert not state["training"]["optimizers"][0]["state"]
    assert any(t.any() for key, t in states[first]["adapters"]["unet"].items() if key.endswith(".B"))
    # What counts is updates of the weights: two before the launch, and as many steps of the learning rate's schedule.
    updates = [n - sum(skipped[:n]) for n in range(1, 25)]
    assert [training["schedule"]["steps"] for training in trained] == updates
    assert [dashes(training) for training in trained] == [n >= 2 for n in updates]
    assert trained[-1]["updates"] == updates[-1]
    launched = json.loads((tmp_path / "out" / "run.json").read_text())["launch"]["step"]
    assert launched == updates.index(2) + 1


def dashes(training):
    return all((t >= 0).all() for key, t in training["schedule"]["tensors"].items() if key.endswith(".indices"))


def test_a_run_of_nothing_but_overflow_ends(bases, tmp_path, monkeypatch, capsys):
    scaled_from(monkeypatch, 2.0**120)
    monkeypatch.setattr(dash_vision.runs.loop, "_MOST_SKIPPED", 10)
    more = ["--mixed_precision", "fp16", "--max_train_steps", 40, "--checkpointing_steps", 0]
    assert dreambooth(bases, tmp_path / "out", *more) == 1
    said = capsys.readouterr().err
    assert "error: the gradients overflowed in each of the last 10 steps" in said
    assert "--mixed_precision bf16 or no" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_zero_learning_rate_changes_nothing_and_fails_nowhere(bases, tmp_path):
    assert dreambooth(bases, tmp_path / "out", "--learning_rate", 0) == 0
    learned = load_file(tmp_path / "out" / "dash_adapter.safetensors")
    assert all(not t.any() for key, t in learned.items() if key.endswith((".B", ".dsigma")))
    assert any(t.any() for key, t in learned.items() if key.endswith(".V"))  # it was launched all the same


@pytest.mark.parametrize(("script", "rate"), [(vtab, 0), (vtab, 5e38), (dreambooth, 5e38), (dreambooth, "inf")])
def test_rates_that_no_optimizer_takes_are_refused(bases, tmp_path, capsys, script, rate):
    """5e38 is more than float32 holds."""
    with pytest.raises(SystemExit) as status:
        script(bases, tmp_path, "--learning_rate", rate)
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert "learning_rate" in said
    assert ("above 0" if rate == 0 else "1e30") in said.replace("1e+30", "1e30")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("rank", "k"), [(40, 40), (2, 0), (0, 3)])
def test_ranks_and_k_beyond_the_layers_train_to_the_end(bases, tmp_path, rank, k):
    assert vtab(bases, tmp_path, "--rank", rank, "--dash_k", k, "--epochs", 2) == 0
    (path,) = tmp_path.rglob("dash_adapter.safetensors")
    tensors = load_file(path)
    shifts = [t for key, t in tensors.items() if key.endswith("qkv.dsigma")]
    assert {len(t) for t in shifts} == {min(k, 32)}  # 32 directions in a layer of 96 x 32
    assert {len(t) for key, t in tensors.items() if key.endswith("qkv.A")} == {rank}
