"""What is trained: LoRA-Dash, LoRA, the head alone, everything, the biases, or whatever PEFT offers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..bases.backbones import Backbone, build, head_names
from ..core.adapter import Adapter, inject
from ..core.sharding import whole, write
from ..files.errors import InputError
from ..runs.gradients import listed, untrained_sentence
from ..runs.seeds import seed_everything
from .config import OURS, Run, read_peft_config
from .duties import Duties, planned


@dataclass
class Tuned:
    """A model prepared for one method: exactly what the method trains requires grad.

    model: what is called, images [n, 3, s, s] -> logits [n, classes]. heads: names of its classifier layers in the
    plain timm model. adapter: of dash and lora. may_launch: whether its launch may come. duties: of PEFT's methods.
    """

    model: nn.Module
    method: str
    heads: list[str]
    adapter: Adapter | None = None
    may_launch: bool = True
    duties: Duties | None = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimizer updates, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def groups(self, learning_rate: float, dash_lr: float) -> list[dict[str, Any]]:
        """The optimizer's parameter groups with their full rates; singular-value shifts are one of their own."""
        shifts: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.trainable().items():
            (shifts if name.endswith(".dsigma") else rest).append(parameter)
        groups = [{"params": rest, "lr": learning_rate}, {"params": shifts, "lr": dash_lr}]
        return [group for group in groups if group["params"]]

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name: trainable parameters and all buffers (directions included). Every
        process has to call it for a model that is split over them."""
        return {name: whole(tensor) for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of `state()` as they are kept, split or whole."""
        return {**{n: p.detach() for n, p in self.trainable().items()}, **dict(self.model.named_buffers())}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Write back what `state` gave, in place. Raises ValueError if it is another model's."""
        own = self._tensors()
        wrong = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        if wrong:
            raise ValueError(
                f"the checkpoint is of another model: {len(wrong)} tensors differ, the first is {wrong[0]}"
            )
        for name, tensor in state.items():
            write(own[name], tensor)

    @property
    def launched(self) -> bool:
        return self.adapter is not None and self.adapter.launched

    def missed(self, names: Sequence[str], unused: bool) -> str | None:
        """Why a training that does not reach the tensors `names` is none of this method; None where it still is.

        unused: they take no part in the loss. Where everything is trained, tensors that a model never uses may be among
        it; layers that a method puts in have to be used.
        """
        trainable = self.trainable()
        layers = {name for name in trainable if not _is_head(name, self.heads)}
        if self.method in ("full", "bitfit", "linear"):
            lost = bool(trainable) and trainable.keys() <= set(names)
        else:
            lost = bool(layers) and (layers <= set(names) or (unused and not layers.isdisjoint(names)))
        if not lost:
            return None
        reason = "; the model reads their layers' weights and does not call the layers: name others" if unused else ""
        return f"{untrained_sentence(names, unused)}, and a result would be none of {self.method}{reason}"

    def counts(self) -> dict[str, int]:
        """Numbers in the model, trained ones, and trained ones outside the head."""
        trainable = self.trainable()
        head = sum(p.numel() for name, p in trainable.items() if _is_head(name, self.heads))
        trained = sum(p.numel() for p in trainable.values())
        total = sum(p.numel() for p in self.model.parameters())
        return {"model": total, "trained": trained, "trained_without_head": trained - head}


def prepare(run: Run, backbone: Backbone, classes: int, steps: int) -> Tuned:
    """The model of `run` with everything drawn from its seed, for a schedule of `steps` updates. Raises InputError for
    a method that does not fit."""
    model = build(backbone, classes, run.drop_path, head_seed=run.seed)
    heads = head_names(model)
    with torch.random.fork_rng(devices=[]):
        seed_everything(run.seed, "adapter")
        if run.method in OURS:
            return _adapted(run, backbone, model, heads)
        if run.peft_file:
            return _peft(run, backbone, model, heads, steps)
    for name, parameter in model.named_parameters():
        biases = run.method == "bitfit" and name.endswith("bias")
        parameter.requires_grad_(run.method == "full" or biases or _is_head(name, heads))
    return Tuned(model, run.method, heads)


def _adapted(run: Run, backbone: Backbone, model: nn.Module, heads: list[str]) -> Tuned:
    config = run.dash_config
    try:
        adapter = inject(model, config)
    except ValueError as error:
        raise InputError(f"--lora_target {config.target}: {error}") from None
    for name in heads:
        model.get_submodule(name).requires_grad_(True)
    if run.settings.compile or config.dropout:
        _try(model, backbone)  # torch.compile hides what the model does with its layers
    bypassed = [name for name, layer in adapter.layers.items() if layer.bypassed]
    if bypassed and config.dropout:
        raise InputError(
            f"--lora_dropout does not reach {listed(bypassed)}: {run.model} reads their weights instead of calling "
            "them; leave it out, or name other layers in --lora_target"
        )
    return Tuned(model, run.method, heads, adapter)


@torch.no_grad()
def _try(model: nn.Module, backbone: Backbone) -> None:
    """One forward pass of a black picture."""
    model.eval()
    model(torch.zeros(1, 3, backbone.image_size, backbone.image_size))
    model.train()


def _peft(run: Run, backbone: Backbone, model: nn.Module, heads: list[str], steps: int) -> Tuned:
    from peft import get_peft_config, get_peft_model

    file = run.peft_file
    assert file is not None
    try:
        values = {**planned(read_peft_config(file), steps), "inference_mode": False}
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    values["modules_to_save"] = sorted({*(values.get("modules_to_save") or []), *heads})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(model, get_peft_config(values))
            _try(wrapped, backbone)  # some methods need inputs that a classifier does not give
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise InputError(f"PEFT does not take {file} for {run.model}: {' '.join(str(error).split())[:300]}") from None
    return Tuned(wrapped, run.method, heads, duties=Duties(wrapped))


def _is_head(name: str, heads: list[str]) -> bool:
    """Whether a parameter belongs to the classifier; PEFT puts its names in front and in between."""
    return any(name.startswith(f"{head}.") or f".{head}." in name for head in heads)
