"""Bases whose linear layers are in few bits: through the loaders' own ways, and the same base all the while."""

import json
import shutil

import pytest
import torch
from torch import nn

from dash_vision.bases.loading import load_base
from dash_vision.core.quantized import dequantized, is_quantized
from dash_vision.files.errors import InputError
from tests.support.quantized import WORDS, need, save_gguf
from tests.support.single_file import save_single_file
from tests.support.tiny import load_tiny

each_word = pytest.mark.parametrize("word", WORDS)
LARGEST = {"nf4": 0.13, "int8": 0.01, "fp8": 0.04}  # share of a weight's norm that quantizing may take


def linear(network):
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}


def can_be(layer, word):
    """On a CPU bitsandbytes computes wrongly with other widths."""
    return word != "nf4" or layer.in_features % 64 == 0


def check_denoiser(base, exact, word):
    """All linear layers that can be are quantized, and stand for the weights of `exact` up to their rounding."""
    expected = dict(exact.named_modules())
    few = 0
    for name, layer in linear(base.denoiser).items():
        assert is_quantized(layer) == can_be(layer, word), name
        if not is_quantized(layer):
            torch.testing.assert_close(layer.weight.float(), expected[name].weight, atol=1e-2, rtol=1e-2)
            continue
        few += 1
        W = expected[name].weight
        assert (dequantized(layer).float() - W).norm() <= LARGEST[word] * W.norm(), name
    assert few


@each_word
@pytest.mark.parametrize("name", ["sd", "sdxl", "flux2-klein", "z-image", "qwen-image", "flux", "sd3", "krea2"])
def test_the_denoiser_of_every_family_is_quantized_and_the_base_is_the_same(word, name, bases, tiny):
    need(word)
    folder = str(bases / name if name.startswith("sd") and name != "sd3" else tiny(name))
    exact = load_base(folder)
    base = load_base(folder, quantize=word)
    check_denoiser(base, exact.denoiser, word)
    assert not any(is_quantized(layer) for encoder in base.text_encoders() for layer in linear(encoder).values())
    assert base.identity() == exact.identity()
    assert base.specification["quantize"] == word
    assert "quantize" not in exact.specification


@each_word
@pytest.mark.parametrize("name", ["sd", "flux2-klein", "qwen-image", "flux"])
def test_text_encoders_are_quantized_when_asked(word, name, bases, tiny):
    need(word)
    folder = str(bases / "sd" if name == "sd" else tiny(name))
    exact = load_base(folder)
    base = load_base(folder, quantize_text_encoder=word)
    assert not any(is_quantized(layer) for layer in linear(base.denoiser).values())
    for encoder in base.text_encoders():
        layers = linear(encoder).values()
        assert any(map(is_quantized, layers)) == any(can_be(layer, word) for layer in layers)
    assert base.identity() == exact.identity()


