"""Digests of a base: they change with every part of it, and with nothing else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dash_vision.bases import identity
from dash_vision.bases.loading import load_base
from tests.support.models import sd_unet, text_encoder
from tests.support.single_file import save_single_file


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def other_weights(file, name):
    """One number of one tensor is another one."""
    state = load_file(file)
    state[name].view(-1)[-1] += 1e-6
    save_file(state, file, {"format": "pt"})


CHANGES = {
    "unet": [lambda base: other_weights(base / "unet/diffusion_pytorch_model.safetensors", "conv_in.bias")],
    "vae": [
        lambda base: other_weights(base / "vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias"),
        lambda base: edit(base / "vae/config.json", scaling_factor=0.3),
    ],
    "text_encoder": [
        lambda base: other_weights(base / "text_encoder/model.safetensors", "final_layer_norm.bias"),
        lambda base: edit(base / "text_encoder/config.json", hidden_act="gelu"),
    ],
    "tokenizer": [lambda base: edit(base / "tokenizer/tokenizer_config.json", model_max_length=9)],
    "noise process": [
        lambda base: edit(base / "scheduler/scheduler_config.json", beta_end=0.013),
        lambda base: edit(base / "scheduler/scheduler_config.json", beta_schedule="linear"),
        lambda base: edit(base / "scheduler/scheduler_config.json", prediction_type="v_prediction"),
        lambda base: edit(base / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
    ],
}


@pytest.mark.parametrize(("part", "number"), [(part, i) for part, all in CHANGES.items() for i in range(len(all))])
def test_a_change_of_a_part_changes_its_digest_and_no_other(bases, tmp_path, part, number):
    if part == "text_encoder" and number == 0:
        names = load_file(bases / "sd/text_encoder/model.safetensors")
        assert "final_layer_norm.bias" in names or "text_model.final_layer_norm.bias" in names
    base = shutil.copytree(bases / "sd", tmp_path / "base")
    before = load_base(str(base)).identity()
    CHANGES[part][number](base)
    after = load_base(str(base)).identity()
    assert {name for name in before if before[name] != after[name]} == {part}
    assert identity.difference(before, after) == part


def test_a_copy_a_single_file_and_another_sampler_are_the_same_base(bases, tmp_path):
    whole = load_base(str(bases / "sd"))
    copy = shutil.copytree(bases / "sd", tmp_path / "copy")
    for file in (copy / "model_index.json", copy / "scheduler/scheduler_config.json"):
        file.write_text(file.read_text().replace("DDIMScheduler", "EulerDiscreteScheduler"))
    file = save_single_file(whole.pipeline, tmp_path / "model.safetensors")
    assert load_base(str(copy)).identity() == whole.identity()
    assert load_base(str(file), single_file_config=str(bases / "sd")).identity() == whole.identity()
    assert identity.difference(whole.identity(), load_base(str(copy)).identity()) is None


def test_the_digest_reads_every_number_and_not_the_names():
    """Other releases of transformers give the same tensors other names."""
    network = text_encoder()
    before = identity.of_network(network)
    state = list(network.state_dict().values())
    assert identity.of_tensors(reversed(state)) == identity.of_tensors(state)
    for parameter in network.parameters():
        with torch.no_grad():
            old = parameter.view(-1)[-1].clone()
            parameter.view(-1)[-1] += 0.5
            assert identity.of_network(network) != before
            parameter.view(-1)[-1] = old
    assert identity.of_network(network) == before


def test_settings_that_equal_the_librarys_defaults_are_left_out():
    unet = sd_unet()
    before = identity.of_network(unet)
    unet.register_to_config(dropout=0.0, _name_or_path="/elsewhere", _diffusers_version="9.9")
    assert identity.of_network(unet) == before
    unet.register_to_config(norm_eps=1e-6)
    assert identity.of_network(unet) != before


def test_the_identity_is_of_the_weights_as_they_were_loaded(bases):
    base = load_base(str(bases / "sd"))
    before = base.identity()
    base.denoiser.to(torch.bfloat16)
    assert base.identity() == before
