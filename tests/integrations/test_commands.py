"""The commands on what transformers' Trainer left: merge, eval directions, and the table of directions."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import benchmarks.directions
from dash_vision import DashConfig, DashSchedule, inject
from dash_vision.__main__ import main as dash_vision
from dash_vision.core.analysis import overlap, update_rates
from dash_vision.core.directions import singular_directions
from dash_vision.integrations.peft import to_dash
from dash_vision.integrations.transformers import DashCallback
from eval.__main__ import main
from tests.support.language import sentences, tiny_llama


def train(folder, model, callbacks=(), **settings):
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 4, "max_steps": 4}
    arguments = TrainingArguments(str(folder), learning_rate=0.01, save_steps=2, **quiet, **settings)
    Trainer(model, arguments, train_dataset=sentences(), callbacks=list(callbacks)).train()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """base, dash (of seed 1), other (of seed 2), full: folders; and the model that dash has trained."""
    root = tmp_path_factory.mktemp("runs")
    tiny_llama(hidden_size=32, intermediate_size=64).save_pretrained(root / "base")
    trained = []
    for name in ("dash", "other"):
        base = AutoModelForCausalLM.from_pretrained(root / "base")
        torch.manual_seed(1 if name == "dash" else 2)
        adapter = inject(base, DashConfig(rank=2, dash_k=3, alpha=4, target="llama-paper"))
        train(root / name, base, [DashCallback(DashSchedule(adapter, prelaunch_steps=3))])
        trained.append(base)
    train(root / "full", AutoModelForCausalLM.from_pretrained(root / "base"))
    return root, trained[0]


def outputs(model):
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None]).logits


def test_merge_writes_a_model_that_transformers_loads(runs, tmp_path, capsys):
    root, trained = runs
    assert dash_vision(["merge", str(root / "dash"), str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(outputs(merged), outputs(trained), rtol=1e-4, atol=1e-5)
    assert "LlamaForCausalLM.from_pretrained loads it" in capsys.readouterr().out
    assert dash_vision(["merge", str(root / "dash"), str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_merge_of_a_peft_model_has_the_shifts(runs, tmp_path):
    root, _ = runs
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    schedule = to_dash(model, dash_k=3, prelaunch_steps=1)
    train(tmp_path / "run", model, [DashCallback(schedule)])
    assert dash_vision(["merge", str(tmp_path / "run/checkpoint-4"), str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(outputs(merged), outputs(model.base_model.model), rtol=1e-4, atol=1e-5)


def test_directions_of_a_trainers_runs_are_set_against_full_fine_tuning(runs, tmp_path, capsys):
    root, _ = runs
    words = ["directions", str(root / "dash"), "--draws", "20", "-o", str(tmp_path / "d.png")]
    assert main([*words, "--truth", str(root / "full")]) == 0
    assert "dash finds " in capsys.readouterr().out
    assert main([*words, "--truth", str(root / "other")]) == 0
    assert "note:" not in capsys.readouterr().out  # the checkpoint of step 2 makes a chart over steps
    assert main([*words, "--truth", str(root / "full"), "--base", str(root / "nowhere")]) == 2
    assert "cannot load the base" in capsys.readouterr().err


def test_the_table_of_directions_is_that_of_the_files(runs, tmp_path, capsys):
    root, _ = runs
    path = tmp_path / "record.json"
    folders = ["--runs", root / "dash", root / "other", "--full", root / "full", "--shuffled", root / "full"]
    assert benchmarks.directions.main([*map(str, [path, *folders]), "--draws", "3"]) == 0
    record = json.loads(path.read_text())
    row = next(r for r in record["rows"] if (r["source"], r["step"], r["labels"]) == ("dash", 2, "true"))
    number, module = 1, record["layers"][1]
    weight = load_file(root / "base/model.safetensors")[f"{module}.weight"]
    tuned = load_file(root / "full/checkpoint-4/model.safetensors")[f"{module}.weight"]
    state = load_file(root / "dash/checkpoint-2/dash_adapter.safetensors")
    update = 2 * state[f"model/{module}.B"].double() @ state[f"model/{module}.A"].double()
    directions = singular_directions(weight)
    own, true = (update_rates(directions, dW) for dW in (update, tuned.double() - weight.double()))
    assert row["rate"][number] == pytest.approx(list(overlap(own, true)))
    projected = [rates * (directions.sigma + 1e-6) for rates in (own, true)]
    assert row["projection"][number] == pytest.approx(list(overlap(*projected)))
    printed = capsys.readouterr().out
    assert benchmarks.directions.main([str(path), "--table"]) == 0
    assert capsys.readouterr().out == printed
    assert "| LoRA rank 2, step 4, against full fine-tuning on shuffled labels | 2 |" in printed
    assert benchmarks.directions.main([str(tmp_path / "none.json"), "--table"]) == 2
