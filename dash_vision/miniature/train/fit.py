"""How every network of the miniature is trained: its plan, its optimizers, and a job of the one training loop.

AdamW, or Muon for the matrices where the plan says so; a trapezoid schedule, or half a cosine; a running average of the
weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...files.checkpoint import load_checkpoint, save_checkpoint
from ...files.errors import InputError, Stopped
from ...runs.gradients import untrained_sentence
from ...runs.loop import Training, train
from ...runs.runtime import fast_in_bf16, make_runtime, usual_precision
from ...runs.seeds import stream
from ...runs.signals import catching_signals

LossAt = Callable[[int, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
"""(batch, its random numbers) -> the scalar loss, and figures to log: scalars without a graph."""


@dataclass(frozen=True)
class Plan:
    """How long and how to train one network.

    The learning rate rises over `warmup` steps, stays, and falls linearly to zero over the last `cooldown` share of
    `steps`: so a run may be prolonged up to the beginning of its cooldown without having lost anything. With `cosine`
    it follows half a cosine from the first step on.
    """

    steps: int
    learning_rate: float
    batch_size: int = 32
    warmup: int = 200
    cooldown: float = 0.3
    cosine: bool = False
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    average: float = 0.999  # share that the running average of the weights keeps at a step; 0: there is none
    muon: float = 0.0  # learning rate of Muon for the weight matrices; 0: everything by AdamW
    save_every: int = 500
    log_every: int = 100

    def rate_at(self, step: int) -> float:
        """The share of the full learning rate that a step (counted from 0) has: 0..1."""
        risen = min(1.0, (step + 1) / self.warmup)
        if self.cosine:
            return risen * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(risen, (self.steps - step) / max(1.0, self.cooldown * self.steps))

    def identity(self) -> dict[str, Any]:
        """What a checkpoint has to have in common with a training that goes on from it."""
        left_out = {"save_every", "log_every"} | (set() if self.cosine else {"steps"})
        return {k: list(v) if k == "betas" else v for k, v in asdict(self).items() if k not in left_out}


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

    Embeddings and the layers from and to the latents stay with AdamW, as Muon's authors advise.
    """
    ends = ("conv_in.weight", "conv_out.weight", "x_embedder.2-1.weight", "final_layer.2-1.linear.weight")
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules.values():
        tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                inner = parameter.ndim > 1 and id(parameter) not in tables and not name.endswith(ends)
                (matrices if inner and plan.muon else rest).append(parameter)
    # The fused kernel is one pass over memory instead of a dozen; it matters on a small CPU.
    adam = torch.optim.AdamW(rest, plan.learning_rate, plan.betas, weight_decay=plan.weight_decay, fused=True)
    if not matrices:
        return [adam]
    return [adam, Muon(matrices, plan.muon, decay=plan.weight_decay)]


class Fit:
    """Trains the parameters of some modules, and keeps a running average of them where the plan asks for one.

    modules: on `device` already. folder: takes NAME.checkpoint.safetensors and the journal NAME.log.jsonl. runtime: its
    precision is the forward pass's, by `runtime.autocast()`.
    """

    def __init__(
        self, name: str, modules: dict[str, nn.Module], plan: Plan, folder: Path, seed: int, device: str = "cpu"
    ) -> None:
        self.name, self.plan, self.seed = name, plan, seed
        self.checkpoint = folder / f"{name}.checkpoint.safetensors"
        self.journal = folder / f"{name}.log.jsonl"
        self.runtime = make_runtime(usual_precision(device), device)
        if self.runtime.world > 1:
            raise InputError("the miniature is trained by one process; start its build without a launcher")
        self.parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.parameters] if plan.average else []
        self.training = Training(
            networks=list(modules.values()),
            optimizers=optimizers_for(modules, plan),
            rate=lambda full, updates: full * plan.rate_at(updates),
            max_grad_norm=1.0,
            name=f"{name}, step",
            seed=seed,
            log_every=plan.log_every,
            checkpoint_every=plan.save_every,
            after_update=self._average,
        )
        self._loss_at: LossAt | None = None
        self._means: dict[str, Any] = {}
        self._clock, self._first = time.monotonic(), 0  # when, and after which step, this process began to train

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.training.step

    def run(self, loss_at: LossAt) -> None:
        """Train to the plan's last step, from the checkpoint if there is one; every step's random numbers follow from
        the seed and its number.

        Raises Stopped after SIGINT or SIGTERM, with a checkpoint written; RunError when the loss or an update is no
        finite number, and the last checkpoint stays as it was.
        """
        self._loss_at = loss_at
        self.resume()
        self._clock, self._first = time.monotonic(), self.step
        with catching_signals() as stop:
            finished = train(self, self.training, self.runtime, self.plan.steps, stop)
            if finished:
                self.save()
            if stop.signal is not None:
                raise Stopped(stop.signal, f"{self.name}: stopped at step {self.step}, checkpoint in {self.checkpoint}")

    # -- what the loop asks for

    def loss(self, batch: int) -> Tensor:
        """The loss of batch number `batch`; its figures go into the running means."""
        assert self._loss_at is not None
        loss, figures = self._loss_at(batch, stream(self.seed, f"{self.name}, batch", batch))
        for key, value in {"loss": loss.detach(), **figures}.items():
            self._means[key] = torch.lerp(self._means.get(key, value), value, 0.02)
        return loss

    def log(self, first: int, losses: Sequence[float], rate: float) -> None:
        """Add a row to the journal, and print it."""
        step = first + len(losses) - 1
        speed = (step - self._first) * self.plan.batch_size / (time.monotonic() - self._clock)
        means = {key: value.item() for key, value in self._means.items()}
        row = {"step": step, **{k: round(v, 5) for k, v in means.items()}, "images_per_s": round(speed, 1)}
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
        print(f"{self.name}: step {step}/{self.plan.steps}  {shown}  {speed:.0f} images/s", flush=True)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "identity": self._identity(),
            "weights": [p.detach() for p in self.parameters],
            "averages": self.averages,
            "training": self.training.state_dict(self.runtime),
        }
        save_checkpoint(self.checkpoint, state)

    def untrained(self, names: Sequence[str], unused: bool) -> None:
        """Say which tensors are not trained."""
        print(f"{self.name}: {untrained_sentence(names, unused)}", flush=True)

    # -- the weights

    def _average(self, updates: int) -> None:
        """Move the averages towards the weights; the first updates count more, since random weights count for less."""
        if self.averages:
            decay = min(self.plan.average, updates / (updates + 10))
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the averaged weights into the modules: what is exported."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.copy_(average)

    def _identity(self) -> dict[str, Any]:
        shapes = [list(p.shape) for p in self.parameters]
        return {"name": self.name, "seed": self.seed, "plan": self.plan.identity(), "shapes": shapes}

    @torch.no_grad()
    def resume(self) -> None:
        """Go on from the checkpoint, if there is one. Raises InputError where it is of another network or plan."""
        if not self.checkpoint.exists():
            return
        state = load_checkpoint(self.checkpoint)
        if state.get("identity") != self._identity():
            raise InputError(f"{self.checkpoint} was trained with other settings; use another --work folder")
        for parameter, weight in zip(self.parameters, state["weights"], strict=True):
            parameter.copy_(weight)
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
        self.training.load_state_dict(state["training"], self.runtime)
        print(f"{self.name}: going on from step {self.step}", flush=True)
