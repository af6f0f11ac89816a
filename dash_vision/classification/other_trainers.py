"""Flags that timm's training script and common VTAB codes have by other names."""

from __future__ import annotations

from ..runs.words import Foreign


def _here(flag: str) -> Foreign:
    return Foreign(f"it is {flag} here")


FOREIGN = {
    "amp": _here("--mixed_precision"),
    "batch_size": _here("--train_batch_size"),
    "clip_grad": _here("--max_grad_norm"),
    "data_dir": _here("--data_root"),
    "data_path": _here("--data_root"),
    "dataset": _here("--task"),
    "img_size": _here("--image_size"),
    "initial_checkpoint": _here("--checkpoint"),
    "lora_rank": _here("--rank"),
    "lora_r": _here("--rank"),
    "num_classes": Foreign("a task says how many classes it has", unneeded=True),
    "num_train_epochs": _here("--epochs"),
    "num_workers": Foreign("images are decoded once and kept", unneeded=True),
    "opt": _here("--optimizer"),
    "output": _here("--output_dir"),
    "pretrained": Foreign("weights are pretrained unless --random_weights is given", unneeded=True),
    "sched": Foreign("the rate falls along a cosine after --warmup_epochs; leave it out"),
    "use_dora": Foreign('DoRA is a method of PEFT: --peft_config FILE with {"peft_type": "LORA", "use_dora": true}'),
    "warmup_steps": _here("--warmup_epochs"),
    "weight_decay": _here("--adam_weight_decay"),
    "workers": Foreign("images are decoded once and kept", unneeded=True),
}
