"""DreamBooth runs on quantized bases."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dash_vision.__main__ import main
from dash_vision.core.quantized import is_quantized
from dash_vision.files.errors import InputError
from tests.support.dreambooth import fitted, prepare, settings, states, train
from tests.support.quantized import WORDS, need, save_gguf
from tests.support.tiny import load_tiny

each_word = pytest.mark.parametrize("word", WORDS)


def klein(tiny, **changes):
    return {
        "pretrained_model_name_or_path": str(tiny("flux2-klein")),
        "resolution": 16,
        "max_sequence_length": 32,
        **changes,
    }


@each_word
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_launch_on_a_quantized_base_is_that_of_the_weights_in_its_files(word, precision, bases, tmp_path):
    need(word)
    lines = []
    job = fitted(settings(bases, tmp_path / "out", quantize=word), lines, mixed_precision=precision)
    stored = load_file(bases / "sd/unet/diffusion_pytorch_model.safetensors")
    (adapter,) = job.adapters.values()
    layers = adapter.layers.values()
    few = [
        layer for layer in layers if word != "nf4" or layer.in_features % 64 == 0
    ]  # what a CPU can have in four bits
    count = len(few) if precision == "no" else len(layers)
    assert f"launch: the precise weights of {count} layers are read from the base's files" in lines
    assert [layer for layer in layers if is_quantized(layer.base)] == few != []
    for module, layer in adapter.layers.items():
        W = stored[f"{module}.weight"].double().numpy()
        w, S = layer.weights("default"), np.linalg.svd(W, compute_uv=False)
        for i, index in enumerate(w.indices.tolist()):
            U, V = (getattr(w, part).double().numpy() for part in ("U", "V"))
            np.testing.assert_allclose(W @ V[i], S[index] * U[:, i], atol=1e-5)


@each_word
def test_a_run_ends_with_an_export_that_gives_the_trained_model_and_records_its_base(
    word, tiny, bases, tmp_path, capsys
):
    need(word)
    lines = []
    train(settings(bases, tmp_path / "out", **klein(tiny, quantize=word, quantize_text_encoder=word)), lines)
    assert any(line.startswith("the exported adapter gives the trained model") for line in lines)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["base"]["specification"]["quantize"] == word
    assert record["base"]["specification"]["quantize_text_encoder"] == word
    pictures = {}
    for flags in ([], ["--quantize", "none"]):
        where = tmp_path / f"drawn{len(flags)}"
        assert main(["generate", str(tmp_path / "out"), "--prompts", "a {}", "-o", str(where), *flags]) == 0
        pictures[len(flags)] = (where / "000-00.png").read_bytes()
    assert pictures[0] != pictures[2]
    assert "note:" not in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "out"), str(tmp_path / "merged")]) == 0  # into the unquantized base
    merged = json.loads((tmp_path / "merged/transformer/config.json").read_text())
    assert "quantization_config" not in merged


@each_word
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(word, bases, tmp_path):
    need(word)
    changes = {"quantize": word, "checkpointing_steps": 2, "checkpoints_total_limit": 4}
    whole = fitted(settings(bases, tmp_path / "whole/out", **changes))
    for step in (2, 4, 6):  # before, at and after the launch
        again = settings(bases, tmp_path / f"again-{step}/out", **changes)
        again.resume_from_checkpoint = str(tmp_path / f"whole/out/checkpoint-{step}.safetensors")
        one, two = states(whole), states(fitted(again))
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    again.quantize = "none"
    with pytest.raises(InputError, match=f"trained with --quantize {word}, this run has none"):
        prepare(again)


def test_a_run_on_a_gguf_file_takes_the_dequantized_weights_and_says_how_to_load_it(bases, tiny, tmp_path):
    folder, lines = tiny("flux"), []
    file = save_gguf(load_tiny(folder).transformer, tmp_path / "base.gguf")
    changes = klein(tiny, pretrained_model_name_or_path=str(file), single_file_config=str(folder))
    job = train(settings(bases, tmp_path / "out", **changes), lines)
    (adapter,) = job.adapters.values()
    assert (
        f"launch: {len(adapter.layers)} layers have no precise weights in the base's files; it takes those in use"
        in lines
    )
    assert any(line.startswith("the exported adapter gives the trained model") for line in lines)
    card = (tmp_path / "out/README.md").read_text()
    program = card.split("```python\n")[1].split("pipe(")[0].replace("'.'", repr(str(tmp_path / "out")))
    found = {}
    exec(program, found)
    assert any(is_quantized(layer) for layer in found["pipe"].transformer.modules())


def test_the_launch_in_half_precision_says_where_its_weights_come_from(bases, tmp_path):
    lines = []
    prepare(settings(bases, tmp_path / "out"), lines, mixed_precision="bf16").close()
    assert any(line.startswith("launch: the precise weights of") for line in lines)
    lines.clear()
    prepare(settings(bases, tmp_path / "exact"), lines).close()
    prepare(settings(bases, tmp_path / "lora", dash_k=0), lines, mixed_precision="bf16").close()
    assert not any(line.startswith("launch:") for line in lines)


@pytest.mark.parametrize("word", ["int8", "fp8"])
def test_a_trained_text_encoder_may_be_quantized_too(word, bases, tmp_path):
    need(word)
    changes = {"quantize": word, "quantize_text_encoder": word, "train_text_encoder": True}
    lines = []
    job = train(settings(bases, tmp_path / "out", **changes), lines)
    assert all(is_quantized(layer.base) for layer in job.adapters["text_encoder"].layers.values())
    assert any(line.startswith("the exported adapter gives the trained model") for line in lines)


def test_a_trained_text_encoder_in_four_bits_is_refused(bases, tmp_path):
    with pytest.raises(InputError, match=r"loads no LoRA into that; give int8 or fp8"):
        settings(bases, tmp_path / "out", train_text_encoder=True, quantize_text_encoder="nf4")


def test_a_missing_backend_is_said_before_anything_is_loaded(bases, tmp_path, monkeypatch):
    from dash_vision.bases import quantization
    from dash_vision.diffusion.early import look

    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--quantize nf4 needs bitsandbytes, which is not installed: pip install"):
        look(settings(bases, tmp_path / "out", quantize="nf4"))
