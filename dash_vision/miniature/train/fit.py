"""One resumable training loop for every network of the miniature.

AdamW, or Muon for the matrices where the plan says so; a trapezoid schedule; a running average of the weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...files.atomic import replacing
from ...runs.runtime import fast_in_bf16
from ...runs.signals import catching_signals


@dataclass(frozen=True)
class Plan:
    """How long and how to train one network.

    The learning rate rises over `warmup` steps, stays, and falls linearly to zero over the last `cooldown` share of
    `steps`: so a run may be prolonged up to the beginning of its cooldown without having lost anything.
    """

    steps: int
    learning_rate: float
    batch_size: int = 32
    warmup: int = 200
    cooldown: float = 0.3
    weight_decay: float = 0.01
    average: float = 0.999
    muon: float = 0.0  # learning rate of Muon for the weight matrices; 0: everything by AdamW
    save_every: int = 500
    log_every: int = 100

    def rate_at(self, step: int) -> float:
        """The share of the full learning rate that a step (counted from 0) has: 0..1."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return min(1.0, (step + 1) / self.warmup, left)


def orthogonalized(stack: Tensor, steps: int = 5) -> Tensor:
    """About U V^T for every matrix U S V^T of a stack [n, rows, columns], by Newton-Schulz steps.

    The polynomial and its coefficients are Muon's (Jordan et al., 2024): singular values end between 0.7 and 1.2.
    Computed in bfloat16 where that is fast.
    """
    x = stack.bfloat16() if fast_in_bf16(stack.device) else stack.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, Nesterov's way, whose steps are orthogonalized; for weights of two and more axes.

    A convolution's kernel counts as the matrix [out, in * height * width]. Steps are scaled to the root mean square
    that AdamW's usually have, 0.2 times the learning rate (arXiv 2502.16982). Weights of one shape go together.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there; `closure` must be None."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                updates = orthogonalized(torch.stack([update.flatten(1) for update in ahead]))
                scale = 0.2 * math.sqrt(max(updates.shape[1:]))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["decay"])
                torch._foreach_add_(parameters, [u.view(shape) for u in updates], alpha=-group["lr"] * scale)


def optimizers_for(modules: dict[str, nn.Module], plan: Plan) -> list[torch.optim.Optimizer]:
    """AdamW for everything; where the plan has a rate for Muon, that for the matrices between first and last layer.

    Embeddings and a U-Net's convolutions from and to the latents stay with AdamW, as Muon's authors advise.
    """
    ends = ("conv_in.weight", "conv_out.weight")
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules.values():
        tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                inner = parameter.ndim > 1 and id(parameter) not in tables and not name.endswith(ends)
                (matrices if inner and plan.muon else rest).append(parameter)
    # The fused kernel is one pass over memory instead of a dozen; it matters on a small CPU.
    adam = torch.optim.AdamW(rest, plan.learning_rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True)
    if not matrices:
        return [adam]
    return [adam, Muon(matrices, plan.muon, decay=plan.weight_decay)]


class Fit:
    """Trains the parameters of some modules and keeps a running average of them.

    Every step draws from a generator seeded by (seed, step), so a run that was stopped and goes on from its checkpoint
    sees exactly what the uninterrupted one would have seen.
    """

    def __init__(self, name: str, modules: dict[str, nn.Module], plan: Plan, folder: Path, seed: int) -> None:
        self.name, self.modules, self.plan, self.seed = name, modules, plan, seed
        self.checkpoint = folder / f"{name}.checkpoint.pt"
        self.journal = folder / f"{name}.log.jsonl"
        self.parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimizers = optimizers_for(modules, plan)
        self.full_rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step = 0

    def save(self) -> None:
        """Write the checkpoint (weights, averages, optimizers, step)."""
        state = {
            "step": self.step,
            "weights": [p.detach() for p in self.parameters],
            "averages": self.averages,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with replacing(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises ValueError where it belongs to a network of another shape or was trained by other optimizers.
        """
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.parameters[0].device, weights_only=True)
        shapes = [tuple(p.shape) for p in self.parameters]
        if [tuple(p.shape) for p in state["weights"]] != shapes or len(state["optimizers"]) != len(self.optimizers):
            raise ValueError(f"{self.checkpoint} belongs to another network or plan; use another --work folder")
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, state["weights"], strict=True):
                parameter.copy_(weight)
        self.averages = state["averages"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        print(f"{self.name}: going on from step {self.step}", flush=True)

    def run(self, loss_at: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]) -> None:
        """Train to the plan's last step. `loss_at(step, generator)` returns the scalar loss and figures to log.

        SIGINT or SIGTERM end it after the step in hand with a checkpoint and a KeyboardInterrupt; a loss that is not a
        number ends it with FloatingPointError, and the last checkpoint stays as it was.
        """
        self.resume()
        means: dict[str, float] = {}
        started, first = time.monotonic(), self.step
        with catching_signals() as stop:
            while self.step < self.plan.steps:
                figures = self._advance(loss_at)
                for key, value in figures.items():
                    means[key] = 0.98 * means.get(key, value) + 0.02 * value
                last = self.step == self.plan.steps
                if self.step % self.plan.log_every == 0 or last:
                    self._log(means, (self.step - first) * self.plan.batch_size / (time.monotonic() - started))
                if self.step % self.plan.save_every == 0 or last or stop.pending():
                    self.save()
                if stop.pending() and not last:
                    raise KeyboardInterrupt(f"{self.name}: stopped at step {self.step}; run again to go on")

    def _advance(self, loss_at: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        rate = self.plan.rate_at(self.step)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        loss, figures = loss_at(self.step, generator)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"{self.name}: the loss is not a finite number at step {self.step}")
        for optimizer, full in zip(self.optimizers, self.full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = full * rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(self.plan.average, self.step / (self.step + 10))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)
        return {"loss": value, **figures}

    def _log(self, means: dict[str, float], speed: float) -> None:
        row = {"step": self.step, **{k: round(v, 5) for k, v in means.items()}, "images_per_s": round(speed, 1)}
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
        print(f"{self.name}: step {self.step}/{self.plan.steps}  {shown}  {speed:.0f} images/s", flush=True)

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the averaged weights into the modules: what is exported."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.copy_(average)
