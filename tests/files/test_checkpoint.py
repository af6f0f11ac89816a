"""Checkpoint files: what goes in comes out, and nothing half-written or foreign is taken for one."""

import os

import pytest
import torch
from safetensors.torch import save_file

from dash_vision.files.atomic import FolderLock, new_folder, replacing
from dash_vision.files.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from dash_vision.files.container import write_container
from dash_vision.files.errors import InputError

STATE = {
    "step": 3,
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.arange(4.0)}},
        "groups": [{"betas": (0.9, 0.99)}],
    },
    "losses": [0.1, 1e-300, float("inf")],
    "none": None,
    "flag": True,
    "empty": {},
    "half": torch.ones(2, 2, dtype=torch.bfloat16),
    "same": [torch.zeros(0), torch.tensor([1, 2])],
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_what_goes_in_comes_out(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", STATE)
    assert equal(load_checkpoint(tmp_path / "a.safetensors"), STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_checkpoint_shares_no_memory_with_the_state(tmp_path):
    tensor = torch.zeros(3)
    shared = {"a": tensor, "b": tensor[1:]}
    save_checkpoint(tmp_path / "a.safetensors", shared)
    tensor.fill_(7)
    assert load_checkpoint(tmp_path / "a.safetensors")["b"].tolist() == [0, 0]


@pytest.mark.parametrize("eighth", range(8))
def test_every_cut_is_noticed(tmp_path, eighth):
    save_checkpoint(tmp_path / "a.safetensors", STATE)
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[: len(data) * eighth // 8])
    with pytest.raises(InputError, match=r"no complete \.safetensors file"):
        load_checkpoint(tmp_path / "b.safetensors")


def test_foreign_missing_and_newer_files(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="of another kind"):
        load_checkpoint(tmp_path / "lora.safetensors")
    write_container(tmp_path / "new.safetensors", CHECKPOINT._replace(version=2), {"items": []}, {})
    with pytest.raises(InputError, match="version 2 of a checkpoint of dash-vision, this dash-vision reads 1"):
        load_checkpoint(tmp_path / "new.safetensors")


def test_a_pickle_by_another_name_is_not_opened(tmp_path):
    torch.save(STATE, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"no complete \.safetensors file"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", {"step": 1})
    with pytest.raises(TypeError, match="cannot hold a object"):
        save_checkpoint(tmp_path / "a.safetensors", {"step": object()})
    assert load_checkpoint(tmp_path / "a.safetensors") == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_goes_when_the_folder_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("not one of ours")
    child = os.fork()
    if child == 0:
        writing = replacing(tmp_path / "checkpoint-4.safetensors")
        writing.__enter__()
        os._exit(0)  # as a kill: nothing is cleaned up
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    FolderLock(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_a_killed_command_left_does_not_stop_a_run(tmp_path):
    child = os.fork()
    if child == 0:
        writing = new_folder(tmp_path / "merged")
        writing.__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    FolderLock(tmp_path).release()
    assert len(list(tmp_path.iterdir())) == 1  # it may be one that is being written
