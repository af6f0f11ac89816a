"""LoRA-Dash under transformers' Trainer on two processes, by DDP and by FSDP: what one process trains, resumed too."""

import pytest
import torch
import torch.distributed as dist
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from dash_vision import DashConfig, DashSchedule, inject, load_adapter
from dash_vision.core.sharding import is_sharded
from dash_vision.integrations.peft import to_dash
from dash_vision.integrations.transformers import DashCallback
from tests.support.language import sentences, tiny_llama
from tests.support.processes import spread

LOWEST = tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 8)
OLD = tuple(int(n) for n in transformers.__version__.split(".")[:2]) < (5, 24)
pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed"),
    # transformers 5.0 puts the optimizer's state on a device called cpu:0, which there is none of.
    pytest.mark.skipif(OLD, reason="an older Trainer resumes on GPUs only where it has several processes"),
]
LAUNCH, STEPS = 3, 5


def trained(folder, kind, world=1, resume=None, **more):
    torch.manual_seed(4)
    model = tiny_llama()
    if kind == "peft":
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"]))
        schedule = to_dash(model, 3, LAUNCH)
    else:
        schedule = DashSchedule(inject(model, DashConfig(rank=2, dash_k=3, alpha=4, target="llama-paper")), LAUNCH)
    callback = DashCallback(schedule)
    batch = {"per_device_train_batch_size": 4 // world, "gradient_accumulation_steps": 2}
    # A large epsilon: Adam would blow the rounding of two orders of summation up to whole steps.
    settings = {"max_steps": STEPS, "learning_rate": 0.01, "adam_epsilon": 1e-3, "save_steps": 2, "seed": 3}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(folder), **batch, **settings, **quiet, **more)
    trainer = Trainer(model, arguments, train_dataset=sentences(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    assert schedule.steps == STEPS
    assert schedule.launched
    return callback.adapter


def work(rank, world, folder, kind, way):
    more = {}
    if way == "FSDP":
        cpus_may_split()
        units = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
        more = {"fsdp": True, "fsdp_config": {**units, "state_dict_type": "FULL_STATE_DICT"}}
    adapter = trained(f"{folder}/out", kind, world, **more)
    assert {is_sharded(w.A) for _, w in adapter.weights()} == {way == "FSDP"}
    again = trained(f"{folder}/again", kind, world, f"{folder}/out/checkpoint-2", **more)
    torch.save((adapter.state_dict(), again.state_dict()), f"{folder}/{rank}.pt")


def cpus_may_split():
    """accelerate splits models over GPUs only: tell it that two CPUs are some."""
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    made = AcceleratorState.__init__

    def make(self, *args, fsdp_plugin=None, **more):
        made(self, *args, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None:
            PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = make


splits = pytest.mark.skipif(LOWEST, reason="needs PyTorch 2.8")


@pytest.mark.parametrize(
    ("kind", "way"),
    [("inject", "DDP"), pytest.param("inject", "FSDP", marks=splits), pytest.param("peft", "FSDP", marks=splits)],
)
def test_two_processes_train_what_one_does_and_resume(tmp_path, kind, way):
    one = trained(tmp_path / "one", kind)
    spread(work, 2, tmp_path, kind, way)
    (first, again), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for key, tensor in one.state_dict().items():
        torch.testing.assert_close(first[key], tensor, rtol=0, atol=1e-6)
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(again[key], tensor, rtol=0, atol=1e-6)
    checkpoint = tmp_path / "out/checkpoint-4"
    native, ids = tiny_llama(), torch.arange(12)[None]
    load_adapter(native, checkpoint / "dash_adapter.safetensors")
    (plain,) = checkpoint.glob("plain-lora/*") if kind == "peft" else [checkpoint]
    with torch.no_grad():
        expected = native.eval()(ids).logits
        torch.testing.assert_close(PeftModel.from_pretrained(tiny_llama(), plain)(ids).logits, expected)
