"""PEFT methods that ask more of a training than gradients: they get it, or are refused."""

import json

import pytest
import torch
from peft import PeftModel
from torch import nn

from dash_vision.bases.backbones import build
from dash_vision.classification.duties import Duties, planned
from dash_vision.classification.methods import prepare
from dash_vision.classification.run import execute
from dash_vision.files.errors import InputError, Stopped
from tests.support.vtab import BASE, StopAt, cpu, fit, job_of, one_run, tiny, write_task

ADALORA = {
    "peft_type": "ADALORA",
    "init_r": 4,
    "target_r": 2,
    "tinit": 3,
    "tfinal": 2,
    "deltaT": 1,
    "total_step": 999,
    "target_modules": ["qkv"],
}
STEPS, LAYERS = 12, 2  # four epochs of 24 images in batches of 8; blocks of the model


@pytest.fixture
def adalora(tmp_path):
    """Settings of runs with AdaLoRA on the task in tmp_path."""
    write_task(tmp_path / "data")
    file = tmp_path / "ada.json"
    file.write_text(json.dumps(ADALORA))
    return {"methods": [], "peft_config": [str(file)], "selection": "last"}


def ranks_left(model):
    """How many of AdaLoRA's singular values are not zero."""
    return sum(int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name)


def budget(step):
    """Equation 9 of the paper (arXiv 2303.10512), summed over the layers."""
    first, last = LAYERS * ADALORA["init_r"], LAYERS * ADALORA["target_r"]
    if step <= ADALORA["tinit"]:
        return first
    if step > STEPS - ADALORA["tfinal"]:
        return last
    length = STEPS - ADALORA["tinit"] - ADALORA["tfinal"]
    return int(last + (first - last) * (1 - (step - ADALORA["tinit"]) / length) ** 3)


def test_adaloras_ranks_go_down_as_its_schedule_says(tmp_path, adalora):
    job = job_of(tmp_path, **adalora)
    assert job.plan.steps == STEPS
    left = {}
    after_update = job.training.after_update

    def watched(update):
        after_update(update)
        left[update] = ranks_left(job.tuned.model)

    job.training.after_update = watched
    fit(job, 4)
    assert left == {step: budget(step) for step in range(1, STEPS + 1)}
    assert left[STEPS] == 4


def test_adalora_resumes_bit_for_bit_and_is_read_again_by_peft(tmp_path, adalora):
    run = one_run(tmp_path, **adalora)
    whole = execute(run, cpu())
    parts = one_run(tmp_path, **adalora, output_dir=str(tmp_path / "parts"))
    for step in (5, 6):  # in the pruning of the selection, and once more some steps later
        with pytest.raises(Stopped):
            execute(parts, cpu(), StopAt(step))
    again = execute(parts, cpu())
    assert again.retrain_losses == whole.retrain_losses
    files = [(r.folder / "peft" / "adapter_model.safetensors").read_bytes() for r in (run, parts)]
    assert files[0] == files[1]
    model = PeftModel.from_pretrained(build(BASE, 100), str(run.folder / "peft"))
    assert ranks_left(model) == LAYERS * ADALORA["target_r"]


def test_adaloras_factors_are_kept_near_orthogonal_as_its_loss_asks(tmp_path, adalora):
    tuned = prepare(one_run(tmp_path, **adalora), tiny(), 5, STEPS)
    norms = []
    for name, p in tuned.model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = (p @ p.T if "lora_A" in name else p.T @ p).double()
            norms.append((gram - torch.eye(4).double()).square().sum().sqrt())
    assert tuned.duties.penalty().item() == pytest.approx(0.5 * sum(norms).item() / len(norms), rel=1e-5)


def test_kasas_terms_are_part_of_the_loss(tmp_path):
    write_task(tmp_path / "data")
    file = tmp_path / "kasa.json"
    content = {"peft_type": "LORA", "r": 2, "target_modules": ["qkv"], "kasa_config": {"beta": 0.5, "gamma": 0.25}}
    file.write_text(json.dumps(content))
    job = job_of(tmp_path, methods=[], peft_config=[str(file)], drop_path=0.0)
    whole = job.loss(0).item()
    penalty, job.tuned.duties = job.tuned.duties.penalty().item(), None
    assert penalty > 0
    assert whole - job.loss(0).item() == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"peft_type": "ADAMSS", "use_asa": True}, "use_asa"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "reads batches of data"),
        ({"peft_type": "LORA", "init_lora_weights": "lora_ga"}, "reads batches of data"),
        ({"peft_type": "LORA", "init_lora_weights": "corda"}, "reads batches of data"),
        ({**ADALORA, "target_r": 4}, "goes down from init_r to target_r"),
        ({**ADALORA, "tinit": 11}, "budgeting phase"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(tmp_path, content, sentence):
    (tmp_path / "c.json").write_text(json.dumps({"target_modules": ["qkv"], **content}))
    with pytest.raises(InputError, match=sentence):
        prepare(one_run(tmp_path, methods=[], peft_config=[str(tmp_path / "c.json")]), tiny(), 5, STEPS)


def test_a_method_without_duties_has_none(tmp_path):
    assert planned({"peft_type": "LORA"}, 7) == {"peft_type": "LORA"}
    (tmp_path / "lora.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["qkv"]}))
    tuned = prepare(one_run(tmp_path, methods=[], peft_config=[str(tmp_path / "lora.json")]), tiny(), 5, STEPS)
    assert isinstance(tuned.duties, Duties)
    assert isinstance(tuned.model, nn.Module)
    assert tuned.duties.penalty() is None
    assert tuned.duties.state_dict() == {}
    with pytest.raises(ValueError, match="another method"):
        tuned.duties.load_state_dict({"ipt": {}})
