"""DreamBooth runs on tiny local bases of the real classes: exactness, resuming, and what is said to the user."""

import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import TorchDynamoPlugin
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.training_utils import compute_snr
from helpers import save_base, save_pictures, save_single_file, unet_inputs
from PIL import Image
from safetensors.torch import load_file

import dash_vision.core.decompositions as decompositions
import train_dreambooth
from dash_vision import load_adapter
from dash_vision.bases.families import decode_latents, load_base
from dash_vision.bases.noise import NoiseSchedule, denoising_loss
from dash_vision.bases.sampling import Sampling, sample, starting_noise
from dash_vision.diffusion.config import (
    DreamBoothConfig,
    Prompts,
    class_name,
    default_validation_prompts,
    derive_prompts,
)
from dash_vision.diffusion.data import Example, Order, View, generator
from dash_vision.diffusion.training import DreamBoothRun, Stopped, TrainingError
from dash_vision.files.checkpoint import load_checkpoint, save_checkpoint
from dash_vision.files.errors import InputError
from dash_vision.pictures.crops import CropInfo
from dash_vision.runs.settings import parse

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "train_dreambooth.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bases sd, sd-v (v-prediction) and sdxl, and five pictures in cat/."""
    root = tmp_path_factory.mktemp("bases")
    save_base(root / "sd")
    save_base(root / "sd-v", prediction_type="v_prediction")
    save_base(root / "sdxl", xl=True)
    save_pictures(root / "cat")
    return root


def settings(folder, out, base="sd", **changes):
    common = {
        "pretrained_model_name_or_path": str(folder / base),
        "instance_data_dir": str(folder / "cat"),
        "output_dir": str(out),
        "rank": 2,
        "dash_k": 3,
        "max_train_steps": 8,
        "prelaunch_steps": 4,
        "train_batch_size": 2,
        "learning_rate": 1e-2,
        "num_inference_steps": 2,
        "validation_prompt": ["a photo of sks cat"],
    }
    return DreamBoothConfig(**{**common, **changes})


def accelerator(mixed_precision="no"):
    AcceleratorState._reset_state()
    PartialState._reset_state()
    return Accelerator(cpu=True, mixed_precision=mixed_precision)


def prepare(config, lines=None, mixed_precision="no"):
    gc.collect()  # runs that are done with let go of their folders
    return DreamBoothRun(config, accelerator(mixed_precision), (lines if lines is not None else []).append)


def train(config, lines=None, mixed_precision="no"):
    run = prepare(config, lines, mixed_precision)
    run.fit()
    run.save()
    return run


def unet_output(unet):
    with torch.no_grad():
        return unet(**unet_inputs(unet)).sample


# -- a whole run


@pytest.mark.parametrize("base", ["sd", "sd-v", "sdxl"])
def test_stock_diffusers_loads_what_was_trained(folder, tmp_path, base):
    lines = []
    run = train(settings(folder, tmp_path / "out", base, train_text_encoder=base != "sd-v"), lines)
    assert run.schedule.launched
    assert run.step == 8
    out = tmp_path / "out"
    kind = StableDiffusionXLPipeline if base == "sdxl" else StableDiffusionPipeline
    trained = unet_output(run.base.pipeline.unet)
    ids = run.base.family.tokenize(run.base.pipeline, ["a sks cat in the snow"])
    states = run.base.family.encode_tokens(run.base.text_encoders(), ids)

    for weights in ({}, {"weight_name": "out.safetensors", "subfolder": "kohya"}):
        stock = kind.from_pretrained(folder / base)
        untouched = unet_output(stock.unet)
        stock.load_lora_weights(str(out), **weights)
        assert (unet_output(stock.unet) - trained).abs().max() < 1e-5
        assert (untouched - trained).abs().max() > 1e-2  # there was something to be lost
        embeds = stock.encode_prompt(
            "a sks cat in the snow", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        assert torch.allclose(embeds[0], states["prompt_embeds"], atol=1e-5)
        if base == "sdxl":
            assert torch.allclose(embeds[2], states["text_embeds"], atol=1e-5)

    native = load_base(str(folder / base)).pipeline.unet
    load_adapter(native, out / "dash_adapter.safetensors", component="unet")
    assert (unet_output(native) - trained).abs().max() < 1e-5
    assert any(line.startswith(f"base: {folder / base}") for line in lines)
    assert 'prompt: "a photo of sks cat"' in "\n".join(lines)


def test_everything_a_run_leaves(folder, tmp_path):
    out = tmp_path / "my cat"
    run = train(settings(folder, out, seed=0, checkpointing_steps=3, checkpoints_total_limit=1))
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "README.md",
        "checkpoint-8.safetensors",
        "dash_adapter.safetensors",
        "kohya/my cat.safetensors",
        "pytorch_lora_weights.safetensors",
        "run.json",
        "samples.png",
    ]
    story = json.loads((out / "run.json").read_text())
    assert [p["phase"] for p in story["phases"]] == ["pre-launch", "dash"]
    assert story["phases"][1]["after_step"] == 4
    assert story["seed"] == story["arguments"]["seed"] == 0
    assert story["arguments"]["learning_rate"] == 1e-2
    assert len(story["losses"]) == story["steps"] == 8
    assert {"torch", "diffusers", "dash-vision"} <= story["versions"].keys()
    layers = run.adapters["unet"].layers.values()
    expected = sum(2 * (x.in_features + x.out_features) + 3 for x in layers)  # r (in + out) + k
    assert story["trainable_parameters"] == expected
    card = (out / "README.md").read_text()
    assert "samples.png" in card
    assert "load_lora_weights" in card
    with Image.open(out / "samples.png") as sheet:
        assert sheet.format == "PNG"


