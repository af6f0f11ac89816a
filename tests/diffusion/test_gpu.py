"""DreamBooth runs on a GPU: precision, compiling, 8-bit Adam, offloading, resuming."""

import functools

import pytest
import torch

from dash_vision.bases.offloading import offload_of
from dash_vision.core.quantized import is_quantized
from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.run import finish, fit
from tests.support import gpu
from tests.support.dreambooth import fitted, prepare, settings, states, train
from tests.support.paths import ROOT
from tests.support.quantized import need

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exactly():
    with gpu.exact():
        yield


def on_gpu(config, mixed_precision="no"):
    return fitted(config, mixed_precision=mixed_precision, device=gpu.DEVICE)


def assert_equal(job, other):
    one, two = states(job), states(other)
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    assert job.training.losses == other.training.losses


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_learns_what_it_learns_on_a_cpu(bases, tmp_path, precision):
    found = on_gpu(settings(bases, tmp_path / "gpu"), precision)
    expected = fitted(settings(bases, tmp_path / "cpu"))
    assert found.adapters["unet"].launched
    assert {p.device.type for p in found.training.parameters} == {gpu.DEVICE}
    assert {p.dtype for p in found.training.parameters} == {torch.float32}
    tolerance = {"no": 1e-3, "bf16": 0.03, "fp16": 0.03}[precision]
    assert found.training.losses == pytest.approx(expected.training.losses, rel=tolerance)


def test_fp16_scales_the_loss_leaves_out_what_overflows_and_resumes_bit_for_bit(bases, tmp_path, monkeypatch):
    """From a loss scale of 2 ** 30 the first gradients overflow; the launch counts the updates that were made."""
    for scaler in ("torch.amp.GradScaler", "torch.cuda.amp.GradScaler"):
        module, _, name = scaler.rpartition(".")
        patched = functools.partial(getattr(torch.amp, name), init_scale=2.0**30)
        monkeypatch.setattr(f"{module}.{name}", patched)
    changes = {"max_train_steps": 24, "checkpointing_steps": 8, "checkpoints_total_limit": 4, "prelaunch_steps": 3}
    whole = on_gpu(settings(bases, tmp_path / "whole/out", **changes), "fp16")
    skipped = whole.training.step - whole.training.updates
    assert 0 < skipped < 21
    assert 3 < whole.training.launch["step"] <= skipped + 3
    assert whole.runtime.accelerator.scaler.get_scale() == 2.0 ** (30 - skipped)
    for step in (8, 16):
        changes["resume_from_checkpoint"] = str(tmp_path / f"whole/out/checkpoint-{step}.safetensors")
        assert_equal(on_gpu(settings(bases, tmp_path / f"{step}/out", **changes), "fp16"), whole)


def test_a_compiled_run_is_one_graph_through_the_launch(bases, tmp_path, monkeypatch):
    if gpu.DEVICE == "cpu":  # a try: inductor takes minutes there
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain = on_gpu(settings(bases, tmp_path / "plain", max_train_steps=6, prelaunch_steps=3))
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch._dynamo.reset()
    try:
        compiled = on_gpu(settings(bases, tmp_path / "out", max_train_steps=6, prelaunch_steps=3, compile=True))
        assert counters["stats"]["unique_graphs"] == 1
        assert not counters["graph_break"]
    finally:
        torch._dynamo.reset()
        counters.clear()
    assert compiled.training.launch["step"] == 3
    assert compiled.training.losses == pytest.approx(plain.training.losses, rel=1e-3)


def test_8_bit_adam_trains_and_resumes_bit_for_bit(bases, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra dash-vision[8bit]")
    # It keeps 8 bits a number for tensors of 4,096 and more: rank 200 makes such ones of this small base.
    changes = {"use_8bit_adam": True, "rank": 200, "checkpointing_steps": 3, "checkpoints_total_limit": 3}
    whole = on_gpu(settings(bases, tmp_path / "whole/out", **changes))
    (optimizer,) = whole.training.optimizers
    assert isinstance(optimizer, bitsandbytes.optim.AdamW8bit)
    assert any(state["state1"].dtype == torch.uint8 for state in optimizer.state.values())
    changes["resume_from_checkpoint"] = str(tmp_path / "whole/out/checkpoint-3.safetensors")
    assert_equal(on_gpu(settings(bases, tmp_path / "again/out", **changes)), whole)


def test_a_base_in_four_bits_trains_and_resumes_bit_for_bit(bases, tmp_path):
    need("nf4")
    changes = {"quantize": "nf4", "checkpointing_steps": 3, "checkpoints_total_limit": 3}
    whole = on_gpu(settings(bases, tmp_path / "whole/out", **changes))
    layers = whole.adapters["unet"].layers.values()
    assert any(is_quantized(layer.base) for layer in layers)
    assert {layer.base.weight.device.type for layer in layers} == {gpu.DEVICE}
    exact = on_gpu(settings(bases, tmp_path / "exact/out"))
    assert whole.training.losses == pytest.approx(exact.training.losses, rel=0.2)
    changes["resume_from_checkpoint"] = str(tmp_path / "whole/out/checkpoint-3.safetensors")
    assert_equal(on_gpu(settings(bases, tmp_path / "again/out", **changes)), whole)


@pytest.mark.parametrize("offload", ["model", "group"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_offloaded_run_is_the_same_to_the_last_bit(bases, tmp_path, offload, checkpointing):
    common = {"gradient_checkpointing": checkpointing, "max_train_steps": 6, "prelaunch_steps": 3}
    plain = on_gpu(settings(bases, tmp_path / "plain", **common))
    job = train(settings(bases, tmp_path / "out", offload=offload, **common), device=gpu.DEVICE)
    assert_equal(job, plain)
    waits = offload_of(job.base.denoiser)
    assert (waits is not None) == (offload == "group")
    if waits is not None:
        assert {parameter.device.type for parameter in waits._homes.values()} == {"cpu"}
        assert {parameter.device.type for parameter in job.training.parameters} == {gpu.DEVICE}


def test_the_cat_is_trained_and_a_resumed_run_is_bit_for_bit_the_same(tmp_path):
    """The embedded base, two samples on the way and two at the end."""

    def run(out, **changes):
        common = {"instance_data_dir": str(ROOT / "cat"), "output_dir": str(out), "dash_k": 8, "rank": 4}
        common |= {"max_train_steps": 30, "prelaunch_steps": 10, "checkpointing_steps": 15, "validation_steps": 20}
        common |= {"num_inference_steps": 4, "validation_prompt": ["a {} in the snow", "a {} on the beach"]}
        job = prepare(DreamBoothConfig(**common, checkpoints_total_limit=4, **changes), device=gpu.DEVICE)
        fit(job)
        finish(job)
        return job

    whole = run(tmp_path / "whole/out")
    assert whole.adapters["unet"].launched
    checkpoint = tmp_path / "whole/out/checkpoint-15.safetensors"
    again = run(tmp_path / "again/out", resume_from_checkpoint=str(checkpoint))
    assert_equal(again, whole)
    for name in ("samples.png", "validation/step-000020.png"):
        assert (tmp_path / "again/out" / name).read_bytes() == (tmp_path / "whole/out" / name).read_bytes()
