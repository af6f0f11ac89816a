"""Compact adapter files: directions come back from the base, or the file is refused."""

import json
import struct

import pytest
import timm
import torch
from torch import nn

import dash_vision.core.decompositions as decompositions
from dash_vision import DashConfig, export_lora, inject, load_adapter
from dash_vision.__main__ import main
from dash_vision.files.errors import InputError
from tests.support.models import trained


def net(seed=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 24), nn.GELU(), nn.Linear(24, 40))


CONFIG = DashConfig(rank=2, dash_k=3, target=["0", "2", "4"])


@pytest.fixture
def file(tmp_path):
    trained(net(), CONFIG).save(tmp_path / "compact.safetensors", compact=True)
    return tmp_path / "compact.safetensors"


def test_it_loads_as_what_the_whole_file_holds(file, tmp_path):
    adapter = trained(net(), CONFIG)
    adapter.save(tmp_path / "whole.safetensors")
    loaded = load_adapter(net(), file)
    whole = load_adapter(net(), tmp_path / "whole.safetensors").state_dict()
    assert loaded.launched
    for key, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, whole[key], atol=1e-6, rtol=0, msg=key)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(loaded.model(x), adapter.model(x), atol=1e-5, rtol=0)
    assert export_lora(loaded, tmp_path / "export").is_file()


def test_it_is_little_larger_than_lora_of_the_same_rank(tmp_path):
    model = timm.create_model("vit_small_patch16_224", depth=2, num_classes=0)
    adapter = trained(model, DashConfig(rank=8, dash_k=8, target="vit-blocks"), launch=False)
    lora = export_lora(adapter, tmp_path).stat().st_size
    adapter.launch()
    adapter.save(tmp_path / "compact.safetensors", compact=True)
    assert (tmp_path / "compact.safetensors").stat().st_size < 1.05 * lora


@pytest.mark.parametrize("cached", [False, True])
def test_loading_reads_kept_decompositions(cached, file, tmp_path, monkeypatch):
    if cached:
        monkeypatch.setenv(decompositions.VARIABLE, str(tmp_path / "kept"))
        load_adapter(net(), file)
    calls = []
    original = decompositions.decompose
    monkeypatch.setattr(decompositions, "decompose", lambda W: calls.append(W.shape) or original(W))
    load_adapter(net(), file)
    assert len(calls) == (0 if cached else 3)


def test_another_base_and_a_rounded_one_are_refused(file):
    with pytest.raises(InputError, match="trained on another base"):
        load_adapter(net(seed=6), file)
    rounded = net().to(torch.bfloat16)
    with pytest.raises(InputError, match=r"compact.*precision"):
        load_adapter(rounded, file)
    assert isinstance(rounded[2], nn.Linear)
    slightly = net()
    with torch.no_grad():
        slightly[4].weight.mul_(1 + 1e-3 * torch.randn(40, 24))
    with pytest.raises(InputError, match=r"directions of 4"):
        load_adapter(slightly, file, check_base=False)


def test_it_goes_on_training_and_before_the_launch_too(tmp_path):
    adapter = trained(net(), CONFIG, launch=False)
    adapter.save(tmp_path / "early.safetensors", compact=True)
    again = load_adapter(net(), tmp_path / "early.safetensors")
    assert not again.launched
    again.launch()
    adapter.launch()
    assert all(torch.equal(t, again.state_dict()[key]) for key, t in adapter.state_dict().items())


def test_plain_lora_and_shifts_alone_are_compact_too(tmp_path):
    for config in (DashConfig(rank=3, dash_k=0, target=["2"]), DashConfig(rank=0, dash_k=3, target=["2"])):
        adapter = trained(net(), config)
        adapter.save(tmp_path / "a.safetensors", compact=True)
        loaded = load_adapter(net(), tmp_path / "a.safetensors").state_dict()
        for key, tensor in adapter.state_dict().items():
            torch.testing.assert_close(loaded[key], tensor, atol=1e-6, rtol=0)


def test_export_without_the_base_says_what_to_do(file, tmp_path, capsys):
    assert main(["export", str(file), str(tmp_path / "out"), "--to", "peft"]) == 2
    assert "load it into the base" in capsys.readouterr().err
    assert main(["inspect", str(file)]) == 0
    assert "compact, 3 layers" in capsys.readouterr().out


def test_a_compact_file_without_its_marks_is_refused(file):
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["model/2.Mark"] = header.pop("model/2.mark")
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(InputError, match="damaged"):
        load_adapter(net(), file)


def test_a_second_adapter_is_loaded_beside_a_merged_one(file):
    model = net()
    other = inject(model, CONFIG, "other")
    with torch.no_grad():
        for _, w in other.weights():
            w.B.normal_()
    other.merge()
    loaded = load_adapter(model, file, "second")
    alone = load_adapter(net(), file)
    assert all(torch.equal(t, loaded.state_dict()[key]) for key, t in alone.state_dict().items())
