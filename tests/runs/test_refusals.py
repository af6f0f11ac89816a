"""Configurations of accelerate that are not implemented are refused."""

import pytest

from tests.support.scripts import dreambooth, vtab

REFUSED = {
    "DeepSpeed": {"ACCELERATE_USE_DEEPSPEED": "true"},
    "Megatron-LM": {"ACCELERATE_USE_MEGATRON_LM": "true"},
    "FSDP 1": {"ACCELERATE_USE_FSDP": "true"},
    "fsdp_offload_params": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("script", [dreambooth, vtab])
def test_ways_to_split_a_model_that_are_not_done_are_refused(bases, tmp_path, capsys, monkeypatch, script, what):
    """What `accelerate launch` tells its processes when its configuration asks for one."""
    for name, value in REFUSED[what].items():
        monkeypatch.setenv(name, value)
    assert script(bases, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"error: accelerate's configuration {'sets' if what.startswith('fsdp') else 'asks for'} {what}" in said
    assert not list((tmp_path / "out").rglob("*.safetensors"))
