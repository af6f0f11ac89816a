"""Precision, memory, optimizers and trackers of DreamBooth runs."""

import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

import dash_vision.core.decompositions as decompositions
from dash_vision.diffusion.run import finish, fit
from dash_vision.files.errors import InputError
from tests.support.dreambooth import before_each_batch, fitted, prepare, settings, states


def assert_equal(job, other):
    one, two = states(job), states(other)
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_the_launch_is_prepared_while_plain_lora_trains(bases, tmp_path, monkeypatch):
    expected = fitted(settings(bases, tmp_path / "a" / "out", train_text_encoder=True))
    where = []
    decompose = decompositions.decompose
    monkeypatch.setattr(decompositions, "decompose", lambda W: where.append(threading.current_thread()) or decompose(W))

    run = prepare(settings(bases, tmp_path / "b" / "out", train_text_encoder=True))

    def wait(batch):
        for adapter in run.adapters.values():
            adapter.decompositions.wait()

    before_each_batch(run, wait)
    fit(run)
    assert run.training.schedule.launched
    assert len(where) == sum(len(adapter.layers) for adapter in run.adapters.values())
    assert threading.main_thread() not in where
    assert run.training.losses == expected.training.losses


def test_bf16_keeps_trainable_parameters_in_float32(bases, tmp_path):
    run = fitted(settings(bases, tmp_path / "out"), mixed_precision="bf16")
    assert {p.dtype for p in run.adapters["unet"].parameters()} == {torch.float32}
    assert run.base.pipeline.unet.conv_in.weight.dtype == torch.bfloat16
    assert all(torch.isfinite(p).all() for p in run.adapters["unet"].parameters())
    exact = fitted(settings(bases, tmp_path / "exact"))
    # Eight rounded steps stay near the exact ones: the loss is the same to bf16's two or three digits.
    assert run.training.losses == pytest.approx(exact.training.losses, rel=0.03)


def test_the_launch_sees_the_weights_of_the_files_in_half_precision_too(bases, tmp_path):
    """A file in float32 is rounded by the cast, one in bfloat16 is not: only the former has to be read again."""
    job = prepare(settings(bases, tmp_path / "out"), mixed_precision="bf16")
    stored = load_file(bases / "sd/unet/diffusion_pytorch_model.safetensors")
    for module, layer in job.adapters["unet"].layers.items():
        assert torch.equal(layer.precise_weight().flatten(), stored[f"{module}.weight"].flatten())
    job.close()
    shutil.copytree(bases / "sd", tmp_path / "half")
    path = tmp_path / "half/unet/diffusion_pytorch_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in stored.items()}, path, {"format": "pt"})
    config = settings(bases, tmp_path / "again", pretrained_model_name_or_path=str(tmp_path / "half"))
    job = prepare(config, mixed_precision="bf16")
    for module, layer in job.adapters["unet"].layers.items():
        assert layer.precise_weight is None
        assert torch.equal(layer.base.weight, stored[f"{module}.weight"].bfloat16())
    job.close()


def test_prodigy_trains_and_resumes(bases, tmp_path):
    pytest.importorskip("prodigyopt", reason="needs the extra dash-vision[prodigy]")
    changes = {"optimizer": "prodigy", "learning_rate": None, "checkpointing_steps": 3, "checkpoints_total_limit": 3}
    whole = fitted(settings(bases, tmp_path / "whole" / "out", **changes))
    assert whole.plan.learning_rate == 1.0
    changes["resume_from_checkpoint"] = str(tmp_path / "whole/out/checkpoint-3.safetensors")
    assert_equal(fitted(settings(bases, tmp_path / "again" / "out", **changes)), whole)
    with pytest.raises(InputError, match="one learning rate for all"):
        prepare(settings(bases, tmp_path / "bad", optimizer="prodigy", learning_rate=1.0, dash_lr=2.0))


def test_8_bit_adam_trains_and_resumes(bases, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra dash-vision[8bit]")
    # It keeps 8 bits a number for tensors of 4,096 and more: rank 200 makes such ones of this small base.
    changes = {"use_8bit_adam": True, "rank": 200, "checkpointing_steps": 3, "checkpoints_total_limit": 3}
    whole = fitted(settings(bases, tmp_path / "whole" / "out", **changes))
    (optimizer,) = whole.training.optimizers
    assert isinstance(optimizer, bitsandbytes.optim.AdamW8bit)
    assert any(state["state1"].dtype == torch.uint8 for state in optimizer.state.values())
    changes["resume_from_checkpoint"] = str(tmp_path / "whole/out/checkpoint-3.safetensors")
    assert_equal(fitted(settings(bases, tmp_path / "again" / "out", **changes)), whole)


def test_tensorboard_gets_every_step_and_the_samples(bases, tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra dash-vision[trackers]"
    )
    run = prepare(settings(bases, tmp_path / "out"), log_with="tensorboard", folder=tmp_path)
    run.runtime.accelerator.init_trackers("dash-vision")
    fit(run)
    finish(run)
    run.runtime.close()
    found = events.EventAccumulator(str(tmp_path / "logs/dash-vision"))
    found.Reload()
    scalars = [(event.step, event.value) for event in found.Scalars("loss")]
    assert [step for step, _ in scalars] == list(range(1, 9))
    assert [value for _, value in scalars] == pytest.approx(run.training.losses, rel=1e-5)
    assert found.Images("samples")


def test_every_trained_parameter_gets_a_gradient(bases, tmp_path):
    run = prepare(settings(bases, tmp_path / "out", base="sdxl", train_text_encoder=True))
    run.loss(0).backward()
    assert {"unet", "text_encoder", "text_encoder_2"} == run.adapters.keys()
    for name, adapter in run.adapters.items():
        for key, parameter in adapter.named_parameters():
            assert parameter.grad is not None, f"{name} {key}"  # DDP would wait for it


def test_gradient_checkpointing_changes_nothing(bases, tmp_path):
    runs = [
        fitted(settings(bases, tmp_path / str(on), gradient_checkpointing=on, train_text_encoder=True))
        for on in (False, True)
    ]
    assert runs[1].training.losses == pytest.approx(runs[0].training.losses, rel=1e-4)
    for a, b in zip(runs[0].training.parameters, runs[1].training.parameters, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
