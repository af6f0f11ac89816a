"""A LoRA-Dash PEFT model in transformers' Trainer and TRL's SFTTrainer."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from dash_vision.integrations.peft import from_lora, save_as_lora, to_dash
from dash_vision.integrations.transformers import DashCallback
from tests.support.language import sentences, tiny_llama

SETTINGS = {
    "bf16": False,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "save_steps": 2,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}


def make():
    torch.manual_seed(2)
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    return model, to_dash(model, dash_k=2, prelaunch_steps=3)


@pytest.mark.parametrize("step", [2, 4])
def test_the_trainer_resumes_bit_for_bit_from_its_own_checkpoints(tmp_path, step):
    model, schedule = make()
    arguments = TrainingArguments(output_dir=str(tmp_path), **SETTINGS)
    Trainer(model, arguments, train_dataset=sentences(), callbacks=[DashCallback(schedule)]).train()
    assert schedule.launched

    again, resumed = make()
    trainer = Trainer(again, arguments, train_dataset=sentences(), callbacks=[DashCallback(resumed)])
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    expected = dict(model.named_parameters())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for key, tensor in load_file(tmp_path / "checkpoint-6" / "dash_adapter.safetensors").items():
        if key.endswith((".U", ".V", ".indices")):
            assert tensor.any(), key


def test_sft_trainer_takes_the_model_and_the_plain_lora_is_exact(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model, schedule = make()
    rows = [{key: value.tolist() for key, value in row.items()} for row in sentences()]
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(output_dir=str(tmp_path), dataset_kwargs={"skip_prepare_dataset": True}, **SETTINGS),
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=collate,
        processing_class=words(),
        callbacks=[DashCallback(schedule)],
    )
    trainer.train()
    assert schedule.launched
    save_as_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path / "plain")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    reread = PeftModel.from_pretrained(tiny_llama(), tmp_path / "checkpoint-6", is_trainable=True)
    from_lora(reread, tmp_path / "checkpoint-6")
    with torch.no_grad():
        torch.testing.assert_close(reread.eval()(input_ids=ids).logits, expected)


def test_dpo_trainer_takes_the_model_and_its_reference_is_the_base(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model, schedule = make()
    base = tiny_llama()
    rows = [
        {"prompt_ids": [n, n + 1], "chosen_ids": [n + 2, n + 3], "rejected_ids": [n + 9, n + 5, n + 7]}
        for n in range(16)
    ]
    texts = [{key.removesuffix("_ids"): " ".join(map(str, ids)) for key, ids in row.items()} for row in rows]
    trainer = trl.DPOTrainer(
        model,
        args=trl.DPOConfig(str(tmp_path), precompute_ref_log_probs=False, **{**SETTINGS, "logging_steps": 1}),
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=words(),
        callbacks=[DashCallback(schedule)],
    )
    trainer.train()
    assert schedule.launched
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: before the first update both are the same
    assert losses[-1] < losses[0]
    with torch.no_grad(), model.disable_adapter():  # as the reference is computed
        ids = torch.arange(12)[None]
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, base.eval()(input_ids=ids).logits)
    (plain,) = (tmp_path / "checkpoint-6").glob("plain-lora/*")
    reread = PeftModel.from_pretrained(tiny_llama(), plain)
    with torch.no_grad():
        torch.testing.assert_close(reread(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def collate(rows):
    batch = {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def words():
    """A tokenizer of 48 numbers."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {str(n): n for n in range(48)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="0")), pad_token="0", eos_token="1"
    )
