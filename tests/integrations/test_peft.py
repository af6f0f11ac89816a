"""LoRA-Dash on PEFT models: the same mathematics as inject, everything saved, nothing lost in silence."""

import copy
import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from dash_vision import DashConfig, DashSchedule, InputError, inject
from dash_vision.integrations.peft import PLAIN, from_lora, save_as_lora, to_dash
from tests.support.language import sentences, tiny_llama

NAMES = ["q_proj", "v_proj", "down_proj"]


def make(base=None, prelaunch=3, dash_k=3, **settings):
    torch.manual_seed(5)
    base = base or tiny_llama()
    model = get_peft_model(
        base, LoraConfig(r=2, lora_alpha=4, **{"target_modules": NAMES, "task_type": "CAUSAL_LM", **settings})
    )
    return model, to_dash(model, dash_k=dash_k, prelaunch_steps=prelaunch)


def train(model, schedule, steps=6, start=0, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    schedule.optimizers = [optimizer]
    rows = sentences()
    model.train()
    for step in range(start, start + steps):
        ids = torch.stack([rows[(4 * step + i) % len(rows)]["input_ids"] for i in range(4)])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return optimizer


def outputs(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(base)
    model, schedule = make(type(tiny_llama()).from_pretrained(base))
    train(model, schedule)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return model, schedule, folder


def test_it_computes_what_inject_computes_through_both_phases():
    model, schedule = make()
    own = tiny_llama()
    adapter = inject(own, DashConfig(rank=2, dash_k=3, alpha=4, target=NAMES))
    for module, w in adapter.weights():
        layer = model.base_model.model.get_submodule(module)
        w.A.data.copy_(layer.lora_A["default"].weight)
    other = DashSchedule(adapter, prelaunch_steps=3)
    train(model, schedule)
    train(own, other)
    assert schedule.launched
    assert other.launched
    for module, w in adapter.weights():
        layer = model.base_model.model.get_submodule(module)
        assert torch.equal(layer.lora_dash_indices["default"], w.indices)
        torch.testing.assert_close(layer.lora_dash_shifts["default"], w.dsigma, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(outputs(model), outputs(own), rtol=1e-3, atol=1e-4)


def test_nothing_changes_until_training_and_only_the_adapter_is_trained():
    base = tiny_llama()
    before = outputs(base)
    model, schedule = make(base)
    assert torch.equal(outputs(model), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_A" in n or "lora_B" in n or "lora_dash_shifts" in n for n in trained)
    assert sum("lora_dash_shifts" in n for n in trained) == 6
    model.set_adapter("default")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert not schedule.launched


def test_switching_off_and_merging_and_unmerging(trained):
    model, _, _ = trained
    after = outputs(model)
    with model.disable_adapter():
        torch.testing.assert_close(outputs(model), outputs(tiny_llama()))
    model.merge_adapter()
    torch.testing.assert_close(outputs(model), after, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(outputs(model), after, rtol=1e-4, atol=1e-5)


def test_the_plain_lora_is_exact_for_peft_alone(trained, tmp_path):
    model, _, _ = trained
    save_as_lora(model, tmp_path)
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    torch.testing.assert_close(outputs(plain), outputs(model), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2 + 3
    by_name = AutoPeftModelForCausalLM.from_pretrained(tmp_path)  # finds the base and its class by itself
    torch.testing.assert_close(outputs(by_name), outputs(model), rtol=1e-4, atol=1e-5)


def test_a_folder_that_peft_reads_without_the_shifts_says_so_and_holds_the_plain_lora(trained):
    model, _, folder = trained
    alone = PeftModel.from_pretrained(tiny_llama(), folder)
    assert (outputs(alone) - outputs(model)).abs().max() > 1e-3  # this is what the note warns of
    note = (folder / "DASH.md").read_text()
    plain = f"{PLAIN}/rank-5"
    assert plain in note
    torch.testing.assert_close(
        outputs(PeftModel.from_pretrained(tiny_llama(), folder / plain)), outputs(model), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resuming_from_a_saved_folder_is_bit_exact(tmp_path, stop):
    model, schedule = make()
    optimizer = train(model, schedule, steps=stop)
    model.save_pretrained(tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    train(model, schedule, steps=7 - stop, start=stop, optimizer=optimizer)

    again = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    resumed = from_lora(again, tmp_path, prelaunch_steps=3)
    resumed.steps = stop
    assert resumed.launched == (stop >= 3)
    optimizer = torch.optim.AdamW([p for p in again.parameters() if p.requires_grad], lr=0.02)
    optimizer.load_state_dict(state)
    train(again, resumed, steps=7 - stop, start=stop, optimizer=optimizer)
    expected = dict(model.named_parameters())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_transposed_layers_and_trained_heads(tmp_path):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=48, n_positions=32))
    state = {key: t.clone() for key, t in base.state_dict().items()}
    model, schedule = make(base, target_modules=["c_attn"], fan_in_fan_out=True)
    train(model, schedule)
    save_as_lora(model, tmp_path / "gpt2")
    fresh = GPT2LMHeadModel(base.config)
    fresh.load_state_dict(state)
    plain = PeftModel.from_pretrained(fresh, tmp_path / "gpt2")
    torch.testing.assert_close(outputs(plain), outputs(model), rtol=1e-4, atol=1e-5)

    config = BertConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=48)
    bert = BertForSequenceClassification(config)
    other = BertForSequenceClassification(config)
    other.load_state_dict({key: t for key, t in bert.state_dict().items() if "classifier" not in key}, strict=False)
    model, schedule = make(bert, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(5):
        model(input_ids=torch.arange(12)[None], labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        schedule.step()
    save_as_lora(model, tmp_path / "bert")
    plain = PeftModel.from_pretrained(other, tmp_path / "bert")
    torch.testing.assert_close(outputs(plain), outputs(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "variant of LoRA"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "PEFT's layer.Embedding"),
        ({"rank_pattern": {"v_proj": 3}}, "several ranks"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "with lora_bias"),
        ({"target_parameters": ["mlp.up_proj.weight"]}, "PEFT's layer.ParamWrapper"),
        ({"init_lora_weights": "pissa"}, "'pissa' changes the frozen weights"),
    ],
)
def test_other_kinds_of_lora_are_refused(settings, words):
    base = tiny_llama(attention_bias=True)
    with pytest.raises(InputError, match=words):
        make(base, **settings)


def test_what_has_no_dash_and_what_has_it_already_is_said(trained, tmp_path):
    model, _, _ = trained
    with pytest.raises(InputError, match="has the dash already"):
        to_dash(model)
    plain = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(InputError, match="call to_dash"):
        save_as_lora(plain, tmp_path)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match="without shifts"):
        from_lora(plain, tmp_path / "plain")
    with pytest.raises(InputError, match="does not exist"):
        from_lora(plain, tmp_path / "nowhere")
    with pytest.raises(InputError, match="leave out dash_k"):
        from_lora(plain, trained[2], dash_k=5)
    with pytest.raises(InputError, match="takes a PeftModel, not a LlamaForCausalLM"):
        to_dash(tiny_llama())


def test_the_optimizer_is_noticed_and_its_state_of_the_shifts_begins_at_the_launch():
    model, schedule = make()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(5):  # the launch is after the third step
        model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
        optimizer.step()
        schedule.step()
    state = {name: int(optimizer.state[p]["step"]) for name, p in model.named_parameters() if p.requires_grad}
    assert {steps for name, steps in state.items() if "shifts" in name} == {2}
    assert {steps for name, steps in state.items() if "shifts" not in name} == {5}


def test_an_optimizer_that_was_made_before_the_shifts_is_refused():
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=NAMES))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    schedule = to_dash(model, 3, 3)
    model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"not its shifts.*make it after the adapter"):
        schedule.step()


def test_beside_another_adapter_its_own_head_and_files_are_written(tmp_path, caplog):
    base = tiny_llama(tie_word_embeddings=False)
    state = {key: t.clone() for key, t in base.state_dict().items()}
    torch.manual_seed(5)
    settings = {"target_modules": NAMES, "modules_to_save": ["lm_head"]}
    model = get_peft_model(base, LoraConfig(r=2, **settings), adapter_name="first")
    train(model, to_dash(model, 3, 3))
    expected = outputs(model)
    model.add_adapter("second", LoraConfig(r=2, **settings))
    model.set_adapter("second")
    model.save_pretrained(tmp_path / "second", selected_adapters=["second"])
    assert not list((tmp_path / "second").rglob("DASH.md"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "first/DASH.md").is_file()  # where PEFT has written this adapter
    fresh = tiny_llama(tie_word_embeddings=False)
    fresh.load_state_dict(state)
    plain = PeftModel.from_pretrained(fresh, tmp_path / "first" / PLAIN / "rank-5")
    torch.testing.assert_close(outputs(plain), expected, rtol=1e-4, atol=1e-5)
    model.load_adapter(tmp_path / "first", "third")
    assert "the shifts of" in caplog.text
    model.delete_adapter("first")
    with pytest.raises(InputError, match="has no dash"):
        save_as_lora(model, tmp_path)


def test_a_peft_that_asks_no_variants_is_refused(monkeypatch):
    layer = type(next(m for m in make()[0].modules() if hasattr(m, "lora_A")))
    monkeypatch.setattr(layer, "merge", lambda self, safe_merge=False, adapter_names=None: None)
    with pytest.raises(InputError, match=r"asks no LoRA variants.*install peft"):
        make()


def test_a_copy_of_the_model_saves_itself(trained, tmp_path):
    """As of a library that keeps an average of the weights in a copy."""
    model = copy.deepcopy(trained[0])
    for name, parameter in model.named_parameters():
        parameter.data.mul_(2 if "lora_B" in name else 1)
    model.save_pretrained(tmp_path)
    (plain,) = tmp_path.glob(f"{PLAIN}/*")
    torch.testing.assert_close(
        outputs(PeftModel.from_pretrained(tiny_llama(), plain)), outputs(model), rtol=1e-4, atol=1e-5
    )


def test_averaged_directions_are_an_error_and_no_result(trained, tmp_path):
    model = copy.deepcopy(trained[0])
    for name, buffer in model.named_buffers():
        buffer.mul_(0.5 if name.endswith("dash_V.default") else 1)
    for use in (lambda: outputs(model), lambda: save_as_lora(model, tmp_path)):
        with pytest.raises(RuntimeError, match="copy the buffers"):
            use()


def test_peft_does_not_combine_it_without_the_shifts(trained):
    with pytest.raises(InputError, match="would leave out the shifts"):
        trained[0].add_weighted_adapter(["default"], [0.5], "half")


def test_peft_does_not_convert_it_without_the_shifts(trained):
    peft = pytest.importorskip("peft", minversion="0.19")
    if not hasattr(peft, "convert_to_lora"):
        pytest.skip("this PEFT converts nothing")
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        peft.convert_to_lora(trained[0], rank=4)
