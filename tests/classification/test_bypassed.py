"""Models that read the weight of qkv and do not call the layer, as EVA and BEiT do."""

import json

import pytest

from dash_vision.classification.methods import prepare
from dash_vision.classification.run import backbone_of, execute
from dash_vision.classification.sweep import sweep
from dash_vision.classification.trained import load_trained
from dash_vision.files.errors import InputError, RunError
from dash_vision.files.native import NATIVE_NAME, read_native
from dash_vision.runs.record import RESULT, read_record
from dash_vision.runs.signals import StopRequest
from tests.support.vtab import cpu, one_run, write_task

EVA = {"model": "vtab_eva", "drop_path": 0.0}


def peft_run(folder, modules):
    write_task(folder / "data")
    content = {"peft_type": "LORA", "r": 2, "target_modules": modules}
    (folder / "plain.json").write_text(json.dumps(content))
    return one_run(folder, **EVA, methods=[], peft_config=[str(folder / "plain.json")], selection="last")


@pytest.mark.parametrize("modules", [["qkv"], ["qkv", "proj"]])
def test_a_peft_method_that_the_model_bypasses_is_no_result(tmp_path, modules):
    run = peft_run(tmp_path, modules)
    with pytest.raises(RunError, match=r"take no part in the loss.*blocks\.0\.attn\.qkv.*none of peft-plain"):
        execute(run, cpu())
    tally = sweep([run], cpu(), StopRequest())
    assert len(tally.failed) == 1
    assert tally.done == []
    assert not list(tmp_path.rglob("result.json"))


def test_a_peft_method_on_layers_that_the_model_calls_is_one(tmp_path):
    run = peft_run(tmp_path, ["proj", "fc1"])
    assert execute(run, cpu()).untrained == []


def test_our_adapter_trains_there_and_leaves_out_the_export_that_peft_would_not_apply(tmp_path):
    write_task(tmp_path / "data")
    run = one_run(tmp_path, **EVA)
    execute(run, cpu())
    assert read_record(run.folder / RESULT).untrained == []
    (state,) = read_native(run.folder / NATIVE_NAME).values()
    assert state.bypassed == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert all(state.tensors[f"{module}.B"].any() for module in state.kinds)
    assert not (run.folder / "peft").exists()
    assert load_trained(run.folder).about["task"] == "cifar"


def test_what_a_compiled_model_bypasses_is_known_before_it_is_compiled(tmp_path):
    run = one_run(tmp_path, **EVA, compile=True)
    tuned = prepare(run, backbone_of(run), 4, 12)
    assert tuned.adapter.state().bypassed == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert tuned.model.training


def test_dropout_that_would_not_reach_its_layers_is_refused(tmp_path):
    run = one_run(tmp_path, **EVA, lora_dropout=0.1)
    with pytest.raises(InputError, match=r"--lora_dropout does not reach blocks\.0\.attn\.qkv, blocks\.1\.attn\.qkv"):
        prepare(run, backbone_of(run), 4, 12)
    other = one_run(tmp_path, **EVA, lora_dropout=0.1, lora_target=["proj", "fc1"])
    assert prepare(other, backbone_of(other), 4, 12).adapter is not None
