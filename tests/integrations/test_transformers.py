"""LoRA-Dash under transformers' Trainer: the launch's place in a step, checkpoints, resuming, what others read."""

import copy
import json
import logging

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from dash_vision import DashConfig, DashSchedule, InputError, inject, load_adapter
from dash_vision.integrations.transformers import DashCallback, dash_optimizer
from tests.support.language import sentences, tiny_llama

LAUNCH = 4


def make(folder, model=None, **settings):
    model = model or tiny_llama()
    adapter = inject(model, DashConfig(rank=2, dash_k=3, alpha=4, target="llama-paper"))
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.01,
            "save_steps": 2,
            "logging_steps": 100,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
            **settings,
        },
    )
    callback = DashCallback(DashSchedule(adapter, prelaunch_steps=LAUNCH))
    sets = {"train_dataset": sentences(), "eval_dataset": sentences(8, seed=2)}
    return Trainer(model, arguments, **sets, callbacks=[callback]), adapter, callback


def outputs(model):
    model.eval()
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(base)
    folder = tmp_path_factory.mktemp("run")
    trainer, adapter, _ = make(folder, AutoModelForCausalLM.from_pretrained(base))
    trainer.train()
    return folder, trainer, adapter


def test_the_dash_is_launched_after_the_update_that_ends_the_pre_launch_and_before_its_checkpoint(finished):
    folder, trainer, _ = finished
    before = load_file(folder / "checkpoint-2" / "dash_adapter.safetensors")
    at = load_file(folder / f"checkpoint-{LAUNCH}" / "dash_adapter.safetensors")
    assert all((t == -1).all() for key, t in before.items() if key.endswith(".indices"))
    assert all((t >= 0).all() for key, t in at.items() if key.endswith(".indices"))
    assert all((t == 0).all() for key, t in at.items() if key.endswith(".dsigma"))
    assert [e["dash_launch_step"] for e in trainer.state.log_history if "dash_launch_step" in e] == [LAUNCH]


@pytest.mark.parametrize("step", [2, LAUNCH, 6])
def test_resuming_before_at_and_after_the_launch_gives_the_uninterrupted_run_bit_for_bit(finished, tmp_path, step):
    folder, _, adapter = finished
    trainer, resumed, _ = make(tmp_path)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert adapter.launched
    for key, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


