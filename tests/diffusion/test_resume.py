"""Stopped, signalled and killed DreamBooth runs resume exactly."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from dash_vision.diffusion.run import fit
from dash_vision.files.errors import Stopped
from tests.support.dreambooth import SCRIPT, before_each_batch, prepare, settings, states, train
from tests.support.paths import ROOT
from tests.support.processes import run as run_process
from tests.support.processes import start

RESUMED = {
    "plain": {},
    "everything": {
        "lora_dropout": 0.3,
        "gradient_accumulation_steps": 2,
        "random_flip": True,
        "with_prior_preservation": True,
        "num_class_images": 3,
        "train_text_encoder": True,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "dash_lr": 3e-2,
        "resolution": 16,
    },
}


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_before_at_and_after_the_launch_is_exact(bases, tmp_path, case):
    changes = {**RESUMED[case], "checkpointing_steps": 1, "checkpoints_total_limit": None}
    if "with_prior_preservation" in changes:
        changes["class_data_dir"] = str(tmp_path / "class")
    whole = prepare(settings(bases, tmp_path / "whole" / "out", **changes))
    fit(whole)
    assert len(whole.adapters) == 1 + ("train_text_encoder" in changes)
    for step in (3, 4, 6):  # the launch comes right after step 4
        changes["resume_from_checkpoint"] = str(tmp_path / f"whole/out/checkpoint-{step}.safetensors")
        run = prepare(settings(bases, tmp_path / str(step) / "out", **changes))
        assert run.training.step == step
        assert run.training.schedule.launched == (step >= 4)
        fit(run)
        expected, found = states(whole), states(run)
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
        assert run.training.losses == whole.training.losses


def test_a_signal_ends_the_step_and_the_run_goes_on_from_there(bases, tmp_path):
    train(settings(bases, tmp_path / "whole" / "out"))
    run = prepare(settings(bases, tmp_path / "cut" / "out"))

    def interrupt(batch):
        if batch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before_each_batch(run, interrupt)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        fit(run)
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.value.signum == signal.SIGTERM
    assert str(tmp_path / "cut/out/checkpoint-3.safetensors") in str(stopped.value)
    assert (tmp_path / "cut/out/checkpoint-3.safetensors").is_file()
    lines = []
    train(settings(bases, tmp_path / "cut" / "out"), lines)
    assert any("at step 3" in line for line in lines)
    assert (tmp_path / "cut/out/dash_adapter.safetensors").read_bytes() == (
        tmp_path / "whole/out/dash_adapter.safetensors"
    ).read_bytes()


def words_of(bases, out, *more):
    return [
        *(SCRIPT, "--instance_data", bases / "cat", "--output_dir", out, "--pretrained_model_name_or_path"),
        *(bases / "sd", "--rank", 2, "--dash_k", 3, "--num_inference_steps", 1, "--checkpointing_steps", 1),
        *("--validation_prompt", "a photo of sks cat", *more),
    ]


def test_a_run_outlives_the_shell_that_started_it(bases, tmp_path):
    """As under nohup: the shell goes while the run trains, and that is no reason to stop."""
    out, log = tmp_path / "out", tmp_path / "log.txt"
    command = [sys.executable, *map(str, words_of(bases, out, "--max_train_steps", 15, "--prelaunch_steps", 2))]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    wait = f"until ls {shlex.quote(str(out))}/checkpoint-*; do kill -0 $! || break; sleep 0.05; done"
    shell = f"{shlex.join(command)} > {shlex.quote(str(log))} 2>&1 & {wait}"
    subprocess.run(["sh", "-c", shell], env=environment, check=True, capture_output=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out / "samples.png").exists():
        assert "stopped by" not in log.read_text()
        time.sleep(0.1)
    assert (out / "samples.png").exists(), log.read_text()


def steps_kept(out):
    """The step of the last checkpoint in a folder."""
    return max((int(path.stem.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*.safetensors")), default=0)


def test_a_killed_process_loses_nothing(bases, tmp_path):
    """SIGKILL while it trains, three times, then to the end: the files of the run that nobody disturbed."""
    train(settings(bases, tmp_path / "whole" / "out", max_train_steps=24))
    out = tmp_path / "out"
    words = words_of(bases, out, "--max_train_steps", 24, "--prelaunch_steps", 4, "--train_batch_size", 2)
    words += ["--learning_rate", "1e-2"]
    for _ in range(3):
        before = steps_kept(out)
        process = start(words)
        while process.poll() is None and steps_kept(out) < before + 2:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr  # it was not at its end
        assert before < steps_kept(out) < 24
    done = run_process(words)
    assert done.poll() == 0, done.stderr
    assert "resumed from" in done.stdout
    assert (out / "dash_adapter.safetensors").read_bytes() == (
        tmp_path / "whole/out/dash_adapter.safetensors"
    ).read_bytes()
