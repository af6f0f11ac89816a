"""Bases of random weights, written in shards as libraries read them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import host
from benchmarks.__main__ import main
from tests.support.quantized import need


def test_shards_hold_every_tensor_once_and_none_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "SHARD", 1000)
    tensors = {f"{i}.weight": torch.empty(10, 10 + i, device="meta") for i in range(12)}
    host._write_shards(tmp_path, "model", tensors, torch.rand(64).bfloat16())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in tensors.items()}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(2 * t.numel() for t in tensors.values())
    assert max(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 1600  # a header, and 1000 bytes
    assert not torch.equal(found["0.weight"], found["1.weight"][:, :10])


@pytest.mark.parametrize("word", ["nf4", "int8"])
def test_steps_on_weights_in_few_bits_are_measured(word, capsys, monkeypatch):
    need(word)
    monkeypatch.setattr("benchmarks.measure._repeats", lambda call, settings: 1)
    size = ["--models", "vit", "--depth", "1", "--batch", "1", "--rounds", "1", "--quantize", word]
    for name in ("step", "memory"):
        assert main([name, *size]) == 0
        assert "ViT-B/16, all block linears" in capsys.readouterr().out
