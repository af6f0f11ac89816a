"""Optimizers and learning-rate schedules, made from the settings that both trainers share."""

from __future__ import annotations

from typing import Any

import torch

from ..files.errors import InputError
from .loop import Rate
from .settings import OptimArgs


def make_optimizer(o: OptimArgs, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW, 8-bit AdamW or Prodigy over parameter groups, each with its "lr"; the latter two come from their own
    packages, imported only here. Raises InputError where a package is missing or settings contradict each other."""
    common: dict[str, Any] = {"betas": (o.adam_beta1, o.adam_beta2), "weight_decay": o.adam_weight_decay}
    if o.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError:
            raise InputError("--optimizer prodigy needs its package: pip install 'dash-vision[prodigy]'") from None
        if len({group["lr"] for group in groups}) > 1:
            raise InputError("prodigy has one learning rate for all; leave out --dash_lr and --text_encoder_lr")
        return Prodigy(
            groups, lr=groups[0]["lr"], eps=o.adam_epsilon, use_bias_correction=True, safeguard_warmup=True, **common
        )
    if o.use_8bit_adam:
        try:
            import bitsandbytes
        except ImportError:
            raise InputError("--use_8bit_adam needs its package: pip install 'dash-vision[8bit]'") from None
        return bitsandbytes.optim.AdamW8bit(groups, eps=o.adam_epsilon, **common)
    return torch.optim.AdamW(groups, eps=o.adam_epsilon, **common)


def make_rate(name: str, full: float, steps: int, warmup_steps: int, num_cycles: int, power: float) -> Rate:
    """diffusers' learning-rate schedule of that name over `steps` updates; full: the learning rate, which the end of a
    "polynomial" one is a part of."""
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=full)
    course = get_scheduler(name, optimizer, None, warmup_steps, steps, num_cycles, power)
    (factor,) = course.lr_lambdas
    return lambda full, updates: full * factor(updates)
