"""What transformers' Trainer leaves with DashCallback, as a run whose directions are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dash_vision.core.loading import read_adapters
from dash_vision.files.errors import InputError
from dash_vision.files.native import NATIVE_NAME, AdapterState, read_notes
from dash_vision.runs.record import RUN

from ..bases import no_loading_bars

_COMPONENT = "model"  # as DashCallback calls it in its native file
_PLAIN, _STATE, _WEIGHTS = "adapter_config.json", "trainer_state.json", "model.safetensors"
# By PEFT's word for the task, the class of transformers that loads a base for it.
_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


@dataclass(frozen=True)
class TrainerRun:
    """The output folder of a Trainer with DashCallback, or one of its checkpoints."""

    folder: Path

    @cached_property
    def state(self) -> AdapterState:
        """The adapter at the end."""
        return read_adapters(self.folder / NATIVE_NAME)[_COMPONENT]

    @property
    def method(self) -> str:
        """ "LoRA" or "LoRA-Dash"."""
        return "LoRA-Dash" if self.state.dash_k else "LoRA"

    def kept_steps(self, state: AdapterState) -> dict[int, Mapping[str, Tensor]]:
        """Optimizer step -> the tensors of the adapter in each checkpoint, and of `state`, the last one."""
        found: dict[int, Mapping[str, Tensor]] = {}
        for folder in _checkpoints(self.folder):
            if (folder / NATIVE_NAME).is_file():
                tensors = read_adapters(folder / NATIVE_NAME)[_COMPONENT].tensors
                if tensors.keys() == state.tensors.keys():
                    found[_step(folder)] = tensors
        if not any(_equal(tensors, state.tensors) for tensors in found.values()):
            found[max((_step(f) for f in (self.folder, *_checkpoints(self.folder))), default=0)] = state.tensors
        return dict(sorted(found.items()))

    def load_base(self, place: str | None) -> nn.Module:
        """The pretrained model, from `place` or from where the plain LoRA beside the adapter says. Raises InputError."""
        import transformers

        configs = [f / _PLAIN for f in (self.folder, *_checkpoints(self.folder)) if (f / _PLAIN).is_file()]
        try:
            about: dict[str, Any] = json.loads(configs[0].read_text(encoding="utf-8"))
            kind = getattr(transformers, _CLASSES.get(about["task_type"], "AutoModel"))
            name = place or about["base_model_name_or_path"]
        except (IndexError, KeyError, ValueError):
            raise InputError(f"{self.folder} has no {_PLAIN} that names its base; make the run again") from None
        no_loading_bars()
        transformers.utils.logging.set_verbosity_error()  # heads of one's own are made new, which does not matter here
        try:
            model: nn.Module = kind.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"cannot load the base {name} ({reason}); name its folder by --base") from None
        return model


def is_run(path: Path) -> bool:
    """Whether a folder holds an adapter that is of no run of this package's own trainers."""
    if not (path / NATIVE_NAME).is_file() or (path / RUN).is_file():
        return False
    return "dash_vision_vtab" not in read_notes(path / NATIVE_NAME)


def full_weights(path: Path) -> Path | None:
    """The weights that a Trainer without an adapter left in its output folder, or in the last of its checkpoints."""
    folders = [f for f in (path, *reversed(_checkpoints(path))) if (f / _WEIGHTS).is_file()]
    return None if not folders or (folders[0] / NATIVE_NAME).is_file() else folders[0] / _WEIGHTS


def have_one_start(state: AdapterState, other: AdapterState) -> bool:
    """Whether two adapters of one shape began with one A: training changes it little, and two that were drawn apart
    are all but at right angles."""
    first, second = (
        torch.cat([tensor.double().flatten() for key, tensor in s.tensors.items() if key.endswith(".A")])
        for s in (state, other)
    )
    return torch.nn.functional.cosine_similarity(first, second, dim=0).item() > 0.5


def _checkpoints(folder: Path) -> list[Path]:
    """By step."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def _step(folder: Path) -> int:
    """The updates that a checkpoint was written after; 0 for a folder that is none."""
    try:
        return int(json.loads((folder / _STATE).read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError):
        return 0


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, second[key]) for key, tensor in first.items())