@each_word
def test_a_quantized_denoiser_computes_near_the_exact_one_in_half_precision_too(word, tiny):
    need(word)
    exact = load_base(str(tiny("flux2-klein")))
    shape = exact.family.latent_shape(exact.pipeline, (16, 16))
    noisy, times = torch.randn(2, *shape), torch.tensor([0.3, 0.7])
    conditions = exact.family.encode_prompts(exact.pipeline, ["a cat"], torch.device("cpu"))["a cat"]
    conditions = exact.family.join([conditions] * 2)
    with torch.no_grad():
        expected = exact.family.denoise(exact.denoiser, noisy, times, conditions)
        for dtype in (torch.float32, torch.bfloat16):
            base = load_base(str(tiny("flux2-klein")), quantize=word, dtype=dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                found = base.family.denoise(base.denoiser, noisy, times, conditions).float()
            assert (found - expected).norm() < 2.5 * LARGEST[word] * expected.norm() + 0.02 * expected.norm()


@each_word
def test_a_single_file_is_quantized_and_gives_its_precise_weights(word, bases, tmp_path):
    need(word)
    file = save_single_file(load_tiny(bases / "sd"), tmp_path / "base.safetensors")
    options = {"single_file_config": str(bases / "sd")}
    exact = load_base(str(file), **options)
    base = load_base(str(file), quantize=word, **options)
    check_denoiser(base, exact.denoiser, word)
    assert base.identity() == exact.identity()
    for name, layer in linear(exact.denoiser).items():
        assert torch.equal(base.precise("unet", name, (layer.out_features, layer.in_features))(), layer.weight)


def test_precise_weights_are_read_from_sharded_folders(tiny, tmp_path):
    pipeline = load_tiny(tiny("flux2-klein"))
    shutil.copytree(tiny("flux2-klein"), tmp_path / "base")
    shutil.rmtree(tmp_path / "base/transformer")
    pipeline.transformer.save_pretrained(tmp_path / "base/transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "base/transformer").glob("*.safetensors"))) > 2
    base = load_base(str(tmp_path / "base"), dtype=torch.bfloat16)
    assert base.identity() == load_base(str(tiny("flux2-klein"))).identity()
    for name, layer in linear(pipeline.transformer).items():
        assert torch.equal(base.precise("transformer", name, tuple(layer.weight.shape))(), layer.weight)


def test_a_file_that_is_gone_at_the_launch_is_one_sentence(tiny, tmp_path):
    shutil.copytree(tiny("flux2-klein"), tmp_path / "base")
    base = load_base(str(tmp_path / "base"), dtype=torch.bfloat16)
    name, layer = next(iter(linear(base.denoiser).items()))
    read = base.precise("transformer", name, tuple(layer.weight.shape))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(InputError, match=r"cannot be read again .*; put the base's file back"):
        read()


def test_a_layer_of_another_size_or_an_unknown_one_has_no_precise_weight(bases):
    base = load_base(str(bases / "sd"))
    assert base.precise("unet", "conv_in", (32, 36)) is not None
    assert base.precise("unet", "conv_in", (32, 4)) is None
    assert base.precise("unet", "nothing", (32, 4)) is None
    assert base.precise("vae2", "conv_in", (32, 4)) is None


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """Folders of the tiny klein that diffusers has saved with a quantized transformer, by the word."""

    def folder(word):
        need(word)
        place = tmp_path_factory.mktemp("saved") / word
        shutil.copytree(tiny("flux2-klein"), place)
        shutil.rmtree(place / "transformer")
        load_base(str(tiny("flux2-klein")), quantize=word, dtype=torch.bfloat16).denoiser.save_pretrained(
            place / "transformer"
        )
        return place

    return folder


@each_word
def test_a_base_that_is_quantized_on_disk_loads_and_is_not_quantized_once_more(word, saved, tiny):
    folder = saved(word)
    base = load_base(str(folder), dtype=torch.bfloat16)
    exact = load_base(str(tiny("flux2-klein")))
    check_denoiser(base, exact.denoiser, word)
    again = load_base(str(folder), waits=True, dtype=torch.bfloat16)
    assert again.identity() == base.identity()
    assert base.identity()["transformer"] != exact.identity()["transformer"]
    name, layer = next(iter(linear(base.denoiser).items()))
    assert base.precise("transformer", name, (layer.out_features, layer.in_features)) is None
    for other in WORDS:
        with pytest.raises(
            InputError, match=rf"--quantize {other}: the transformer of the base .* is quantized already"
        ):
            load_base(str(folder), quantize=other)


# -- GGUF


def test_a_gguf_file_takes_the_place_of_the_transformer(tiny, tmp_path):
    exact = load_base(str(tiny("flux")))
    file = save_gguf(exact.denoiser, tmp_path / "base.gguf")
    base = load_base(str(file), single_file_config=str(tiny("flux")))
    layers = linear(base.denoiser)
    assert sum(map(is_quantized, layers.values())) > 10
    expected = dict(exact.denoiser.named_modules())
    for name, layer in layers.items():
        W = dequantized(layer) if is_quantized(layer) else layer.weight
        assert (W - expected[name].weight).norm() <= 0.01 * expected[name].weight.norm()
    assert base.identity() == load_base(str(file), single_file_config=str(tiny("flux"))).identity()
    assert base.identity()["transformer"] != exact.identity()["transformer"]


def test_gguf_files_that_cannot_be_used_are_one_sentence_each(tiny, tmp_path):
    file = save_gguf(load_base(str(tiny("z-image"))).denoiser, tmp_path / "other.gguf")
    with pytest.raises(InputError, match=r"holds a denoiser alone; give --single_file_config"):
        load_base(str(file))
    with pytest.raises(
        InputError, match=r"no GGUF file of the transformer of .*, a FLUX.1 .*; give --single_file_config"
    ):
        load_base(str(file), single_file_config=str(tiny("flux")))
    with pytest.raises(InputError, match=r"is quantized already .gguf.; leave it out"):
        load_base(str(file), single_file_config=str(tiny("z-image")), quantize="int8")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut.gguf is no GGUF file of the transformer"):
        load_base(str(tmp_path / "cut.gguf"), single_file_config=str(tiny("z-image")))


# -- what is refused


def test_a_backend_that_is_not_installed_is_named_with_its_command(bases, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for word, package in WORDS.items():
        with pytest.raises(InputError, match=rf"--quantize {word} needs {package}, .*: pip install 'dash-vision"):
            load_base(str(bases / "sd"), quantize=word)
    with pytest.raises(InputError, match=r"--quantize_text_encoder nf4 needs bitsandbytes"):
        load_base(str(bases / "sd"), quantize_text_encoder="nf4")


def test_a_torchao_without_fp8_is_said(bases, monkeypatch):
    need("fp8")
    import torchao.quantization

    monkeypatch.delattr(torchao.quantization, "Float8WeightOnlyConfig")
    with pytest.raises(InputError, match=r"torchao .* has no fp8 weights .*--upgrade, or give --quantize int8"):
        load_base(str(bases / "sd"), quantize="fp8")


def test_a_base_of_a_method_that_diffusers_does_not_know_is_said(tiny, tmp_path):
    shutil.copytree(tiny("flux2-klein"), tmp_path / "base")
    file = tmp_path / "base/transformer/config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "quantization_config": {"quant_method": "new"}}))
    with pytest.raises(InputError, match=r"Unknown quantization type, got new"):
        load_base(str(tmp_path / "base"))
