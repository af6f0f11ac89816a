"""Killed, stopped, starved, spread over processes (soak.py, in short), and numbers at their limits."""

import functools
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from helpers import save_base, save_pictures
from safetensors.torch import load_file
from torch import nn
from vtab_helpers import ROOT, TINY, write_task

import dash_vision.diffusion.training
from dash_vision import DashConfig, DashSchedule, export_lora, inject, load_adapter
from dash_vision.files.checkpoint import load_checkpoint

sys.path.insert(0, str(ROOT))
import train_dreambooth
import train_vtab


@pytest.fixture(autouse=True)
def handlers():
    """The scripts set handlers of signals, as the process's own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_is_lost():
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--short"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = re.findall(r"^(\S.*): tried (\d+), survived (\d+), lost (\d+)", done.stdout, re.MULTILINE)
    assert len(parts) == 13  # six for each trainer, and memory
    for name, tried, survived, lost in parts:
        assert int(tried) == int(survived) > 0 == int(lost), name


# -- numbers: the scripts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbers")
    save_base(root / "sd")
    save_pictures(root / "cat", count=2)
    write_task(root / "data")
    return root


def dreambooth(folder, out, *more):
    AcceleratorState._reset_state()  # accelerate takes one precision for each process
    PartialState._reset_state()
    words = ["--instance_data", folder / "cat", "--pretrained_model_name_or_path", folder / "sd", "--output_dir", out]
    words += ["--rank", 2, "--dash_k", 3, "--max_train_steps", 6, "--prelaunch_steps", 2, "--num_crop_variants", 1]
    words += ["--checkpointing_steps", 1, "--num_inference_steps", 1, "--validation_prompt", "a cat", *more]
    return train_dreambooth.main([str(word) for word in words])


def vtab(folder, out, *more):
    words = ["--task", "cifar", "--data_root", folder / "data", "--cache_dir", "none", "--output_dir", out]
    words += ["--model", TINY["model"], "--random_weights", "--epochs", 3, "--batch_size", 8, "--rank", 2]
    words += ["--dash_k", 3, "--prelaunch_steps", 2, "--checkpoint_every", 1, *more]
    return train_vtab.main([str(word) for word in words])


def numbers(state):
    """Every tensor in nested dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from numbers(value)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_lost_loss_of_dreambooth_keeps_the_last_good_checkpoint(folder, tmp_path, capsys, precision):
    assert dreambooth(folder, tmp_path / "out", "--learning_rate", 1e25, "--mixed_precision", precision) == 1
    said = capsys.readouterr().err
    assert "error: the loss is" in said or "error: the dash cannot be launched" in said
    assert "Traceback" not in said
    kept = list((tmp_path / "out").glob("checkpoint-*.safetensors"))
    assert kept
    assert all(torch.isfinite(t).all() for path in kept for t in numbers(load_checkpoint(path)["adapters"]))
    assert not (tmp_path / "out" / "dash_adapter.safetensors").exists()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_lost_loss_of_vtab_is_a_failed_run_and_no_result(folder, tmp_path, capsys, precision):
    more = ("--methods", "full", "--learning_rate", 1e25, "--mixed_precision", precision)
    assert vtab(folder, tmp_path, *more) == 1
    assert "failed: cifar full seed 0: the loss became NaN or infinite" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))
    for path in tmp_path.rglob("checkpoint.safetensors"):
        assert all(torch.isfinite(t).all() for t in numbers(load_checkpoint(path)["trainer"]["model"]))


def scaled_from(monkeypatch, scale):
    """The loss scaler begins there instead of at 2 ** 16."""
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=scale))


def test_fp16_steps_that_overflow_change_nothing_and_do_not_count(folder, tmp_path, monkeypatch):
    """From a loss scale of 2 ** 30 the first gradients overflow fp16; each such step halves the scale, no more."""
    scaled_from(monkeypatch, 2.0**30)
    more = ["--mixed_precision", "fp16", "--max_train_steps", 24, "--checkpoints_total_limit", 24]
    assert dreambooth(folder, tmp_path / "out", *more) == 0
    states = [load_checkpoint(tmp_path / "out" / f"checkpoint-{step}.safetensors") for step in range(1, 25)]
    scales = [state["scaler"]["scale"] for state in states]
    skipped = [after < before for before, after in zip([2.0**30, *scales], scales, strict=False)]
    assert scales == [2.0 ** (30 - sum(skipped[:n])) for n in range(1, 25)]
    first = skipped.index(False)
    assert 5 < first < 20
    for state in states[:first]:
        assert all(not t.any() for key, t in state["adapters"]["unet"].items() if key.endswith(".B"))
        assert not state["optimizer"]["state"]
    assert any(t.any() for key, t in states[first]["adapters"]["unet"].items() if key.endswith(".B"))
    # What counts is updates of the weights: two before the launch, and as many steps of the learning rate's schedule.
    updates = [n - sum(skipped[:n]) for n in range(1, 25)]
    assert [state["schedule"]["steps"] for state in states] == updates
    assert [dashes(state) for state in states] == [n >= 2 for n in updates]
    assert states[-1]["lr_scheduler"]["last_epoch"] == updates[-1]
    launched = json.loads((tmp_path / "out" / "run.json").read_text())["phases"][1]["after_step"]
    assert launched == updates.index(2) + 1


def dashes(state):
    return all((t >= 0).all() for key, t in state["schedule"]["tensors"].items() if key.endswith(".indices"))


