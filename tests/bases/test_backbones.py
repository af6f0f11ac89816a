"""Vision backbones: descriptions, heads, normalisation, and weights from files."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from dash_vision.bases import backbones
from dash_vision.bases.backbones import Backbone, Normalize, build, describe, head_names
from dash_vision.core.targets import find_targets
from dash_vision.files.errors import InputError
from tests.support.vtab import tiny

NEW_TINY = "vit_tiny_patch16_224.augreg_in21k"

# -- describing


def test_a_model_is_described_without_its_weights():
    vit = describe("vit_base_patch16_224.augreg_in21k")
    assert (vit.image_size, vit.mean, vit.std) == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert describe("vit_base_patch14_dinov2.lvd142m").mean == (0.485, 0.456, 0.406)
    assert describe("miniature").image_size == 64


def test_every_name_that_timm_has_renamed_is_the_model_it_stands_for():
    """timm itself answers to the old name with a default of ImageNet."""
    renamed = timm.models.get_deprecated_models()
    assert len(renamed) > 100
    for old, new in renamed.items():
        try:
            info = timm.get_pretrained_cfg(new)
        except RuntimeError:  # timm itself has renamed two to what it does not have
            with pytest.raises(InputError, match=f"has no weights .*which {old} was renamed to"):
                describe(old)
            continue
        found = describe(old)
        assert (found.mean, found.std, found.image_size) == (info.mean, info.std, info.input_size[-1]), old
        assert found == describe(new)
    assert describe("vit_base_patch16_224_in21k").mean == (0.5, 0.5, 0.5)
    assert describe("vit_base_patch16_224_in21k", revision="main").revision == "main"


def test_a_renamed_model_is_built_as_its_present_one():
    old, new = (build(describe(name, random=True), 2) for name in ("vit_tiny_patch16_224_in21k", NEW_TINY))
    assert type(old) is type(new)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


def test_a_tag_that_timm_does_not_have_is_answered_with_those_it_has():
    with pytest.raises(InputError, match=r"has no weights imagenet of vit_tiny_patch16_224; it has .*augreg_in21k"):
        describe("vit_tiny_patch16_224.imagenet")


def test_the_source_of_the_normalization_is_told(tmp_path):
    assert describe("vit_base_patch16_224").source == "timm's vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert describe("vit_base_patch16_224", normalization="half").source == "--normalization half"
    assert describe("miniature").source == "miniature"
    file = tmp_path / "model.safetensors"
    save_file({}, file)
    described = describe("test_vit", checkpoint=str(file))
    assert (described.mean, described.source) == (timm.get_pretrained_cfg("test_vit").mean, "timm's test_vit.r160_in1k")
    content = {"architecture": "test_vit", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    described = describe("test_vit", checkpoint=str(file))
    assert (described.mean, described.source) == ((0.1, 0.2, 0.3), str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps({**content, "architecture": "test_vit2"}))
    assert describe("test_vit", checkpoint=str(file)).source == "timm's test_vit.r160_in1k"


@pytest.mark.parametrize("older", [False, True])
def test_the_configuration_beside_a_checkpoint_says_its_mean_and_size(tmp_path, older):
    """timm's older files have on one level what the newer ones have under pretrained_cfg."""
    save_file({}, tmp_path / "model.safetensors")
    values = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 384, 384]}
    content = {"architecture": "test_vit", **(values if older else {"pretrained_cfg": values})}
    (tmp_path / "config.json").write_text(json.dumps(content))
    described = describe("test_vit", checkpoint=str(tmp_path / "model.safetensors"))
    assert (described.mean, described.std, described.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 384)
    assert describe("test_vit", 96, checkpoint=str(tmp_path / "model.safetensors")).image_size == 96


def test_a_size_that_patches_do_not_cover_is_refused(tmp_path):
    """timm's patches leave out what is beyond the last whole one."""
    with pytest.raises(InputError, match=r"no multiple of this model's patches of 16 pixels.*give 96 or 112"):
        build(describe("test_vit", 100, random=True), 3)
    with pytest.raises(InputError, match="give 64 or 72"):
        build(describe("miniature", 70, random=True), 3)


