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
from dash_vision.integrations.peft import save_as_lora, to_dash
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


def test_merge_writes_the_format_that_the_base_has(runs, tmp_path, capsys):
    root, _ = runs
    AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    folder = lora_of(tmp_path / "base", tmp_path / "lora", "q_proj")
    half, full = tmp_path / "half", tmp_path / "full"
    assert dash_vision(["merge", str(folder), str(half)]) == 0
    assert "(bfloat16)" in capsys.readouterr().out
    assert {tensor.dtype for tensor in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(half).dtype == torch.bfloat16
    assert dash_vision(["merge", str(folder), str(full), "--dtype", "fp32"]) == 0
    assert AutoModelForCausalLM.from_pretrained(full).dtype == torch.float32


def lora_of(base, folder, *targets):
    """A folder that PEFT writes, of a LoRA that has learned nothing."""
    config = LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def test_merge_refuses_a_base_that_has_changed_since(runs, tmp_path, capsys):
    root, _ = runs
    other = AutoModelForCausalLM.from_pretrained(root / "base")
    torch.nn.init.normal_(other.model.layers[0].self_attn.q_proj.weight, std=0.02)
    other.save_pretrained(tmp_path / "other")
    assert dash_vision(["merge", str(root / "dash"), str(tmp_path / "out"), "--base", str(tmp_path / "other")]) == 2
    assert "was trained on another base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "targets", "said"),
    [
        ({"tie_word_embeddings": True}, ["lm_head"], "the weight of lm_head is shared with another module"),
        ({"num_hidden_layers": 1}, ["q_proj"], "has no layer model.layers.1.self_attn.q_proj"),
        ({"hidden_size": 32}, ["q_proj"], "model.layers.0.self_attn.q_proj of"),
    ],
)
def test_merge_of_a_lora_refuses_what_peft_would_do_in_silence(tmp_path, capsys, settings, targets, said):
    other, base = tmp_path / "other", tmp_path / "base"
    tiny_llama(**settings).save_pretrained(other)
    tiny_llama().save_pretrained(base)
    folder = lora_of(base, tmp_path / "lora", *targets)
    assert dash_vision(["merge", str(folder), str(tmp_path / "out"), "--base", str(other)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_merge_says_where_a_lora_was_trained_on_other_weights(tmp_path, capsys):
    for seed in (0, 1):
        tiny_llama(seed).save_pretrained(tmp_path / f"base-{seed}")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base-0")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    to_dash(model, dash_k=2, prelaunch_steps=1)
    save_as_lora(model, tmp_path / "lora")
    for seed in (0, 1):
        words = ["merge", str(tmp_path / "lora"), str(tmp_path / f"{seed}"), "--base", str(tmp_path / f"base-{seed}")]
        assert dash_vision(words) == 0
        assert ("trained on other weights than this base has" in capsys.readouterr().out) == bool(seed)


def test_merge_refuses_numbers_that_a_format_cannot_hold(runs, tmp_path, capsys):
    root, _ = runs
    big = AutoModelForCausalLM.from_pretrained(root / "base")
    big.model.norm.weight.data.fill_(7e4)  # float16 ends at 65504
    big.save_pretrained(tmp_path / "big")
    folder = lora_of(tmp_path / "big", tmp_path / "lora", "q_proj")
    assert dash_vision(["merge", str(folder), str(tmp_path / "out"), "--dtype", "fp16"]) == 2
    assert "model.norm.weight of the merged LlamaForCausalLM holds numbers too large for float16" in (
        capsys.readouterr().err
    )
    assert dash_vision(["merge", str(folder), str(tmp_path / "out"), "--dtype", "bf16"]) == 0


def test_merge_of_a_folder_that_is_no_adapter_names_what_is(runs, tmp_path, capsys):
    root, _ = runs
    folder = lora_of(root / "base", tmp_path / "run/checkpoint-2", "q_proj")
    assert dash_vision(["merge", str(folder.parent), str(tmp_path / "out")]) == 2
    assert "is a folder without a trained model; give its checkpoint-2" in capsys.readouterr().err
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    assert dash_vision(["merge", str(folder), str(tmp_path / "out")]) == 2
    assert "is no complete .safetensors file" in capsys.readouterr().err
    about = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**about, "task_type": None}))
    assert dash_vision(["merge", str(folder), str(tmp_path / "out")]) == 2
    assert "names no task_type" in capsys.readouterr().err


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
