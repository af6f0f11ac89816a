"""Configurations and targets: what is adapted, and what is refused by name."""

import warnings

import pytest
import timm
import torch
from torch import nn

from dash_vision import DashConfig, inject
from dash_vision.core.layer import DashLinear
from dash_vision.core.targets import find_targets
from tests.support.models import trained
from tests.support.networks import Net


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"rank": -1}, "rank"),
        ({"rank": 2.0}, "rank"),
        ({"dash_k": -3}, "dash_k"),
        ({"rank": 0, "dash_k": 0}, "both 0"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"eps": -1e-3}, "eps"),
        ({"target": []}, "target"),
    ],
)
def test_senseless_configurations_are_refused(bad, word):
    with pytest.raises(ValueError, match=word):
        DashConfig(**bad)


def test_targets_by_suffix_regex_and_preset():
    vit = timm.create_model("vit_tiny_patch16_224", depth=2)
    assert len(find_targets(vit, "vit-blocks")) == 8
    assert list(find_targets(vit, "vit-qkv")) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert list(find_targets(vit, ["1.mlp.fc2"])) == ["blocks.1.mlp.fc2"]
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert list(find_targets(vit, r"blocks\.0\..*")) == [f"blocks.0.{layer}" for layer in layers]
    assert list(find_targets(vit, ["head"])) == ["head"]
    assert list(find_targets(vit, "qkv")) == list(find_targets(vit, ["qkv"])) == list(find_targets(vit, "vit-qkv"))


def test_a_target_without_a_match_lists_near_names():
    net = nn.ModuleDict({"attn": nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4)})})
    with pytest.raises(ValueError, match=r"'attn.quary' matches no layer of 2; near names: attn.query"):
        inject(net, DashConfig(target=["attn.quary"]))
    with pytest.raises(ValueError, match=r"unet-attention.*names in this model look like: attn.query"):
        inject(net, DashConfig())
    with pytest.raises(ValueError, match="matches no layer"):
        inject(net, DashConfig(target=["query", "value"]))
    with pytest.raises(ValueError, match="regular expression"):
        inject(net, DashConfig(target="attn(("))
    assert not any(isinstance(m, DashLinear) for m in net.modules())


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.Linear(4, 4, device="meta"), "meta"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_by_name(layer, word):
    net = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"odd": layer}))
    with pytest.raises(ValueError, match=rf"cannot adapt 1\.odd.*{word}"):
        inject(net, DashConfig(target=["0", "odd"]))
    assert type(net[0]) is nn.Linear


def test_attention_that_never_calls_its_projection_is_refused():
    net = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="MultiheadAttention"):
        inject(net, DashConfig(target=["out_proj"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(value):
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].weight.data[1, 2] = value
    with pytest.raises(ValueError, match="cannot adapt 0: its weight holds NaN"):
        inject(net, DashConfig(target=["0"]))


def test_zero_and_rank_deficient_weights_launch():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    nn.init.zeros_(net[0].weight)
    with torch.no_grad():
        net[1].weight.copy_(torch.outer(torch.randn(6), torch.randn(6)))
    adapter = trained(net, DashConfig(rank=2, dash_k=3, target=["0", "1"]))
    assert all(torch.isfinite(t.float()).all() for t in adapter.state_dict().values())
    assert torch.isfinite(net(torch.randn(2, 6))).all()


def test_k_larger_than_a_layer_is_clipped_with_one_warning():
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=r"dash_k=6 is more than 2 of 3 layers") as caught:
        adapter = trained(net, DashConfig(rank=2, dash_k=6, target=r"\d"))
    assert len(caught) == 1
    assert [w.k for _, w in adapter.weights()] == [3, 6, 2]


def test_nothing_of_the_adapter_is_warned_about_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(Net(), DashConfig(rank=2, dash_k=3, target=["linear", "conv"]))