def test_a_model_of_which_timm_has_no_weights_needs_its_normalization_told(tmp_path):
    """timm gives ImageNet's for it, which is no answer."""
    name = next(n for n in timm.list_models("vit*") if not timm.get_pretrained_cfg(n).has_weights)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"timm publishes no weights of .*give --normalization imagenet, half or none"):
        describe(name, checkpoint=str(tmp_path / "model.safetensors"))
    assert describe(name, checkpoint=str(tmp_path / "model.safetensors"), normalization="half").mean == (0.5, 0.5, 0.5)


def test_an_unknown_model_is_answered_with_near_names():
    with pytest.raises(InputError, match=r"did you mean .*vit_base_patch16_224"):
        describe("vit_bas_patch16_224")


@pytest.mark.parametrize(
    ("flag", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("none", (0, 0, 0), (1, 1, 1)),
    ],
)
def test_normalisation_is_what_the_flag_says(flag, mean, std):
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    found = Normalize(tiny(normalization=flag))(images)
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(found, expected)


# -- building


def test_the_head_follows_the_seed_and_the_base_does_not():
    first, again, other = (build(tiny(), 5, head_seed=s) for s in (0, 0, 1))
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (name != "head.weight")


def test_building_leaves_the_global_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build(tiny(), 5)
    assert torch.equal(torch.rand(4), expected)


def test_heads_are_found_by_what_they_are():
    assert head_names(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)) == ["head", "head_dist"]
    assert head_names(timm.create_model("test_vit", num_classes=3)) == ["head"]
    with pytest.raises(InputError, match="no linear classifier"):
        head_names(timm.create_model("test_vit", num_classes=0))


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224.mim_in22k", "eva_giant_patch14_224.clip_ft_in1k", "beit_base_patch16_224"]
)
def test_every_block_layer_of_other_vits_is_adapted(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, depth=1)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "blocks" in n}
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert find_targets(model, "vit-blocks").keys() == linear


def test_weights_that_cannot_be_fetched_are_explained():
    with pytest.raises(InputError, match=r"could not fetch the weights of .*--checkpoint FILE.*--model miniature"):
        build(describe("vit_tiny_patch16_224.augreg_in21k"), 5)


def test_a_model_without_published_weights_is_explained():
    with pytest.raises(InputError, match="could not fetch the weights"):
        build(describe("vit_tiny_patch16_384"), 5)


# -- local checkpoints


def trunk(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith("head")}


@pytest.mark.parametrize("head", [7, 0])
def test_a_safetensors_checkpoint_gives_its_trunk_and_a_new_head(tmp_path, head):
    torch.manual_seed(5)
    source = timm.create_model("test_vit", img_size=32, num_classes=head)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = build(describe("test_vit", 32, checkpoint=str(tmp_path / "w.safetensors")), 5)
    assert model.head.out_features == 5
    for key, value in trunk(source).items():
        assert torch.equal(model.state_dict()[key], value)


def test_position_embeddings_of_another_size_are_resampled(tmp_path):
    source = timm.create_model("test_vit", img_size=64)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = build(describe("test_vit", 32, checkpoint=str(tmp_path / "w.safetensors")), 5)
    assert model.pos_embed.shape[1] < source.pos_embed.shape[1]
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("file", "asked", "words"),
    [
        (
            "avg",
            None,
            r"reads the mean of all tokens \(its last layer is fc_norm\), .* class token .* give --global_pool avg,",
        ),
        ("token", "avg", r"reads the class token \(its last layer is norm\), .* give --global_pool token,"),
        ("map", None, r"reads attention \(its last layer is attn_pool\), .* give --global_pool map,"),
    ],
)
def test_a_checkpoint_of_another_pooling_says_what_to_pass(tmp_path, file, asked, words):
    torch.manual_seed(5)
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, global_pool=file)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    told = {"image_size": 32, "normalization": "half", "checkpoint": str(tmp_path / "w.safetensors")}
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, **options: create(name, depth=1, **options))
        with pytest.raises(InputError, match=words):
            build(describe("vit_tiny_patch16_224", global_pool=asked, **told), 5)
        model = build(describe("vit_tiny_patch16_224", global_pool=file, **told), 5)
    assert model.global_pool == file
    for key, value in trunk(source).items():
        assert torch.equal(model.state_dict()[key], value)


