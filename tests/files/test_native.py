"""Native adapter files: what was saved is what loads, and bad files are refused by name."""

import json
import os
import pickle
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dash_vision import DashConfig, InputError, load_adapter, save_adapters
from dash_vision.core.layer import DashLinear
from dash_vision.files.container import checksum
from tests.support.adapters import CONFIG, net
from tests.support.models import trained


def test_what_was_saved_is_what_loads(saved):
    adapter, path, x, y = saved
    model = net()
    again = load_adapter(model, path)
    assert torch.equal(model(x), y)
    assert again.launched
    assert again.config == CONFIG
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in adapter.state_dict().items())


def test_the_phase_before_the_launch_survives(tmp_path):
    adapter = trained(net(), CONFIG, launch=False)
    adapter.save(tmp_path / "a.safetensors")
    again = load_adapter(net(), tmp_path / "a.safetensors")
    assert not again.launched
    again.launch()
    adapter.launch()
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in adapter.state_dict().items())


def test_equal_adapters_are_equal_files(saved, tmp_path, monkeypatch):
    _, path, _, _ = saved
    script = f"""
import torch
from torch import nn
from dash_vision import load_adapter, export_lora
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 6), nn.Sequential(nn.Linear(6, 6)))
adapter = load_adapter(model, {str(path)!r})
adapter.save("again.safetensors")
export_lora(adapter, "lora")
"""
    (tmp_path / "s.py").write_text(script)
    files = []
    for i in (0, 1):  # in a process of its own, whose hashes of strings are others, and in this one
        folder = tmp_path / str(i)
        folder.mkdir()
        monkeypatch.chdir(folder)
        if i == 0:
            subprocess.run([sys.executable, "../s.py"], check=True)
        else:
            exec(script, {})
        files.append((folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes())
        assert (folder / "again.safetensors").read_bytes() == path.read_bytes()
    assert files[0] == files[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_base_in_half_precision_is_the_same_base(saved, dtype):
    _, path, x, y = saved
    model = net().to(dtype)
    load_adapter(model, path)
    torch.testing.assert_close(model(x.to(dtype)).float(), y, atol=0.1, rtol=0.05)


def untouched(model):
    return not any(isinstance(m, DashLinear) for m in model.modules()) and all(
        p.requires_grad for p in model.parameters()
    )


@pytest.mark.parametrize("change", ["seed", "small", "one layer"])
def test_another_base_is_refused(saved, change):
    _, path, _, _ = saved
    model = net(seed=1 if change == "seed" else 0)
    with torch.no_grad():
        if change == "small":
            for p in model.parameters():
                p.add_(torch.randn_like(p) * p.std() * 0.03)
        if change == "one layer":
            model[2].weight.add_(0.2 * torch.randn_like(model[2].weight))
    with pytest.raises(InputError, match="another base") as error:
        load_adapter(model, path)
    assert "norm" in str(error.value)
    assert untouched(model)
    load_adapter(model, path, check_base=False)


def test_another_shape_or_model_is_refused(saved):
    _, path, _, _ = saved
    model = net(width=14)
    with pytest.raises(InputError, match="12 x 8 in the file, 14 x 8 in the model"):
        load_adapter(model, path)
    assert untouched(model)
    with pytest.raises(InputError, match="another kind of model"):
        load_adapter(nn.Sequential(nn.Sequential(nn.Linear(8, 12))), path)


def test_several_components_in_one_file(tmp_path):
    unet, text = net(0), net(1)
    adapters = {
        "unet": trained(unet, CONFIG),
        "text_encoder": trained(text, DashConfig(rank=2, dash_k=0, target=["0"])),
    }
    path = tmp_path / "a.safetensors"
    save_adapters(adapters, path, notes={"base": "somewhere"})
    with pytest.raises(InputError, match="unet, text_encoder"):
        load_adapter(net(), path)
    with pytest.raises(InputError, match="'vae'"):
        load_adapter(net(), path, component="vae")
    again = load_adapter(net(1), path, component="text_encoder")
    assert again.config.rank == 2


def damaged(path, kind):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    native = json.loads(header["__metadata__"]["dash_vision"])
    tensors = load_file(path)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "header too long":
        path.write_bytes(struct.pack("<Q", 1 << 40) + data[8:])
    elif kind == "foreign":
        save_file({"weight": torch.zeros(3)}, path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "missing":
        path.unlink()
    else:
        if kind == "nan":
            tensors["model/0.dsigma"][1] = float("nan")
        if kind == "missing tensor":
            del tensors["model/2.U"]
        if kind == "extra tensor":
            tensors["other/9.A"] = torch.zeros(2)
        if kind == "wrong shape":
            tensors["model/0.A"] = tensors["model/0.A"][:, :3].contiguous()
        if kind == "bad index":
            tensors["model/0.indices"][0] = 99
        if kind == "repeated index":
            tensors["model/0.indices"][:] = 1
        if kind == "bad config":
            native["content"]["components"]["model"]["config"]["rank"] = "many"
        if kind == "unknown config":
            native["content"]["components"]["model"]["config"]["colour"] = 1
        if kind == "newer version":
            native["version"] = 99
        if kind == "components are a list":
            native["content"]["components"] = []
        native["checksum"] = checksum(native["content"], tensors)
        save_file(tensors, path, metadata={"dash_vision": json.dumps(native)})


KINDS = [
    *("empty", "pickle", "truncated", "header too long", "foreign", "folder", "missing", "nan", "missing tensor"),
    *("extra tensor", "wrong shape", "bad index", "repeated index", "bad config", "unknown config", "newer version"),
    "components are a list",
]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_named_and_leave_the_model_alone(saved, kind, capsys):
    from dash_vision.__main__ import main

    _, path, _, _ = saved
    damaged(path, kind)
    model = net()
    with pytest.raises(InputError) as error:
        load_adapter(model, path)
    assert str(path) in str(error.value)
    assert untouched(model)
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    adapter, path, _, _ = saved
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        adapter.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
