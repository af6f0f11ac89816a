"""`dash-vision plan`: what it counts against what torch's allocator counts, and what it says."""

import json
import shutil
from functools import cache

import psutil
import pytest
import torch

from benchmarks.step import allocated_on_cpu
from dash_vision.bases.loading import load_base
from dash_vision.bases.offloading import Offload, waiting_share
from dash_vision.diffusion import planning
from dash_vision.diffusion.command import _explain
from dash_vision.diffusion.estimate import Estimate, Stage
from dash_vision.diffusion.metering import Meter
from dash_vision.diffusion.planning import PlanConfig, estimate_for, parse_size
from tests.support.dreambooth import prepare, settings
from tests.support.paths import ROOT

CPU = torch.device("cpu")
GIB = 2**30


@cache
def miniature():
    return load_base(None, without_weights=True)


def estimated(base=None, **changes):
    return estimate_for(PlanConfig(instance_prompt="a photo of sks cat", **changes), base or miniature())


def part(found, stage, name):
    return next(one for one in found.stages if one.name == stage).device[name]


def test_a_meter_counts_what_is_alive_and_no_view_twice():
    before = torch.zeros(1000)
    with Meter() as meter:
        first = before + 1  # 4,000 bytes
        second = first.view(10, 100).T * 2  # 4,000 more
        del first
        third = second[:5]
        assert meter.live == 4000
    assert meter.peak == 8000
    assert third.shape == (5, 10)


@pytest.mark.parametrize(
    ("precision", "checkpointing", "text"),
    [("no", False, False), ("bf16", True, False), ("no", False, True)],
    ids=["float32", "bf16, checkpointing", "text encoder"],
)
def test_a_step_takes_what_is_planned(precision, checkpointing, text, tmp_path):
    changes = {"pretrained_model_name_or_path": None, "gradient_checkpointing": checkpointing, "train_batch_size": 2}
    changes |= {"train_text_encoder": text, "preserve_class": checkpointing}
    config = settings(ROOT, tmp_path / "out", **changes)
    job = prepare(config, mixed_precision=precision)

    def step():
        job.loss(0).backward()
        for parameter in job.training.parameters:
            parameter.grad = None

    step()
    measured = allocated_on_cpu(step)
    job.close()
    found = estimated(mixed_precision=precision, no_gpu=True, rank=2, dash_k=3, **changes)
    assert part(found, "training", "gradients and activations") == pytest.approx(measured, rel=0.1)