def test_what_a_pooling_does_not_go_with_is_refused():
    with pytest.raises(InputError, match="--global_pool is for timm's models"):
        describe("miniature", global_pool="avg")
    with pytest.raises(InputError, match="sums tokens up by 'all', which is none of"):
        Backbone.from_dict({**describe("test_vit").to_dict(), "global_pool": "all"})
    assert Backbone.from_dict(describe("test_vit", global_pool="avg").to_dict()).global_pool == "avg"


def google_npz(model, path):
    """The trunk of a VisionTransformer under the names and in the shapes of Google's ViT checkpoints."""
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    out = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    heads = model.blocks[0].attn.num_heads
    for i in range(len(model.blocks)):
        block, to = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{to}/{name}/scale"], out[f"{to}/{name}/bias"] = (
                state[f"{block}.{norm}.{k}"] for k in ("weight", "bias")
            )
        attention = f"{to}/MultiHeadDotProductAttention_1"
        width = model.embed_dim
        for j, name in enumerate(("query", "key", "value")):
            weight = state[f"{block}.attn.qkv.weight"][j * width : (j + 1) * width]
            out[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            out[f"{attention}/{name}/bias"] = state[f"{block}.attn.qkv.bias"][j * width : (j + 1) * width].reshape(
                heads, -1
            )
        out[f"{attention}/out/kernel"] = state[f"{block}.attn.proj.weight"].T.reshape(heads, -1, width)
        out[f"{attention}/out/bias"] = state[f"{block}.attn.proj.bias"]
        for j, name in enumerate(("fc1", "fc2")):
            out[f"{to}/MlpBlock_3/Dense_{j}/kernel"] = state[f"{block}.mlp.{name}.weight"].T
            out[f"{to}/MlpBlock_3/Dense_{j}/bias"] = state[f"{block}.mlp.{name}.bias"]
    np.savez(path, **out)


def test_a_google_checkpoint_is_read(tmp_path, monkeypatch):
    torch.manual_seed(5)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    source = VisionTransformer(**shape, num_classes=3)
    google_npz(source, tmp_path / "w.npz")
    model = VisionTransformer(**shape, num_classes=5)
    backbones._load_checkpoint(model, tmp_path / "w.npz")
    for key, value in trunk(source).items():
        torch.testing.assert_close(model.state_dict()[key], value, msg=key)


def test_files_that_are_no_weights_of_the_model_are_refused(tmp_path):
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"pickles .* can run code"):
        describe("test_vit", checkpoint=str(tmp_path / "w.pth"))
    with pytest.raises(InputError, match="there is no checkpoint"):
        describe("test_vit", checkpoint=str(tmp_path / "absent.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({"head.weight": torch.zeros(5, 64)}, tmp_path / "head_only.safetensors")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name, sentence in (
        ("cut.safetensors", "no complete .safetensors file"),
        ("other.safetensors", "holds no weights of this model"),
        ("head_only.safetensors", "holds no weights of this model"),
        ("other.npz", "holds no weights of this model"),
    ):
        with pytest.raises(InputError, match=sentence):
            build(describe("test_vit", 32, checkpoint=str(tmp_path / name)), 5)


def test_a_missing_miniature_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "MINIATURE_WEIGHTS", tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match=r"python -m dash_vision\.miniature build --stages vit"):
        build(describe("miniature"), 5)


def test_a_revision_pins_what_is_fetched_from_the_hub(monkeypatch):
    asked = []

    def fetch(repo_id, revision=None, **more):
        asked.append((repo_id, revision))
        raise OSError("no network in tests")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    name = "vit_tiny_patch16_224.augreg_in21k"
    for revision in ("0123abc", None):
        asked.clear()
        with pytest.raises(InputError, match="could not fetch"):
            build(describe(name, revision=revision), 2)
        assert asked
        assert set(asked) == {(f"timm/{name}", revision)}
    with pytest.raises(InputError, match="--revision is of weights from the hub"):
        describe("miniature", revision="0123abc")
    assert Backbone.from_dict(describe(name, revision="0123abc").to_dict()).revision == "0123abc"