def test_the_card_s_code_runs(folder, tmp_path):
    out = tmp_path / "out"
    train(settings(folder, out, validation_prompt=['a "quoted" cat, it\'s fine']))
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert code.count("\n") == 4
    here = os.getcwd()
    os.chdir(out)
    try:
        exec(compile(code.replace("images[0]", "images[0]"), "card", "exec"), {})
    finally:
        os.chdir(here)
    assert (out / "out.png").is_file()


def test_k_zero_is_plain_lora(folder, tmp_path):
    run = train(settings(folder, tmp_path / "out", dash_k=0))
    assert not run.schedule.launched
    assert run.phases == []
    assert json.loads((tmp_path / "out/run.json").read_text())["method"] == "lora"
    weights = load_file(tmp_path / "out/pytorch_lora_weights.safetensors")
    assert {t.shape[0] for k, t in weights.items() if k.endswith("lora_A.weight")} == {2}


def test_the_same_seed_gives_the_same_files(folder, tmp_path):
    for name in "ab":
        train(settings(folder, tmp_path / name / "out", lora_dropout=0.2, random_flip=True))
    for file in (
        "dash_adapter.safetensors",
        "pytorch_lora_weights.safetensors",
        "kohya/out.safetensors",
        "samples.png",
    ):
        assert (tmp_path / "a/out" / file).read_bytes() == (tmp_path / "b/out" / file).read_bytes()
    other = train(settings(folder, tmp_path / "c", seed=1))
    first = load_file(tmp_path / "a/out/dash_adapter.safetensors")
    second = load_file(tmp_path / "c/dash_adapter.safetensors")
    assert any(not torch.equal(first[k], second[k]) for k in first)
    assert other.config.seed == 1


def test_the_launch_is_prepared_while_plain_lora_trains(folder, tmp_path, monkeypatch):
    expected = train(settings(folder, tmp_path / "a" / "out", train_text_encoder=True))
    where = []
    decompose, one_step = decompositions.decompose, DreamBoothRun._one_step
    monkeypatch.setattr(decompositions, "decompose", lambda W: where.append(threading.current_thread()) or decompose(W))

    def patient(self):
        one_step(self)
        for adapter in self.adapters.values():
            adapter.decompositions.wait()

    monkeypatch.setattr(DreamBoothRun, "_one_step", patient)
    run = train(settings(folder, tmp_path / "b" / "out", train_text_encoder=True))
    assert run.schedule.launched
    assert len(where) == sum(len(adapter.layers) for adapter in run.adapters.values())
    assert threading.main_thread() not in where
    assert run.losses == expected.losses


# -- stopping and going on


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
def test_resuming_before_at_and_after_the_launch_is_exact(folder, tmp_path, case):
    changes = {**RESUMED[case], "checkpointing_steps": 1, "checkpoints_total_limit": None}
    if "with_prior_preservation" in changes:
        changes["class_data_dir"] = str(tmp_path / "class")
    whole = train(settings(folder, tmp_path / "whole" / "out", **changes))
    expected = (tmp_path / "whole/out/dash_adapter.safetensors").read_bytes()
    for step in (3, 4, 6):  # the launch comes right after step 4
        out = tmp_path / str(step) / "out"
        changes["resume_from_checkpoint"] = str(tmp_path / f"whole/out/checkpoint-{step}.safetensors")
        run = prepare(settings(folder, out, **changes))
        assert run.step == step
        assert run.schedule.launched == (step >= 4)
        run.fit()
        run.save()
        assert (out / "dash_adapter.safetensors").read_bytes() == expected
        assert run.losses == whole.losses


