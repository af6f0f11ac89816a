"""Adapters on the way: --save_lora_every, and checkpoints that inspect and export take."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from dash_vision.__main__ import main
from dash_vision.core.loading import load_adapter, read_adapters
from dash_vision.files.checkpoint import load_checkpoint, save_checkpoint
from dash_vision.files.errors import InputError
from tests.support.dreambooth import settings, train
from tests.support.models import unet_inputs

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "out"
    kept = {"save_lora_every": 3, "checkpointing_steps": 3, "checkpoints_total_limit": None, "validation_steps": 4}
    train(settings(bases, out, **kept))
    return out


def test_adapters_are_kept_every_so_many_steps_beside_samples_of_their_own(run):
    assert sorted(path.name for path in (run / "adapters").iterdir()) == ["out-000003", "out-000006"]
    assert [path.name for path in (run / "validation").iterdir()] == ["step-000004.png"]
    assert (run / "adapters/out-000006/kohya/out-000006.safetensors").is_file()


def test_keeping_adapters_changes_nothing_of_the_run(run, bases, tmp_path):
    train(settings(bases, tmp_path / "out", checkpointing_steps=0))
    name = "dash_adapter.safetensors"
    assert (run / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("step", [3, 6])
def test_a_kept_adapter_works_in_a_stock_pipeline_as_the_checkpoint_of_its_step(run, bases, step):
    pipeline = StableDiffusionPipeline.from_pretrained(bases / "sd")
    unet = StableDiffusionPipeline.from_pretrained(bases / "sd").unet
    with torch.no_grad():
        untouched = unet(**unet_inputs(unet)).sample
        load_adapter(unet, run / f"checkpoint-{step}.safetensors")
        expected = unet(**unet_inputs(unet)).sample
        pipeline.load_lora_weights(str(run / f"adapters/out-{step:06d}"), weight_name=WEIGHTS)
        found = pipeline.unet(**unet_inputs(unet)).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - untouched).abs().max() > 1e-4


def test_export_and_inspect_take_checkpoints(run, tmp_path, capsys):
    for step, phase in ((3, "pre-launch"), (6, "dash (launched)")):
        checkpoint = str(run / f"checkpoint-{step}.safetensors")
        assert main(["inspect", checkpoint]) == 0
        said = capsys.readouterr().out
        assert "checkpoint of a run" in said
        assert f"step: {step}" in said
        assert phase in said
        assert main(["export", checkpoint, str(tmp_path / str(step)), "--to", "diffusers"]) == 0
        exported, kept = (load_file(f / WEIGHTS) for f in (tmp_path / str(step), run / f"adapters/out-{step:06d}"))
        assert exported.keys() == kept.keys()
        assert all(torch.equal(exported[key], kept[key]) for key in kept)


def test_a_checkpoint_of_a_text_encoder_too_and_one_of_plain_lora_are_read(bases, tmp_path):
    train(settings(bases, tmp_path / "out", dash_k=0, train_text_encoder=True, checkpointing_steps=8))
    states = read_adapters(tmp_path / "out/checkpoint-8.safetensors")
    written = read_adapters(tmp_path / "out/dash_adapter.safetensors")
    assert states.keys() == written.keys() == {"unet", "text_encoder"}
    for name, state in states.items():
        assert state.fingerprint == written[name].fingerprint
        assert all(torch.equal(state.tensors[key], tensor) for key, tensor in written[name].tensors.items())


def test_a_checkpoint_without_adapters_of_its_own_is_refused(run, tmp_path):
    state = load_checkpoint(run / "checkpoint-3.safetensors")
    del state["native"]
    save_checkpoint(tmp_path / "old.safetensors", state)
    with pytest.raises(InputError, match="keeps no adapter by itself"):
        read_adapters(tmp_path / "old.safetensors")
