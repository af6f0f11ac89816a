"""The flow-matching transformers that are measured have the real shapes, and are called as their families call them."""

import re
from dataclasses import replace

import pytest
import torch

from benchmarks.flows import FLOWS

TINY = {
    "flux2": {"num_attention_heads": 1, "attention_head_dim": 128},
    "z-image": {"dim": 128, "n_heads": 1, "n_kv_heads": 1},
    "qwen-image": {"num_attention_heads": 1},
}


def shapes(name):
    """The adapted matrices' shapes by what is adapted, without memory for them."""
    flow = FLOWS[name]
    with torch.device("meta"):
        modules = dict(flow.network().named_modules())
    return {
        words: {tuple(m.weight.shape) for n, m in modules.items() if re.fullmatch(target, n)}
        for words, target in flow.targets().items()
    }


@pytest.mark.parametrize(
    ("name", "attention", "all_linear"),
    [  # of the published configurations: width, MLP, and FLUX.2's fused matrices
        ("flux2", {(3072, 3072), (27648, 3072), (3072, 12288)}, {(18432, 3072), (3072, 9216)}),
        ("z-image", {(3840, 3840)}, {(10240, 3840), (3840, 10240)}),
        ("qwen-image", {(3072, 3072)}, {(12288, 3072), (3072, 12288)}),
    ],
)
def test_what_is_adapted_has_the_shapes_of_the_public_models(name, attention, all_linear):
    assert shapes(name) == {"attention only": attention, "all block linears": attention | all_linear}


@pytest.mark.parametrize("name", FLOWS)
def test_a_call_gives_latents_of_the_size_asked_for_and_depends_on_all_streams(name):
    flow = replace(FLOWS[name], config=FLOWS[name].config | TINY[name])
    model = flow.network().requires_grad_(False)
    call = flow.call(model, 8, torch.device("cpu"), torch.float32)
    assert call().shape == (1, flow.channels, 8 // flow.patch, 8 // flow.patch)
    adapted = [m.weight for n, m in model.named_modules() if re.fullmatch(flow.targets()["all block linears"], n)]
    for weight in adapted:
        weight.requires_grad_(True)
    call().square().mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in adapted)
