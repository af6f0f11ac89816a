"""What PEFT leaves to whoever trains: work after each update, and terms of the loss.

PEFT's configurations name methods that gradients alone do not carry out. Those are served here, or refused before the
first step: a result would otherwise be one of another method.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..files.errors import InputError

_NEED_DATA = ("eva", "corda", "lora_ga")  # initialisations of LoRA that read batches before the training


class Duties:
    """Of one model that PEFT has wrapped; of most methods there are none.

    model: a PeftModel with one adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tuner: Any = model.base_model
        self.config: Any = model.active_peft_config

    @property
    def allocator(self) -> Any:
        """AdaLoRA's, which takes ranks away; None for every other method."""
        return getattr(self.tuner, "rankallocator", None)

    def after_update(self, update: int) -> None:
        """What the method does after update number `update` (from 1), while the gradients are there."""
        if self.allocator is not None:
            self.tuner.update_and_allocate(update)

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss, a scalar; None for nothing."""
        if self.allocator is not None:
            return self.config.orth_reg_weight * self._distance_from_orthogonal()
        for setting in ("kasa", "monteclora"):
            if getattr(self.config, f"{setting}_config", None) is not None:
                return torch.as_tensor(getattr(self.tuner, f"_get_{setting}_loss")())
        return None

    def _distance_from_orthogonal(self) -> Tensor:
        """Mean over AdaLoRA's factors P of the norm of P^T P - 1: they are to be singular vectors (its equation 4)."""
        norms = []
        for name, p in self.tuner.named_parameters():
            if p.requires_grad and ("lora_A" in name or "lora_B" in name):
                gram = p @ p.T if "lora_A" in name else p.T @ p
                norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return torch.stack(norms).mean()

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides the model's tensors."""
        a = self.allocator
        if a is None:
            return {}
        averages = {"ipt": a.ipt, "exp_avg_ipt": a.exp_avg_ipt, "exp_avg_unc": a.exp_avg_unc}
        return {**{key: dict(value) for key, value in averages.items()}, "rank_pattern": self.config.rank_pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises KeyError, TypeError or ValueError when it is of another method."""
        a = self.allocator
        if (a is None) != (not state):
            raise ValueError("its duties are another method's")
        if a is None:
            return
        device = next(self.tuner.parameters()).device
        for key in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            setattr(a, key, {name: tensor.to(device) for name, tensor in state[key].items()})
        self.config.rank_pattern = state["rank_pattern"]


def planned(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """A PEFT configuration for a training of `steps` updates. Raises InputError for what cannot be done here."""
    kind, start = str(values.get("peft_type")).upper(), values.get("init_lora_weights")
    if kind == "ADAMSS" and values.get("use_asa"):
        raise InputError('"use_asa" of AdaMSS needs a training of its own, which is not done here; set it to false')
    if isinstance(start, str) and start.lower().startswith(_NEED_DATA):
        raise InputError(
            f'"init_lora_weights": "{start}" reads batches of data before the training, which is not done here; give '
            'another initialisation, such as "pissa" or true'
        )
    if kind != "ADALORA":
        return values
    _check_ranks(values)
    # Its schedule ends with the training, whose length is ours to know: selection and retraining have not the same one.
    return {**values, "total_step": steps}


def _check_ranks(values: dict[str, Any]) -> None:
    """Raises InputError where AdaLoRA would take no rank away."""
    first, last = values.get("init_r", 12), values.get("target_r", 8)
    if not (isinstance(first, int) and isinstance(last, int) and 0 < last < first):
        raise InputError(
            f"AdaLoRA goes down from init_r to target_r, and these are {first} and {last}; give a larger init_r"
        )
