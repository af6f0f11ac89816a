"""Networks of a base are read one at a time, in the dtype of their files; that makes them no other base."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dash_vision.bases.loading import load_base
from dash_vision.files.errors import InputError


@pytest.fixture(scope="module")
def half(bases, tiny, tmp_path_factory):
    """The tiny klein with its transformer and text encoder in bfloat16 on disk, as they are published."""
    folder = tmp_path_factory.mktemp("half") / "base"
    shutil.copytree(tiny("flux2-klein"), folder)
    for file in folder.glob("*/*.safetensors"):
        save_file({key: tensor.bfloat16() for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    return folder


def memory(network):
    return sum(0 if p.is_meta else p.numel() * p.element_size() for p in network.parameters())


def test_a_network_takes_no_memory_before_it_is_loaded(half):
    base = load_base(str(half), waits=True)
    assert {name: memory(network) for name, network in base.components().items()} == {
        "vae": 0,
        "transformer": 0,
        "text_encoder": 0,
    }
    base.load("text_encoder")
    assert [name for name, network in base.components().items() if memory(network)] == ["text_encoder"]
    base.load()
    whole = load_base(str(half))
    for name, network in whole.components().items():
        mine = base.components()[name].state_dict()
        assert all(torch.equal(tensor, mine[key]) for key, tensor in network.state_dict().items())
        assert not any(p.requires_grad for p in base.components()[name].parameters())


def test_what_the_files_have_in_half_precision_may_stay_so_but_for_the_vae(half):
    base = load_base(str(half), dtype=torch.bfloat16)
    dtypes = {name: {p.dtype for p in network.parameters()} for name, network in base.components().items()}
    assert dtypes == {"transformer": {torch.bfloat16}, "text_encoder": {torch.bfloat16}, "vae": {torch.float32}}


def test_a_network_with_several_dtypes_on_disk_is_not_rounded(half, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(half, folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    key = next(iter(tensors))
    tensors[key] = torch.randn(tensors[key].shape)
    save_file(tensors, file, {"format": "pt"})
    base = load_base(str(folder))
    assert torch.equal(base.denoiser.state_dict()[key], tensors[key])
    half = load_base(str(folder), dtype=torch.bfloat16)
    assert torch.equal(half.denoiser.state_dict()[key], tensors[key].bfloat16())
    assert half.identity() == base.identity()


def test_the_identity_is_that_of_the_weights_whatever_dtype_they_are_read_in(half):
    whole = load_base(str(half)).identity()
    base = load_base(str(half), waits=True, dtype=torch.bfloat16)
    base.load("text_encoder", "vae")
    base.drop_text_encoders()
    base.load()
    base.denoiser.to(torch.float16)
    assert base.identity() == whole


def test_lacking_files_are_said_before_any_weight_is_read(half, tmp_path):
    shutil.copytree(half, tmp_path / "base")
    for file in (tmp_path / "base/transformer").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match="transformer/ holds no weights; fetch them"):
        load_base(str(tmp_path / "base"), waits=True)