def test_weights_and_optimizer_are_counted_by_their_numbers():
    found = estimated(mixed_precision="bf16", rank=4, dash_k=8, use_8bit_adam=True)
    unet = miniature().denoiser
    assert part(found, "training", "denoiser") == 2 * sum(p.numel() for p in unet.parameters())
    layers = [m for n, m in unet.named_modules() if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    trained = sum(4 * (layer.in_features + layer.out_features) + 8 for layer in layers)
    assert part(found, "training", "optimizer") == 2 * trained
    directions = sum(8 * (layer.in_features + layer.out_features) for layer in layers)
    assert part(found, "training", "adapter") == pytest.approx(4 * (trained + directions), rel=0.01)


def test_quantized_weights_count_in_their_bits():
    """nf4 takes half a byte for a weight and four bytes for 64, int8 a byte."""
    unet = miniature().denoiser
    linear = sum(m.weight.numel() for m in unet.modules() if isinstance(m, torch.nn.Linear))
    rest = sum(p.numel() for p in unet.parameters()) - linear
    for word, each in (("nf4", 0.5625), ("int8", 1)):
        found = estimated(mixed_precision="bf16", quantize=word)
        assert part(found, "training", "denoiser") == pytest.approx(2 * rest + each * linear, abs=1)


def test_a_gpu_takes_its_norms_in_float32():
    """Whose autocast keeps them so, as torch's documentation of autocast lists it."""
    on_cpu, on_gpu = (estimated(mixed_precision="bf16", no_gpu=no_gpu) for no_gpu in (True, False))
    name = "gradients and activations"
    assert part(on_gpu, "training", name) > part(on_cpu, "training", name)


@pytest.mark.parametrize("kind", ["flux2-klein", "qwen-image", "z-image", "sd3", "krea2"])
def test_no_weights_are_needed(kind, tiny, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny(kind), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    base = load_base(str(folder), without_weights=True)
    assert all(p.is_meta for network in base.components().values() for p in network.parameters())
    found = estimated(base, pretrained_model_name_or_path=str(folder), mixed_precision="bf16", resolution=32)
    assert found.device == max(stage.total for stage in found.stages) > 0


def test_text_encoders_count_in_the_dtype_that_they_are_kept_in(tiny, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny("z-image"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": dtype}))
        base = load_base(str(folder), without_weights=True)
        sizes[dtype] = part(estimated(base, mixed_precision="bf16", resolution=32), "prompts", "text encoders")
    assert sizes["float32"] == 2 * sizes["bfloat16"]


def test_what_waits_in_the_machines_memory_is_counted_there():
    base = load_base(None)
    size = sum(parameter.numel() * 4 for parameter in base.denoiser.parameters())
    waiting, at_work = waiting_share(base.denoiser, base.family.units)
    homes = {key: home.numel() * 4 for key, home in Offload(base.denoiser, CPU, base.family.units)._homes.items()}
    assert waiting == sum(homes.values())
    blocks = [block for block in base.denoiser.modules() if type(block).__name__ in base.family.units]
    assert at_work == 2 * max(sum(homes[id(p)] for p in block.parameters()) for block in blocks)
    model, group = (estimated(offload=offload, gradient_checkpointing=True) for offload in ("model", "group"))
    assert part(model, "training", "denoiser") == size
    assert part(group, "training", "denoiser") == part(group, "samples", "denoiser") == size - waiting + at_work
    assert len({"denoiser", "activations"} & model.stages[3].device.keys()) == 1  # one after the other
    assert model.stages[3].host - group.stages[3].host == size - waiting


def test_what_does_not_go_together_is_not_advised(sizes, capsys):
    assert planning.main(["--budget", "0.6GB", "--compile"]) == 1
    said = capsys.readouterr().out
    assert "--offload model" in said
    assert "--offload group" not in said


def test_a_memory_that_does_not_suffice_is_answered_with_the_plan():
    said = _explain(torch.OutOfMemoryError("CUDA out of memory"), None)
    size = round(psutil.virtual_memory().total / GIB)
    assert said.startswith("the GPU's memory does not suffice; dash-vision plan, with the settings of this run and ")
    assert f"--budget {size}GB --no_gpu, says which flags make it fit" in said


@pytest.mark.parametrize(("text", "expected"), [("24GB", 24 * GIB), ("8", 8 * GIB), ("1.5 GiB", 3 * GIB // 2)])
def test_a_budget_is_a_number_of_gigabytes(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["24TB", "lots", "0GB", "8GB24"])
def test_another_budget_is_one_sentence(text, capsys):
    assert planning.main(["--budget", text]) == 2
    assert f"--budget is {text}; it takes a number of gigabytes" in capsys.readouterr().err


@pytest.fixture
def sizes(monkeypatch):
    """Estimates by rule instead of by counting: 16 GiB in float32, half of that in bf16, a quarter of the rest with
    checkpointing, and less with smaller batches and pictures."""

    def rule(config, base):
        size = 16 * GIB / (2 if config.mixed_precision == "bf16" else 1) / (4 if config.gradient_checkpointing else 1)
        size *= (config.train_batch_size or 4) / 4 * (config.resolution or 1024) / 1024
        size *= {"none": 1, "int8": 0.5, "nf4": 0.25}[config.quantize]
        return Estimate((Stage("training", {"denoiser": int(size)}, 0),), 0)

    monkeypatch.setattr(planning, "estimate_for", rule)


def test_flags_are_added_until_the_run_fits(sizes, capsys):
    assert planning.main(["--budget", "3GB"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "  --mixed_precision bf16: 8.5 GiB",
        "  --mixed_precision bf16 --gradient_checkpointing: 2.5 GiB, which fits",
    ]


def test_flags_that_are_given_are_not_advised(sizes, capsys):
    assert planning.main(["--budget", "3GB", "--mixed_precision", "bf16", "--gradient_accumulation_steps", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  --gradient_checkpointing: 2.5 GiB, which fits"


def test_a_budget_that_nothing_fits_is_said_with_what_to_do(sizes, capsys):
    assert planning.main(["--budget", "0.51GB"]) == 1
    said = capsys.readouterr()
    assert "--train_batch_size 1 --gradient_accumulation_steps 4 --quantize nf4" in said.out.splitlines()[-1]
    assert "take a smaller base, or a larger GPU" in said.err


def test_a_table_has_every_stage_and_what_the_machine_needs(capsys):
    assert planning.main(["--budget", "2GB"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split()[-4:] == ["prompts", "pictures", "training", "samples"]
    assert "of the machine's memory" in said
    assert "It fits into 2GB." in said