def test_a_signal_ends_the_step_and_the_run_goes_on_from_there(folder, tmp_path, monkeypatch):
    train(settings(folder, tmp_path / "whole" / "out"))
    run = prepare(settings(folder, tmp_path / "cut" / "out"))
    one_step = DreamBoothRun._one_step

    def interrupted(self):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        one_step(self)

    monkeypatch.setattr(DreamBoothRun, "_one_step", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        run.fit()
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.value.signum == signal.SIGTERM
    assert stopped.value.checkpoint == tmp_path / "cut/out/checkpoint-3.safetensors"
    lines = []
    train(settings(folder, tmp_path / "cut" / "out", resume_from_checkpoint="latest"), lines)
    assert any("at step 3" in line for line in lines)
    assert (tmp_path / "cut/out/dash_adapter.safetensors").read_bytes() == (
        tmp_path / "whole/out/dash_adapter.safetensors"
    ).read_bytes()


def test_a_run_outlives_the_shell_that_started_it(folder, tmp_path):
    """As under nohup: the shell goes while the run trains, and that is no reason to stop."""
    out, log = tmp_path / "out", tmp_path / "log.txt"
    command = [
        *(sys.executable, str(SCRIPT), "--instance_data", str(folder / "cat"), "--output_dir", str(out)),
        *("--pretrained_model_name_or_path", str(folder / "sd"), "--rank", "2", "--dash_k", "3"),
        *("--max_train_steps", "30", "--prelaunch_steps", "2", "--num_inference_steps", "2"),
        *("--validation_prompt", "a photo of sks cat", "--checkpointing_steps", "1"),
    ]
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


def test_a_killed_process_loses_nothing(folder, tmp_path):
    """SIGKILL while it trains, three times, then to the end: the files of the run that nobody disturbed."""
    train(settings(folder, tmp_path / "whole" / "out", max_train_steps=30))
    command = [
        *(sys.executable, str(SCRIPT), "--instance_data", str(folder / "cat"), "--output_dir", str(tmp_path / "out")),
        *("--pretrained_model_name_or_path", str(folder / "sd"), "--rank", "2", "--dash_k", "3"),
        *("--max_train_steps", "30", "--prelaunch_steps", "4", "--train_batch_size", "2", "--learning_rate", "1e-2"),
        *("--num_inference_steps", "2", "--validation_prompt", "a photo of sks cat", "--checkpointing_steps", "1"),
        *("--resume_from_checkpoint", "latest"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for wanted in (3, 5):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list((tmp_path / "out").glob(f"checkpoint-{wanted}*.safetensors")):
            pass
        process.kill()
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert (tmp_path / "out/dash_adapter.safetensors").read_bytes() == (
        tmp_path / "whole/out/dash_adapter.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 3}, "--rank 2, this run has 3"),
        ({"learning_rate": 1e-3}, "--learning_rate 0.01, this run has 0.001"),
        ({"pretrained_model_name_or_path": "sd-v"}, None),
        ({"pretrained_model_name_or_path": "other"}, "another base"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path, changes, words):
    train(settings(folder, tmp_path / "out", checkpointing_steps=4))
    if "pretrained_model_name_or_path" in changes:
        base = changes["pretrained_model_name_or_path"]
        if base == "other":
            save_base(tmp_path / "other", seed=9)
            changes = {"pretrained_model_name_or_path": str(tmp_path / "other")}
        else:
            changes = {"pretrained_model_name_or_path": str(folder / base)}
    config = settings(folder, tmp_path / "out", resume_from_checkpoint="checkpoint-4", **changes)
    if words is None:  # the same weights under another schedule of noise: the state fits
        assert prepare(config).step == 4
        return
    with pytest.raises(InputError, match=words):
        prepare(config)


def test_broken_and_missing_checkpoints(folder, tmp_path):
    train(settings(folder, tmp_path / "out", checkpointing_steps=4))
    whole = (tmp_path / "out/checkpoint-8.safetensors").read_bytes()
    (tmp_path / "out/checkpoint-9.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"no complete \.safetensors file"):
        prepare(settings(folder, tmp_path / "out", resume_from_checkpoint="latest"))
    with pytest.raises(InputError, match=r"no checkpoint checkpoint-5; .*checkpoint-4, checkpoint-8"):
        prepare(settings(folder, tmp_path / "out", resume_from_checkpoint="checkpoint-5"))
    path = str(tmp_path / "out/pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match="of another kind"):
        prepare(settings(folder, tmp_path / "out", resume_from_checkpoint=path))


def test_going_on_with_another_number_of_processes_is_said(folder, tmp_path):
    train(settings(folder, tmp_path / "out", checkpointing_steps=4))
    path = tmp_path / "out/checkpoint-4.safetensors"
    save_checkpoint(path, load_checkpoint(path) | {"processes": 2})
    lines = []
    assert prepare(settings(folder, tmp_path / "out", resume_from_checkpoint="checkpoint-4"), lines).step == 4
    assert any("written by 2 processes, this run has 1" in line for line in lines)


def test_a_new_run_puts_old_checkpoints_aside(folder, tmp_path):
    train(settings(folder, tmp_path / "out", checkpointing_steps=4))
    lines = []
    train(settings(folder, tmp_path / "out", max_train_steps=2, prelaunch_steps=1), lines)
    assert (tmp_path / "out/earlier-1/checkpoint-8.safetensors").is_file()
    assert any("earlier-1" in line for line in lines)
    lines = []
    prepare(settings(folder, tmp_path / "new", resume_from_checkpoint="latest"), lines)
    assert any("no checkpoint" in line for line in lines)


def test_a_lost_loss_stops_the_run_and_keeps_the_last_good_checkpoint(folder, tmp_path):
    config = settings(folder, tmp_path / "out", checkpointing_steps=2, max_train_steps=41, prelaunch_steps=40)
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


# -- two processes


# accelerate launch starts several processes on a CPU by MPI, or by a configuration of FSDP; torchrun needs neither.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "FSDP": ["accelerate.commands.launch", "--config_file", str(ROOT / "docs" / "fsdp.yaml")],
}


LOWEST = tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 8)  # FSDP needs a gloo that averages


@pytest.mark.parametrize(
    "launcher", ["torchrun", pytest.param("FSDP", marks=pytest.mark.skipif(LOWEST, reason="needs PyTorch 2.8"))]
)
def test_two_processes_train_what_one_does(folder, tmp_path, launcher):
    # Adam divides by the gradient's size: a tiny epsilon would blow the rounding of near-zero gradients up to whole
    # steps, and two orders of summation would be told apart by nothing but that.
    train(settings(folder, tmp_path / "one", train_batch_size=4, adam_epsilon=1e-2))
    command = [
        *(sys.executable, "-m", *LAUNCHERS[launcher]),
        *(str(SCRIPT), "--instance_data", str(folder / "cat"), "--output_dir", str(tmp_path / "two")),
        *("--pretrained_model_name_or_path", str(folder / "sd"), "--rank", "2", "--dash_k", "3"),
        *("--max_train_steps", "8", "--prelaunch_steps", "4", "--train_batch_size", "2", "--learning_rate", "1e-2"),
        *("--num_inference_steps", "2", "--validation_prompt", "a photo of sks cat", "--adam_epsilon", "1e-2"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("dash_adapter.safetensors", "pytorch_lora_weights.safetensors", "kohya/{}.safetensors"):
        one, two = (load_file(tmp_path / out / name.format(out)) for out in ("one", "two"))
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            if key.endswith("indices"):
                assert torch.equal(tensor, two[key])
            else:
                assert torch.allclose(tensor, two[key], atol=1e-5, rtol=0), key
    assert done.stdout.count("base: " + str(folder)) == 1  # one process speaks
    report = json.loads((tmp_path / "two/run.json").read_text())
    assert (report["processes"], report["fsdp"]) == (2, launcher == "FSDP")
    difference = np.asarray(Image.open(tmp_path / "one/samples.png")) - np.asarray(
        Image.open(tmp_path / "two/samples.png"), np.int16
    )
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("optimizer", [{"optimizer": "prodigy", "learning_rate": 1.0}, {"use_8bit_adam": True}])
def test_optimizers_that_take_no_split_model_are_refused(folder, tmp_path, optimizer):
    gc.collect()
    one = accelerator()
    one.state.num_processes = 2  # refused before any process would be needed
    with pytest.raises(InputError, match="FSDP splits the optimizer's numbers too"):
        DreamBoothRun(settings(folder, tmp_path / "out", **optimizer), one, print, sharded=True)
    accelerator()


def test_the_same_batch_split_otherwise_goes_on_with_the_same_pictures(folder, tmp_path):
    """Half of the run with a batch of 4; then 2 x 2 accumulated, and as of two processes with 2 each."""
    common = {"adam_epsilon": 1e-2, "checkpointing_steps": 4, "checkpoints_total_limit": None}
    train(settings(folder, tmp_path / "whole", train_batch_size=4, **common))
    expected = load_file(tmp_path / "whole/dash_adapter.safetensors")
    path = tmp_path / "whole/checkpoint-4.safetensors"
    state = load_checkpoint(path)
    of_two = tmp_path / "checkpoint-4.safetensors"
    was = {**state["settings"], "train_batch_size": 2}
    save_checkpoint(of_two, state | {"processes": 2, "settings": was})
    ways = [
        (path, {"train_batch_size": 2, "gradient_accumulation_steps": 2}),
        (of_two, {"train_batch_size": 4}),
        (of_two, {"train_batch_size": 1, "gradient_accumulation_steps": 4}),
    ]
    for number, (checkpoint, split) in enumerate(ways):
        out, lines = tmp_path / f"out-{number}", []
        train(settings(folder, out, resume_from_checkpoint=str(checkpoint), **split, **common), lines)
        assert any("the same batches, split otherwise" in line for line in lines) == (checkpoint == of_two)
        found = load_file(out / "dash_adapter.safetensors")
        assert all(torch.allclose(t, found[key], atol=1e-5, rtol=0) for key, t in expected.items())
    config = settings(folder, tmp_path / "no", resume_from_checkpoint=str(path), train_batch_size=2, **common)
    with pytest.raises(InputError, match="--train_batch_size 4, this run has 2"):
        prepare(config)


def test_pictures_of_several_sizes_depend_on_the_batch_of_each_process(folder, tmp_path):
    common = {"aspect_ratio_buckets": True, "checkpointing_steps": 4}
    train(settings(folder, tmp_path / "out", train_batch_size=4, **common))
    changes = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "checkpoint-4"}
    with pytest.raises(InputError, match="--train_batch_size 4, this run has 2"):
        prepare(settings(folder, tmp_path / "out", **changes, **common))


# -- precision and memory


def test_bf16_keeps_trainable_parameters_in_float32(folder, tmp_path):
    run = train(settings(folder, tmp_path / "out"), mixed_precision="bf16")
    assert {p.dtype for p in run.adapters["unet"].parameters()} == {torch.float32}
    assert run.base.pipeline.unet.conv_in.weight.dtype == torch.bfloat16
    assert all(torch.isfinite(p).all() for p in run.adapters["unet"].parameters())
    exact = train(settings(folder, tmp_path / "exact"))
    # Eight rounded steps stay near the exact ones: the loss is the same to bf16's two or three digits.
    assert run.losses == pytest.approx(exact.losses, rel=0.03)


def test_prodigy_trains_and_resumes(folder, tmp_path):
    pytest.importorskip("prodigyopt", reason="needs the extra dash-vision[prodigy]")
    changes = {"optimizer": "prodigy", "learning_rate": None, "checkpointing_steps": 3, "checkpoints_total_limit": 3}
    whole = train(settings(folder, tmp_path / "whole" / "out", **changes))
    assert whole.config.learning_rate == 1.0
    changes["resume_from_checkpoint"] = str(tmp_path / "whole/out/checkpoint-3.safetensors")
    train(settings(folder, tmp_path / "again" / "out", **changes))
    files = [(tmp_path / name / "out/dash_adapter.safetensors").read_bytes() for name in ("whole", "again")]
    assert files[0] == files[1]
    with pytest.raises(InputError, match="one learning rate for all"):
        prepare(settings(folder, tmp_path / "bad", optimizer="prodigy", learning_rate=1.0, dash_lr=2.0))


def test_8_bit_adam_trains_and_resumes(folder, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra dash-vision[8bit]")
    # It keeps 8 bits a number for tensors of 4,096 and more: rank 200 makes such ones of this small base.
    changes = {"use_8bit_adam": True, "rank": 200, "checkpointing_steps": 3, "checkpoints_total_limit": 3}
    whole = train(settings(folder, tmp_path / "whole" / "out", **changes))
    assert isinstance(whole.optimizer, bitsandbytes.optim.AdamW8bit)
    assert any(state["state1"].dtype == torch.uint8 for state in whole.optimizer.state.values())
    changes["resume_from_checkpoint"] = str(tmp_path / "whole/out/checkpoint-3.safetensors")
    train(settings(folder, tmp_path / "again" / "out", **changes))
    files = [(tmp_path / name / "out/dash_adapter.safetensors").read_bytes() for name in ("whole", "again")]
    assert files[0] == files[1]


def test_tensorboard_gets_every_step_and_the_samples(folder, tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra dash-vision[trackers]"
    )
    AcceleratorState._reset_state()
    PartialState._reset_state()
    logging = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path / "logs"))
    logging.init_trackers("dash-vision")
    config = settings(folder, tmp_path / "out")
    run = DreamBoothRun(config, logging, print)
    run.fit()
    run.save()
    logging.end_training()
    found = events.EventAccumulator(str(tmp_path / "logs/dash-vision"))
    found.Reload()
    scalars = [(event.step, event.value) for event in found.Scalars("loss")]
    assert [step for step, _ in scalars] == list(range(1, 9))
    assert [value for _, value in scalars] == pytest.approx(run.losses, rel=1e-5)
    assert found.Images("samples")


def test_every_trained_parameter_gets_a_gradient(folder, tmp_path):
    run = prepare(settings(folder, tmp_path / "out", base="sdxl", train_text_encoder=True))
    sum(run._loss(batch) for batch in run._batches(0)).backward()
    assert {"unet", "text_encoder", "text_encoder_2"} == run.adapters.keys()
    for name, adapter in run.adapters.items():
        for key, parameter in adapter.named_parameters():
            assert parameter.grad is not None, f"{name} {key}"  # DDP would wait for it


def test_gradient_checkpointing_changes_nothing(folder, tmp_path):
    runs = [
        train(settings(folder, tmp_path / str(on), gradient_checkpointing=on, train_text_encoder=True))
        for on in (False, True)
    ]
    assert runs[1].losses == pytest.approx(runs[0].losses, rel=1e-4)
    for a, b in zip(runs[0]._parameters(), runs[1]._parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


# -- the loss, against diffusers


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_target_and_weights_are_diffusers(prediction):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)
    ours = NoiseSchedule.of(scheduler)
    z, noise = torch.randn(6, 4, 3, 5), torch.randn(6, 4, 3, 5)
    t = torch.tensor([0, 1, 250, 600, 998, 999])
    assert torch.allclose(ours.noisy(z, noise, t), scheduler.add_noise(z, noise, t), atol=1e-6)
    target = noise if prediction == "epsilon" else scheduler.get_velocity(z, noise, t)
    assert torch.allclose(ours.target(z, noise, t), target, atol=1e-6)
    snr = compute_snr(scheduler, t)
    divisor = snr if prediction == "epsilon" else snr + 1
    expected = torch.minimum(snr, torch.tensor(5.0)) / divisor
    assert torch.allclose(ours.weights(t, 5.0), expected, rtol=1e-4)
    assert torch.equal(ours.weights(t, None), torch.ones(6))
    weights = torch.rand(6)
    by_hand = torch.stack([w * ((a - b) ** 2).mean() for w, a, b in zip(weights, z, noise, strict=True)])
    assert torch.allclose(denoising_loss(z, noise, weights), by_hand)


def test_a_zero_terminal_snr_is_trained_too():
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="epsilon")
    schedule = NoiseSchedule.of(scheduler)
    last = torch.tensor([999])
    assert schedule.weights(last, 5.0).item() == 1
    assert torch.isfinite(schedule.noisy(torch.ones(1, 1), torch.ones(1, 1), last)).all()


# -- batches


def examples(sizes):
    def view(size):
        return View(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), CropInfo((2, 2), (0, 0)), size)

    return [Example(str(i), "p", (view(size),)) for i, size in enumerate(sizes)]


def test_every_epoch_holds_every_picture_once():
    order = Order(examples([(2, 2)] * 5), 3, seed=4, stream="x")
    drawn = [index for number in range(10) for index, _ in order.batch(number)]
    epochs = [drawn[i : i + 5] for i in range(0, 30, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_batch_size_does_not_change_the_order():
    by_six, by_two = (Order(examples([(2, 2)] * 5), size, 4, "x") for size in (6, 2))
    assert by_six.batch(1) == by_two.batch(3) + by_two.batch(4) + by_two.batch(5)


def test_batches_hold_pictures_of_one_size():
    sizes = [(2, 2)] * 5 + [(4, 2)] * 2 + [(2, 4)]
    order = Order(examples(sizes), 3, seed=1, stream="x")
    for epoch in range(3):
        seen = set()
        for number in range(4 * epoch, 4 * epoch + 4):  # 2 + 1 + 1 batches
            batch = [index for index, _ in order.batch(number)]
            assert len(batch) == 3
            assert len({sizes[i] for i in batch}) == 1
            seen.update(batch)
        assert seen == set(range(8))


def test_streams_and_seeds_are_apart():
    draws = {
        (seed, stream, n): torch.rand(1, generator=generator(seed, stream, n)).item()
        for seed in (0, 1, 2**62)
        for stream in ("a", "b", "ab")
        for n in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)
    assert torch.rand(1, generator=generator(0, "a", 1)).item() == draws[0, "a", 1]


def test_buckets_captions_and_prior_preservation_train_together(folder, tmp_path):
    pictures = tmp_path / "dog"
    pictures.mkdir()
    for i, size in enumerate([(64, 64), (96, 48), (48, 96)]):
        Image.new("RGB", size, (40 * i, 90, 120)).save(pictures / f"{i}.png")
    (pictures / "1.txt").write_text("a wide sks dog")
    config = settings(
        folder,
        tmp_path / "out",
        instance_data_dir=str(pictures),
        aspect_ratio_buckets=True,
        resolution=32,
        with_prior_preservation=True,
        num_class_images=2,
        max_train_steps=4,
        prelaunch_steps=2,
    )
    lines = []
    run = train(config, lines)
    assert [e.prompt for e in run.examples] == ["a photo of sks dog", "a wide sks dog", "a photo of sks dog"]
    assert len({e.views[0].size for e in run.examples}) == 3
    assert {e.prompt for e in run.class_examples} == {"a photo of dog"}
    made = sorted((tmp_path / "out/class_images/generated").glob("*.png"))
    assert len(made) == 2
    assert any("generating 2" in line for line in lines)
    before = [np.asarray(Image.open(p)).astype(int) for p in made]
    made[0].unlink()
    lines = []
    prepare(config, lines)
    assert any("generating 1" in line for line in lines)
    # Picture 0 again, from its own noise; alone it may round otherwise than in a batch of two.
    for path, expected in zip(made, before, strict=True):
        assert np.abs(np.asarray(Image.open(path)) - expected).max() <= 1
    lines = []
    prepare(config, lines)
    assert any("none generated" in line for line in lines)


def test_latents_are_cached_on_disk(folder, tmp_path, monkeypatch):
    config = settings(folder, tmp_path / "out", latent_cache_dir=str(tmp_path / "cache"))
    first = prepare(config)
    first.close()
    files = list((tmp_path / "cache").iterdir())
    assert files
    monkeypatch.setattr("dash_vision.diffusion.data.encode_picture", lambda *a: pytest.fail("encoded again"))
    again = prepare(config)
    again.close()
    monkeypatch.undo()
    for a, b in zip(first.examples, again.examples, strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            assert torch.equal(x.mean, y.mean)
            assert torch.equal(x.std, y.std)
    files[0].write_bytes(b"cut short")
    repaired = prepare(config)
    assert torch.equal(repaired.examples[0].views[0].mean, first.examples[0].views[0].mean)


def test_what_a_long_prompt_loses_is_said(folder, tmp_path):
    lines = []
    prompt = "a photo of sks cat on top of green grass with sunflowers around it in the snow"
    config = settings(folder, tmp_path / "out", instance_prompt=prompt, validation_prompt=["a cat in the snow"])
    prepare(config, lines)
    (note,) = [line for line in lines if "longer than this base reads" in line]
    assert prompt in note
    # 12 places, less those of the start and the end: ten words are read, up to "grass".
    assert note.endswith('"with sunflowers around it in the snow"')


def test_random_crops_are_cached_as_variants(folder, tmp_path):
    run = prepare(settings(folder, tmp_path / "out", num_crop_variants=3, resolution=16))
    assert {len(e.views) for e in run.examples} == {1}  # square pictures leave a square crop no room
    wide = tmp_path / "wide"
    wide.mkdir()
    Image.effect_noise((60, 20), 90).convert("RGB").save(wide / "a.png")
    run = prepare(settings(folder, tmp_path / "out2", instance_data_dir=str(wide), num_crop_variants=3))
    views = run.examples[0].views
    assert len(views) == 3
    assert len({v.info.crop_top_left for v in views}) == 3
    centre = prepare(
        settings(folder, tmp_path / "out3", instance_data_dir=str(wide), center_crop=True, random_flip=True)
    )
    assert len(centre.examples[0].views) == 2


# -- families and sampling, against diffusers


@pytest.mark.parametrize("base", ["sd", "sdxl"])
def test_prompts_and_pictures_are_encoded_as_diffusers_does(folder, base):
    ours = load_base(str(folder / base))
    prompts = ["a photo of sks cat", "a red dog on the beach"]
    ids = ours.family.tokenize(ours.pipeline, prompts)
    states = ours.family.encode_tokens(ours.text_encoders(), ids)
    stock = ours.pipeline.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(states["prompt_embeds"], stock[0])
    if base == "sdxl":
        assert torch.equal(states["text_embeds"], stock[2])
        infos = [CropInfo((100, 80), (3, 5))]
        expected = ours.pipeline._get_add_time_ids((100, 80), (3, 5), (32, 16), torch.float32, 32)
        assert torch.equal(ours.family.picture_conditions(infos, (16, 32))["time_ids"], expected)


@pytest.mark.parametrize("base", ["sd", "sd-v", "sdxl"])
def test_samples_are_those_of_the_stock_pipeline(folder, base):
    ours = load_base(str(folder / base))
    how = Sampling(steps=3, guidance=4.0, size=(16, 16), batch_size=2)
    prompts = ["a cat", "a dog", "a clock"]
    seeds = [(0, 0), (0, 1), (0, 2)]
    pictures = sample(ours, prompts, seeds, how, torch.device("cpu"))
    noise = starting_noise(ours, seeds, (16, 16))
    for i, prompt in enumerate(prompts):
        stock = ours.pipeline(
            prompt, width=16, height=16, num_inference_steps=3, guidance_scale=4.0, latents=noise[i : i + 1]
        ).images[0]
        worst = max(abs(a - b) for a, b in zip(stock.tobytes(), pictures[i].tobytes(), strict=True))
        assert worst <= 1  # rounding


def test_a_picture_too_large_to_decode_at_once_is_decoded_in_tiles(folder, monkeypatch, caplog):
    base = load_base(str(folder / "sd"))
    vae = base.pipeline.vae
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    whole, decode = decode_latents(base, latents), vae.decode

    def scarce(z):
        if not vae.use_tiling:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(z)

    monkeypatch.setattr(vae, "decode", scarce)
    # Latents of one tile's size are one tile: the same picture.
    assert torch.equal(decode_latents(base, latents), whole)
    assert "in tiles" in caplog.text
    assert not vae.use_tiling


def test_trap_10_seed_zero_is_a_seed_and_methods_share_their_noise(folder, tmp_path):
    base = load_base(str(folder / "sd"))
    a, b, c = (starting_noise(base, [pair], (16, 16)) for pair in ((0, 0), (0, 0), (1, 0)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    # With learning rate 0 nothing is learned, so base and trained rows are equal only if their noise is.
    config = settings(
        folder, tmp_path / "out", learning_rate=0.0, validation_prompt=["a photo of sks cat", "a sks cat in the snow"]
    )
    train(config)
    with Image.open(tmp_path / "out/samples.png") as sheet:
        tile, gap, left, margin = 192, 12, 28 + 132, 28
        bottom = sheet.height - margin - 17 - 8 - gap  # one line of footnote
        rows = [sheet.crop((left, y - tile, left + 2 * tile + gap, y)) for y in (bottom, bottom - tile - gap)]
    assert len(rows[0].getcolors(1 << 20)) > 50
    assert rows[0].tobytes() == rows[1].tobytes()


def test_revisions_pin_what_is_fetched_from_the_hub(folder, monkeypatch):
    """Of the index, of the pipeline, and of a VAE of its own."""
    asked = {}

    def recording(owner, name):
        original = getattr(owner, name)

        def call(where, *more, **options):
            asked.setdefault((owner.__name__, name), []).append(options.pop("revision", None))
            return original(where, *more, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        (DiffusionPipeline, "load_config"),
        (StableDiffusionPipeline, "from_pretrained"),
        (AutoencoderKL, "from_pretrained"),
    ):
        recording(owner, name)
    load_base(str(folder / "sd"), revision="abc", vae=str(folder / "sd" / "vae"), vae_revision="def")
    # The first calls are ours, later ones diffusers' own for the parts; the VAE of its own comes last.
    assert asked["DiffusionPipeline", "load_config"][0] == "abc"
    assert asked["StableDiffusionPipeline", "from_pretrained"] == ["abc"]
    assert asked["AutoencoderKL", "from_pretrained"][-1] == "def"


@pytest.mark.parametrize("base", ["sd", "sdxl"])
def test_a_single_file_is_the_same_base(folder, tmp_path, base):
    whole = load_base(str(folder / base))
    path = save_single_file(whole.pipeline, tmp_path / "model.safetensors")
    single = load_base(str(path), single_file_config=str(folder / base))
    assert single.family is whole.family
    for name, network in whole.components().items():
        state = single.components()[name].state_dict()
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items()), name


# -- what is said about bad input


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/folder/here", "there is no such folder; check the path"),
        ("someone/some-model", "not in the hub cache while HF_HUB_OFFLINE"),
        ("EMPTY", "model_index.json"),
        ("FLUX", "is a FluxPipeline; dash-vision trains Stable Diffusion"),
        ("PICKLE", "not a .safetensors file"),
        ("LORA", "holds no Stable Diffusion"),
        ("CUT", "no complete .safetensors file"),
    ],
)
def test_bases_that_cannot_be_used(tmp_path, name, words):
    from safetensors.torch import save_file

    if name == "EMPTY":
        (tmp_path / "empty").mkdir()
        name = str(tmp_path / "empty")
    elif name == "FLUX":
        (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        name = str(tmp_path)
    elif name == "PICKLE":
        name = str(tmp_path / "model.ckpt")
        torch.save({}, name)
    elif name == "LORA":
        name = str(tmp_path / "lora.safetensors")
        save_file({"unet.x.lora_A.weight": torch.zeros(2, 2)}, name)
    elif name == "CUT":
        name = str(tmp_path / "model.safetensors")
        Path(name).write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match=words) as caught:
        load_base(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--instance_data is missing"),
        (["--instance_data", "x", "--max_train_step", "5"], "did you mean --max_train_steps"),
        (["--instance_data", "x", "--rank", "two"], "argument --rank: invalid int value: 'two'"),
        (["--instance_data", "x", "--rank", "0"], "--rank is 0; it takes a number of 1 or more"),
        (["--instance_data", "x", "--learning_rate", "nan"], "--learning_rate is nan"),
        (["--instance_data", "x", "--lr_scheduler", "cosin"], "invalid choice: 'cosin'"),
        (["--instance_data", "x", "--class_prompt", "a cat"], "does nothing without --with_prior_preservation"),
        (["--instance_data", "x", "--config", "none.yaml"], "there is no settings file none.yaml"),
    ],
)
def test_wrong_settings_are_one_sentence_and_status_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as status:
        parse(DreamBoothConfig, "", "", arguments)
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_settings_come_from_files_and_the_command_line_wins(tmp_path):
    (tmp_path / "a.yaml").write_text("instance_data: x\nlearning_rate: 1e-4\ndash_k: 3\nrandom_flip: true\n")
    config = parse(DreamBoothConfig, "", "", ["--config", str(tmp_path / "a.yaml"), "--dash-k", "5"])
    assert (config.instance_data_dir, config.learning_rate, config.dash_k, config.random_flip) == ("x", 1e-4, 5, True)
    (tmp_path / "b.json").write_text('{"instance_data_dir": "y", "validation_prompt": ["a", "b"]}')
    config = parse(DreamBoothConfig, "", "", ["--config", str(tmp_path / "b.json"), "--center_crop"])
    assert (config.validation_prompt, config.center_crop) == (["a", "b"], True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instance_data: x\nranks: 3\n", "unknown setting ranks; did you mean rank"),
        ("instance_data: x\nrank: 3.5\n", "rank is 3.5; it takes a whole number"),
        ("instance_data: x\nrank: true\n", "it takes a whole number"),
        ("- 1\n- 2\n", "holds no settings"),
        ("a: [", "not valid YAML"),
        ("instance_data: x\noptimizer: sgd\n", "it takes adamw, prodigy"),
    ],
)
def test_bad_settings_files(tmp_path, text, words, capsys):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse(DreamBoothConfig, "", "", ["--config", str(tmp_path / "a.yaml")])
    assert words in capsys.readouterr().err


def test_pictures_are_looked_at_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dash_vision.diffusion.training.load_base", lambda *a: pytest.fail("loaded a model"))
    with pytest.raises(InputError, match="no folder"):
        prepare(settings(folder, tmp_path / "out", instance_data_dir=str(tmp_path / "dgo"), instance_prompt="x"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 20}, "multiples of 8"),
        ({"lora_target": ["to_x"]}, "to_x"),
        ({"optimizer": "prodigy"}, r"pip install 'dash-vision\[prodigy\]'"),
        ({"use_8bit_adam": True}, r"pip install 'dash-vision\[8bit\]'"),
    ],
)
def test_settings_that_do_not_fit_the_base(folder, tmp_path, changes, words, monkeypatch):
    for package in ("prodigyopt", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=words):
        prepare(settings(folder, tmp_path / "out", **changes))


