"""What transformers' Trainer leaves with DashCallback, as a run whose directions are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from dash_vision.bases.pretrained import PLAIN, load_pretrained
from dash_vision.core.loading import read_adapters
from dash_vision.files.native import NATIVE_NAME, AdapterState, read_notes
from dash_vision.runs.record import RUN

from ..bases import no_loading_bars

_COMPONENT = "model"  # as DashCallback calls it in its native file
_STATE, _WEIGHTS = "trainer_state.json", "model.safetensors"


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
        """The pretrained model, from `place` or from where the plain LoRA of the run says. Raises InputError."""
        no_loading_bars()
        folders = [f for f in (self.folder, *_checkpoints(self.folder)) if (f / PLAIN).is_file()]
        model: nn.Module = load_pretrained(folders[0] if folders else self.folder, place)[0]
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
