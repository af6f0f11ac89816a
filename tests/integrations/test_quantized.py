"""Language models that transformers has quantized: under its Trainer, and as PEFT models."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

from dash_vision import DashConfig, DashSchedule, InputError, inject
from dash_vision.core.quantized import is_quantized, keep_trainable
from dash_vision.integrations.peft import PLAIN, from_lora, save_as_lora, to_dash
from dash_vision.integrations.transformers import DashCallback
from tests.support.language import sentences, tiny_llama
from tests.support.quantized import WORDS, need

each_word = pytest.mark.parametrize("word", WORDS)
NAMES = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return folder


def load(folder, word):
    need(word)
    if word == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    else:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        config = TorchAoConfig({"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[word]())
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    keep_trainable(model)  # else bitsandbytes computes in bfloat16 on some CPUs
    return model


def trainer(folder, model, **settings):
    adapter = inject(model, DashConfig(rank=2, dash_k=3, alpha=4, target="llama-paper"))
    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "save_steps": 2,
        "report_to": [],
    }
    arguments |= {"disable_tqdm": True, "use_cpu": True, "seed": 3}
    callback = DashCallback(DashSchedule(adapter, prelaunch_steps=3))
    arguments = TrainingArguments(output_dir=str(folder), **arguments, **settings)
    return Trainer(model, arguments, train_dataset=sentences(), callbacks=[callback]), adapter


@each_word
def test_a_trainer_launches_and_resumes_bit_for_bit(word, base, tmp_path):
    whole, adapter = trainer(tmp_path / "whole", load(base, word))
    whole.train()
    assert adapter.launched
    assert all(is_quantized(layer.base) for layer in adapter.layers.values())
    again, resumed = trainer(tmp_path / "again", load(base, word))
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert all(torch.equal(t, resumed.state_dict()[key]) for key, t in adapter.state_dict().items())


@each_word
def test_the_adapter_of_a_trained_quantized_model_loads_on_it_as_a_plain_lora(word, base, tmp_path):
    whole, adapter = trainer(tmp_path / "whole", load(base, word))
    whole.train()
    ids = torch.arange(12)[None]
    plain = PeftModel.from_pretrained(load(base, word), tmp_path / "whole")
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, adapter.model.eval()(ids).logits, atol=1e-4, rtol=1e-4)


def dash(model, **settings):
    torch.manual_seed(5)
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=NAMES, task_type="CAUSAL_LM"))
    return wrapped, to_dash(wrapped, dash_k=3, prelaunch_steps=3, **settings)


def steps(model, schedule, number=6):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    schedule.optimizers = [optimizer]
    rows = sentences()
    losses = []
    for step in range(number):
        ids = torch.stack([rows[(4 * step + i) % len(rows)]["input_ids"] for i in range(4)])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return losses


@each_word
def test_a_peft_model_has_the_dash_and_its_files_hold_everything(word, base, tmp_path):
    model, schedule = dash(load(base, word))
    steps(model, schedule)
    assert schedule.launched
    ids = torch.arange(12)[None]
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        save_as_lora(model, tmp_path / "lora")
        plain = PeftModel.from_pretrained(load(base, word), tmp_path / "lora").eval()
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
        model.save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / PLAIN).is_dir()
        again = PeftModel.from_pretrained(load(base, word), tmp_path / "saved", is_trainable=True)
        from_lora(again, tmp_path / "saved")
        torch.testing.assert_close(again.eval()(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


@each_word
def test_peft_computes_what_inject_computes_on_a_quantized_model(word, base):
    model, schedule = dash(load(base, word))
    own = load(base, word)
    adapter = inject(own, DashConfig(rank=2, dash_k=3, alpha=4, target=NAMES))
    for module, w in adapter.weights():
        w.A.data.copy_(model.base_model.model.get_submodule(module).lora_A["default"].weight)
    found, expected = steps(model, schedule), steps(own, DashSchedule(adapter, prelaunch_steps=3))
    assert found == pytest.approx(expected, rel=1e-4)


@each_word
def test_merging_a_quantized_peft_model_is_refused(word, base):
    model, schedule = dash(load(base, word))
    steps(model, schedule)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(InputError, match=r"cannot merge into a quantized weight.*save_as_lora"):
            merge()