def test_two_runs_do_not_share_a_folder(folder, tmp_path):
    first = prepare(settings(folder, tmp_path / "out"))
    with pytest.raises(InputError, match="another run is writing"):
        prepare(settings(folder, tmp_path / "out"))
    first.close()
    assert prepare(settings(folder, tmp_path / "out")).step == 0


def test_an_output_folder_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to --output_dir"):
        prepare(settings(folder, tmp_path / "file" / "out"))


def test_the_script_reports_in_one_sentence(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--instance_data",
        str(tmp_path / "nothing"),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stderr.startswith("train_dreambooth.py: error: there is no folder")
    assert done.stderr.count("\n") == 1


# -- prompts


@pytest.mark.parametrize(
    ("name", "kind"), [("cat", "cat"), ("my_dogs-2", "my dogs"), ("../x/Red Vase/", "red vase"), ("123", "")]
)
def test_class_names_come_from_folders(name, kind):
    assert class_name(name) == kind


def test_prompts():
    prompts = derive_prompts(DreamBoothConfig(instance_data_dir="some/cat"))
    assert prompts == Prompts("a photo of sks cat", "a photo of cat", "sks cat")
    assert default_validation_prompts(prompts)[1] == "a sks cat in the snow"
    own = derive_prompts(DreamBoothConfig(instance_data_dir="cat", instance_prompt="a photo of a sks dog"))
    assert default_validation_prompts(own)[2] == "a sks dog on the beach"
    assert own.class_ == "a photo of a dog"
    free = derive_prompts(DreamBoothConfig(instance_data_dir="cat", instance_prompt="rainy window"))
    assert default_validation_prompts(free) == ["rainy window"]
    with pytest.raises(InputError, match="--instance_prompt"):
        derive_prompts(DreamBoothConfig(instance_data_dir="2024"))


# -- torch.compile


def compiled_run(folder, out, monkeypatch, *words, backend="eager"):
    """The exit status of a run by main(). backend: what stands in for inductor, which takes a minute to compile."""
    monkeypatch.setattr("accelerate.utils.TorchDynamoPlugin", lambda **options: TorchDynamoPlugin(backend=backend))
    AcceleratorState._reset_state(reset_partial_state=True)
    common = {"instance_data_dir": folder / "cat", "output_dir": out, "pretrained_model_name_or_path": folder / "sd"}
    common |= {"rank": 2, "dash_k": 3, "max_train_steps": 6, "prelaunch_steps": 3, "learning_rate": 1e-2}
    common |= {"num_inference_steps": 2, "validation_prompt": "a photo of sks cat"}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        return train_dreambooth.main([*(w for k, v in common.items() for w in (f"--{k}", str(v))), *words])
    finally:
        signal.signal(signal.SIGTERM, terminate)
        AcceleratorState._reset_state(reset_partial_state=True)


def test_compiling_changes_nothing_and_one_graph_lasts_through_both_phases(folder, tmp_path, monkeypatch):
    torch._dynamo.utils.counters.clear()
    assert compiled_run(folder, tmp_path / "plain", monkeypatch) == 0
    assert not torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    try:
        assert compiled_run(folder, tmp_path / "compiled", monkeypatch, "--compile") == 0
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
    finally:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    plain, compiled = (json.loads((tmp_path / n / "run.json").read_text()) for n in ("plain", "compiled"))
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert [p["phase"] for p in compiled["phases"]] == ["pre-launch", "dash"]
    files = [load_file(tmp_path / n / "pytorch_lora_weights.safetensors") for n in ("plain", "compiled")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.allclose(value, files[1][key], atol=1e-4) for key, value in files[0].items())


def test_what_cannot_be_compiled_is_one_sentence(folder, tmp_path, monkeypatch, capsys):
    def broken(graph, inputs):
        raise OSError("no compiler\nhere")

    monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, "eager", broken)
    try:
        assert compiled_run(folder, tmp_path / "out", monkeypatch, "--compile") == 1
    finally:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert "torch.compile cannot compile the network here" in said[0]
    assert "no compiler" in said[0]
    assert "leave --compile out" in said[0]
