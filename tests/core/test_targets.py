"""Configurations and targets: what is adapted, and what is refused by name."""

import warnings

import peft
import pytest
import timm
import torch
import transformers
from torch import nn

from dash_vision import DashConfig, inject
from dash_vision.core.layer import DashLinear
from dash_vision.core.targets import find_targets
from tests.support.layers import Net
from tests.support.models import trained


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


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
}


def language_models():
    gpt2 = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50)
    t5 = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    grouped = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
    return {
        "llama": (transformers.LlamaForCausalLM(transformers.LlamaConfig(**grouped)), 4, 3),
        "mistral": (transformers.MistralForCausalLM(transformers.MistralConfig(**grouped)), 4, 3),
        "qwen3": (transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**grouped)), 4, 3),
        "gemma2": (transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**grouped)), 4, 3),
        "phi3": (transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES, num_key_value_heads=1)), 2, 2),
        "phi": (transformers.PhiForCausalLM(transformers.PhiConfig(**SIZES)), 4, 2),
        "gpt2": (transformers.GPT2LMHeadModel(gpt2), 2, 2),
        "bert": (transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)), 4, 2),
        "roberta": (transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SIZES)), 4, 2),
        "deberta": (transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**SIZES)), 4, 2),
        "vit": (transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, **SIZES)), 4, 2),
        "clip": (transformers.CLIPModel(transformers.CLIPConfig(text_config=SIZES, vision_config=vision)), 4, 2),
        "t5": (transformers.T5ForConditionalGeneration(t5), 6, 2),  # the decoder's blocks attend twice
        "timm": (timm.create_model("vit_tiny_patch16_224", depth=2), 2, 2),
    }


def test_attention_and_mlp_are_found_by_structure_whatever_the_layers_are_called():
    """Per block: so many projections of attention, so many of the MLP; no head, pooler or embedding."""
    for name, (model, attention, mlp) in language_models().items():
        blocks = 4 if name in ("t5", "clip") else 2
        assert len(find_targets(model, "attention")) == blocks * attention, name
        assert len(find_targets(model, "attention-mlp")) == blocks * (attention + mlp), name
        found = find_targets(model, "all-linear")
        assert len(found) == blocks * (attention + mlp), name
        outside = ("head", "classifier", "pooler", "score", "embed", "lm_head", "shared")
        assert not [layer for layer in found if layer.split(".")[-1] in outside or "pooler" in layer], name


def test_all_linear_is_what_peft_takes_without_what_lies_outside_the_blocks():
    others = ("timm", "bert", "deberta", "clip")
    for model in (entry[0] for name, entry in language_models().items() if name not in others):
        ours = set(find_targets(model, "all-linear"))
        peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules="all-linear"))
        theirs = {n.removesuffix(".base_layer") for n, _ in model.named_modules() if n.endswith(".base_layer")}
        assert ours <= theirs
        assert all("classifier" in extra for extra in theirs - ours)


def test_a_preset_does_not_leave_out_the_experts_in_silence():
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=2)
    model = transformers.MixtralForCausalLM(config)
    assert len(find_targets(model, "attention")) == 8
    with pytest.raises(
        ValueError, match=r"'attention-mlp' finds no linear layer beside the attention.*use 'attention'"
    ):
        find_targets(model, "attention-mlp")


def test_the_papers_preset_names_the_five_projections():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    names = {name.rpartition(".")[2] for name in find_targets(model, "llama-paper")}
    assert names == {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}
    with pytest.raises(ValueError, match="'llama-paper' matches no layer"):
        find_targets(transformers.BertModel(transformers.BertConfig(**SIZES)), "llama-paper")
