"""DreamBooth runs on the flow-matching miniature, which comes with the package."""

import pytest
import torch
from diffusers import ZImagePipeline

from dash_vision.miniature import FLOW, pipeline_path
from dash_vision.runs.record import read_record
from tests.support.dreambooth import settings, train


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "out"
    changes = {"pretrained_model_name_or_path": FLOW, "max_train_steps": 3, "prelaunch_steps": 2}
    return train(settings(bases, out, **changes)), out


def test_the_run_has_the_size_and_the_name_of_the_embedded_base(run):
    job, out = run
    record = read_record(out / "run.json")
    assert (record.base.name, record.base.family) == (FLOW, "Z-Image")
    assert (job.plan.resolution, record.arguments["resolution"]) == (64, 64)
    card = (out / "README.md").read_text()
    assert "load_flow_pipeline" in card
    assert "base_model" not in card
    assert "width=64, height=64" in card


@torch.no_grad()
def test_stock_diffusers_draws_with_the_adapter_what_the_run_draws(run):
    """The exported LoRA holds the low-rank update and the shifts: the network answers as the trained one."""
    job, out = run
    stock = ZImagePipeline.from_pretrained(pipeline_path(FLOW))
    generator = torch.Generator().manual_seed(0)
    pictures = list(torch.randn(2, 4, 1, 16, 16, generator=generator).unbind())
    states = [torch.randn(tokens, 128, generator=generator) for tokens in (5, 9)]
    inputs = (pictures, torch.tensor([0.2, 0.7]), states)
    before = torch.stack(stock.transformer(*inputs, return_dict=False)[0])
    stock.load_lora_weights(str(out), weight_name="pytorch_lora_weights.safetensors")
    after = torch.stack(stock.transformer(*inputs, return_dict=False)[0])
    ours = torch.stack(job.base.denoiser(*inputs, return_dict=False)[0])
    assert (after - ours).abs().max() <= 1e-4 * after.abs().max()
    assert (after - before).abs().max() > 1e-2 * after.abs().max()