def test_the_shifts_move_as_those_of_an_optimizer_that_is_made_at_the_launch(tmp_path):
    """By hand: the same gradients under an AdamW that begins at the launch."""
    trainer, adapter, _ = make(tmp_path, max_steps=LAUNCH + 2, lr_scheduler_type="constant", max_grad_norm=0)
    gradients, shifts = [], []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients.append([w.dsigma.grad.clone() for _, w in adapter.weights()])

        def on_step_end(self, args, state, control, **kwargs):
            shifts.append([w.dsigma.detach().clone() for _, w in adapter.weights()])

    trainer.add_callback(Watch())
    trainer.train()
    by_hand = [torch.nn.Parameter(torch.zeros_like(s)) for s in shifts[-1]]
    optimizer = torch.optim.AdamW(by_hand, lr=0.01, weight_decay=0.0)
    for step in range(LAUNCH, LAUNCH + 2):
        for parameter, gradient in zip(by_hand, gradients[step], strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert all(g.abs().max() == 0 for step in range(LAUNCH) for g in gradients[step])
    for parameter, shift in zip(by_hand, shifts[-1], strict=True):
        torch.testing.assert_close(parameter.data, shift, rtol=1e-6, atol=1e-9)


def test_a_checkpoint_holds_no_frozen_weight_and_transformers_reads_the_trained_model_from_it(finished, tmp_path):
    folder, trainer, _ = finished
    trainer.save_model(tmp_path)
    stored = load_file(folder / "checkpoint-8" / "model.safetensors")
    assert stored
    assert all(".adapters.default." in key for key in stored)
    for place in (folder / "checkpoint-8", folder, tmp_path):
        read = AutoModelForCausalLM.from_pretrained(place)
        torch.testing.assert_close(outputs(read), outputs(trainer.model), rtol=1e-4, atol=1e-5)


def test_peft_and_dash_vision_read_the_adapter_of_a_checkpoint(finished):
    folder, trainer, _ = finished
    by_peft = PeftModel.from_pretrained(tiny_llama(), folder / "checkpoint-8")
    torch.testing.assert_close(outputs(by_peft), outputs(trainer.model), rtol=1e-4, atol=1e-5)
    native = tiny_llama()
    load_adapter(native, folder / "checkpoint-8" / "dash_adapter.safetensors")
    torch.testing.assert_close(outputs(native), outputs(trainer.model))
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_a_merged_model_is_saved_whole_whenever_training_ended(finished, tmp_path):
    trainer, adapter, _ = make(tmp_path, max_steps=LAUNCH + 1, save_strategy="no")
    trainer.train()
    adapter.merge()
    trainer.model.save_pretrained(tmp_path / "merged")
    names = load_file(tmp_path / "merged" / "model.safetensors")
    assert {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.base.weight"} <= names.keys()


def test_the_best_checkpoint_is_loaded_with_its_phase(tmp_path):
    trainer, adapter, _ = make(tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/dash_adapter.safetensors")
    for key, tensor in adapter.state_dict().items():
        assert torch.equal(best[f"model/{key}"], tensor), key


def test_a_step_that_fp16_skipped_does_not_count_and_a_resumed_run_remembers_it(finished, tmp_path, monkeypatch):
    """AcceleratedOptimizer says that it skipped; here by hand, since a CPU has no loss scaling."""
    trainer, _, callback = make(tmp_path, max_steps=6)
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)

    class Skips:
        step_was_skipped = True

    state = trainer.state
    for step in range(1, 6):
        state.global_step = step
        optimizer = Skips() if step <= 2 else trainer.create_optimizer()
        callback.on_step_end(trainer.args, state, trainer.control, optimizer=optimizer)
    assert callback.schedule.steps == 3
    assert not callback.adapter.launched
    _, _, resumed = make(tmp_path)
    resumed.on_train_begin(trainer.args, state, trainer.control)
    assert resumed.schedule.steps == 3


def test_another_base_and_another_scale_are_refused_when_a_run_is_resumed(finished, tmp_path, caplog):
    """A checkpoint holds no frozen weight that could tell."""
    folder, _, _ = finished
    trainer, _, _ = make(tmp_path, tiny_llama(seed=9))
    with pytest.raises(InputError, match=r"of another base: the frozen weight of .* differs"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    other = tiny_llama()
    adapter = inject(other, DashConfig(rank=2, dash_k=3, alpha=5, target="llama-paper"))
    trainer = Trainer(other, trainer.args, train_dataset=sentences(), callbacks=[DashCallback(DashSchedule(adapter))])
    with pytest.raises(InputError, match=r"10 layers and scale 2, this one is of 10 and 2.5"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    plain, _, callback = make(tmp_path / "plain", max_steps=2)
    plain.remove_callback(callback)
    plain.train()
    trainer, _, callback = make(tmp_path, max_steps=3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "plain/checkpoint-2"))
    assert "of a training without DashCallback" in caplog.text
    assert callback.schedule.steps == 3


def test_a_training_that_ends_before_the_launch_says_that_it_made_a_plain_lora(tmp_path, caplog):
    make(tmp_path, max_steps=LAUNCH - 1, save_strategy="no")[0].train()
    assert f"the launch comes after update {LAUNCH}, and {LAUNCH - 1} were made" in caplog.text


def test_a_schedule_that_something_else_steps_too_is_an_error(tmp_path):
    trainer, _, callback = make(tmp_path, save_strategy="no")

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            callback.schedule.step()

    trainer.add_callback(Steps())
    with pytest.raises(ValueError, match=r"counts 2 updates where the Trainer made 1"):
        trainer.train()
    trainer, _, _ = make(tmp_path, save_strategy="no")
    second = inject(trainer.model, DashConfig(rank=2, dash_k=3, target="attention"), "second")
    with pytest.raises(ValueError, match="has a DashCallback for the adapter 'default'"):
        DashCallback(DashSchedule(second))


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
)
def test_checkpointed_activations_and_compiled_models_train_the_same(tmp_path, settings):
    few = {"max_steps": LAUNCH + 1, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    trained = []
    for more in ({}, settings):
        trainer, adapter, _ = make(tmp_path, tiny_llama(num_hidden_layers=1), **few, **more)
        trainer.train()
        trained.append(adapter.state_dict())
    for key, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][key], tensor, rtol=1e-3, atol=1e-5)


def test_trackers_are_told_of_the_launch_and_the_shifts(tmp_path):
    trainer, _, callback = make(tmp_path, logging_steps=1, save_strategy="no")
    trainer.remove_callback(callback)
    callback.attach(trainer)
    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append(dict(logs))

    trainer.add_callback(Tracker())
    trainer.train()
    assert [logs["dash_launch_step"] for logs in told if "dash_launch_step" in logs] == [LAUNCH]
    sizes = [logs["dash_mean_shift"] for logs in told if "dash_mean_shift" in logs]
    assert sizes[0] == 0
    assert sizes[-1] > 0


def test_the_shifts_can_have_a_rate_of_their_own(tmp_path):
    trainer, adapter, _ = make(tmp_path, max_steps=LAUNCH + 1, save_strategy="no", weight_decay=0.1)
    optimizer = dash_optimizer(trainer.model, trainer.args, dash_lr=0.0)
    own = trainer.create_optimizer()
    assert type(optimizer) is type(own)
    ids = {id(w.dsigma) for _, w in adapter.weights()}
    for group in optimizer.param_groups:
        assert {id(p) in ids for p in group["params"]} == {group["lr"] == 0.0}
    counted = sorted(id(p) for group in optimizer.param_groups for p in group["params"])
    assert counted == sorted(id(p) for group in own.param_groups for p in group["params"])
    trainer.optimizer = optimizer
    trainer.train()
    assert adapter.launched
    assert all((w.dsigma == 0).all() for _, w in adapter.weights())
    assert any((w.B != 0).any() for _, w in adapter.weights())


def test_an_optimizer_of_other_tensors_is_said(tmp_path, caplog):
    trainer, _, _ = make(tmp_path, max_steps=1, save_strategy="no")
    trainer.optimizer = torch.optim.SGD(tiny_llama().parameters(), lr=0.1)
    trainer.train()
    assert "optimizer updates no tensor of the adapter" in caplog.text


def test_an_adapter_in_another_model_is_refused(tmp_path):
    trainer, _, callback = make(tmp_path)
    with pytest.raises(ValueError, match="not the one that the adapter was injected into"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=tiny_llama())
    adapters = {"a": callback.adapter, "b": callback.adapter}
    with pytest.raises(ValueError, match="one adapter, this one has 2"):
        DashCallback(DashSchedule(adapters))
    plain = tiny_llama()
    inject(plain, DashConfig(rank=2, dash_k=0, target="llama-paper"))
    with pytest.raises(ValueError, match="no shifts"):
        dash_optimizer(plain, trainer.args, dash_lr=0.1)


def test_a_copy_of_the_model_saves_its_own_adapter(finished, tmp_path):
    """As of a library that keeps an average of the weights in a copy."""
    model = copy.deepcopy(finished[1].model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(2 if name.endswith(".B") else 1)
    model.save_pretrained(tmp_path)
    other = tiny_llama()
    load_adapter(other, tmp_path / "dash_adapter.safetensors")
    assert torch.equal(outputs(other), outputs(model))


class Forgetful(torch.nn.Module):
    """Its second layer takes no part in the loss."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x, labels=None):
        return {"loss": self.used(x).square().mean()}


def test_tensors_that_the_trainer_does_not_reach_are_named(tmp_path, caplog):
    model = Forgetful()
    adapter = inject(model, DashConfig(rank=2, dash_k=2, target=["used", "idle"]))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True
    )
    rows = [{"x": torch.ones(4), "labels": 0} for _ in range(8)]
    callback = DashCallback(DashSchedule(adapter, prelaunch_steps=1))
    with caplog.at_level(logging.WARNING, "dash_vision"):
        Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    said = [record.getMessage() for record in caplog.records if "take no part" in record.getMessage()]
    assert [("idle" in text, "used" in text) for text in said] == [(True, False), (True, False)]
