"""The ways to fine-tune that the examples compare: LoRA-Dash, plain LoRA, everything, or a method of PEFT's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import get_peft_config, get_peft_model
from transformers import TrainerCallback

from dash_vision import DashConfig, DashSchedule, inject
from dash_vision.integrations.transformers import DashCallback


@dataclass
class MethodArguments:
    """How the model is fine-tuned."""

    method: str = field(default="dash", metadata={"help": "dash, lora, full, or a JSON file with a PEFT configuration"})
    rank: int = field(default=8, metadata={"help": "rank of the LoRA update"})
    lora_alpha: float | None = field(default=None, metadata={"help": "scale of the update; the default is 2 x rank"})
    lora_target: str = field(default="attention-mlp", metadata={"help": "layers to adapt: a preset, see docs"})
    dash_k: int = field(default=8, metadata={"help": "task-specific directions per layer"})
    prelaunch_steps: int = field(default=100, metadata={"help": "updates of plain LoRA before the dash"})
    dash_selection: str = field(default="change_rate", metadata={"help": "how directions are chosen"})
    dash_lr: float | None = field(default=None, metadata={"help": "learning rate of the shifts, if another one"})


def apply(model: Any, options: MethodArguments, seed: int, head: list[str]) -> tuple[Any, list[TrainerCallback]]:
    """(the model to train, callbacks for its Trainer). head: names of modules that are trained whole beside it."""
    if options.method == "full":
        return model, []
    if options.method not in ("dash", "lora"):
        settings = json.loads(Path(options.method).read_text(encoding="utf-8"))
        return get_peft_model(model, get_peft_config({"modules_to_save": head or None, **settings})), []
    k = options.dash_k if options.method == "dash" else 0
    alpha = options.lora_alpha or 2 * options.rank
    config = DashConfig(options.rank, alpha, k, options.lora_target, selection=options.dash_selection)
    adapter = inject(model, config)
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    return model, [DashCallback(DashSchedule(adapter, options.prelaunch_steps, seed=seed))]