def test_a_run_of_nothing_but_overflow_ends(folder, tmp_path, monkeypatch, capsys):
    scaled_from(monkeypatch, 2.0**120)
    monkeypatch.setattr(dash_vision.diffusion.training, "_MOST_SKIPPED", 10)
    more = ["--mixed_precision", "fp16", "--max_train_steps", 40, "--checkpointing_steps", 0]
    assert dreambooth(folder, tmp_path / "out", *more) == 1
    said = capsys.readouterr().err
    assert "error: the gradients overflowed in each of the last 10 steps" in said
    assert "--mixed_precision bf16 or no" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_zero_learning_rate_changes_nothing_and_fails_nowhere(folder, tmp_path):
    assert dreambooth(folder, tmp_path / "out", "--learning_rate", 0) == 0
    learned = load_file(tmp_path / "out" / "dash_adapter.safetensors")
    assert all(not t.any() for key, t in learned.items() if key.endswith((".B", ".dsigma")))
    assert any(t.any() for key, t in learned.items() if key.endswith(".V"))  # it was launched all the same


@pytest.mark.parametrize(("script", "rate"), [(vtab, 0), (vtab, 5e38), (dreambooth, 5e38), (dreambooth, "inf")])
def test_rates_that_no_optimizer_takes_are_refused(folder, tmp_path, capsys, script, rate):
    """5e38 is more than float32 holds."""
    with pytest.raises(SystemExit) as status:
        script(folder, tmp_path, "--learning_rate", rate)
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert "learning_rate" in said
    assert "1e30" in said.replace("1e+30", "1e30")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("rank", "k"), [(40, 40), (2, 0), (0, 3)])
def test_ranks_and_k_beyond_the_layers_train_to_the_end(folder, tmp_path, rank, k):
    assert vtab(folder, tmp_path, "--rank", rank, "--dash_k", k, "--epochs", 2) == 0
    (path,) = tmp_path.rglob("dash_adapter.safetensors")
    tensors = load_file(path)
    shifts = [t for key, t in tensors.items() if key.endswith("qkv.dsigma")]
    assert {len(t) for t in shifts} == {min(k, 32)}  # 32 directions in a layer of 96 x 32
    assert {len(t) for key, t in tensors.items() if key.endswith("qkv.A")} == {rank}


# -- numbers: the core


class Dying(nn.Module):
    """Two layers whose weights or inputs are all zero, between two that live."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.unfed = nn.Linear(6, 8), nn.Linear(5, 8)
        self.zero, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        nn.init.zeros_(self.zero.weight)

    def forward(self, x):
        fed = self.first(x) + self.unfed(x.new_zeros(len(x), 5))
        return self.last(torch.tanh(fed) + self.zero(fed))


@pytest.mark.parametrize(("rank", "k"), [(2, 3), (20, 20), (3, 0), (0, 2)])
def test_dead_layers_and_odd_sizes_train_save_load_and_export(tmp_path, rank, k):
    names = ["first", "unfed", "zero", "last"]
    model = Dying()
    with pytest.warns(UserWarning, match="dash_k") if k == 20 else torch.no_grad():
        adapter = inject(model, DashConfig(rank=rank, dash_k=k, target=names))
    torch.set_grad_enabled(True)
    x, y = torch.randn(16, 6), torch.randn(16, 4)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    schedule = DashSchedule(adapter, prelaunch_steps=3)
    losses = []
    for _ in range(8):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert schedule.launched == (k > 0)
    expected = model(x)
    adapter.save(tmp_path / "a.safetensors")
    again = Dying()
    load_adapter(again, tmp_path / "a.safetensors")
    assert torch.equal(again(x), expected)
    weights = load_file(export_lora(adapter, tmp_path / "peft", format="peft"))
    fresh = Dying()
    with torch.no_grad():  # by hand: W + B A
        for name in names:
            A, B = (weights[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
            getattr(fresh, name).weight += B @ A
    assert torch.allclose(fresh(x), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_update_that_overflows_is_refused_by_every_writer(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).to(dtype)
    adapter = inject(model, DashConfig(rank=2, dash_k=2, target=["0", "1"]))
    adapter.launch()
    with torch.no_grad():
        for _, weights in adapter.weights():
            weights.B.fill_(3e38)
            weights.dsigma.fill_(1.0)
    assert export_lora(adapter, tmp_path / "wide", format="peft").is_file()
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        export_lora(adapter, tmp_path / "half", format="peft", dtype=torch.float16)
    assert not (tmp_path / "half").exists()
    with torch.no_grad():
        next(w for _, w in adapter.weights()).A.fill_(float("inf"))
    with pytest.raises(ValueError, match="NaN, infinity"):
        export_lora(adapter, tmp_path / "inf", format="peft")


REFUSED = {
    "DeepSpeed": {"ACCELERATE_USE_DEEPSPEED": "true"},
    "Megatron-LM": {"ACCELERATE_USE_MEGATRON_LM": "true"},
    "FSDP 1": {"ACCELERATE_USE_FSDP": "true"},
    "fsdp_offload_params": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("script", [dreambooth, vtab])
def test_ways_to_split_a_model_that_are_not_done_are_refused(folder, tmp_path, capsys, monkeypatch, script, what):
    """What `accelerate launch` tells its processes when its configuration asks for one."""
    for name, value in REFUSED[what].items():
        monkeypatch.setenv(name, value)
    assert script(folder, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"error: accelerate's configuration {'sets' if what.startswith('fsdp') else 'asks for'} {what}" in said
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_reader_that_has_seen_enough_is_no_error(folder, tmp_path):
    assert dreambooth(folder, tmp_path / "out") == 0
    words = [sys.executable, "-m", "dash_vision", "inspect", str(tmp_path / "out" / "dash_adapter.safetensors")]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        ended = subprocess.run(words, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
