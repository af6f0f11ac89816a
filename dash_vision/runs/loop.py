"""The training loop. DreamBooth, VTAB and the miniature's own networks are jobs that it runs.

    training = Training(networks, optimizers, rate, schedule)
    finished = train(job, training, runtime, until=training.step + 100, stop=stop)

Everything random in a step follows from the seed and the step's number, so that a run which was stopped and resumed
computes what the uninterrupted one computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.schedule import DashSchedule
from ..core.sharding import load_optimizer, whole_state
from ..files.errors import RunError
from .gradients import listed, look_at, watches
from .runtime import Runtime
from .seeds import seed_everything
from .signals import StopRequest

_MOST_SKIPPED = 50  # steps in a row whose gradients overflow fp16; a healthy start skips a few

Rate = Callable[[float, int], float]
"""(full rate of a parameter group, updates made so far) -> the rate of the next update."""


class Job(Protocol):
    """What is trained."""

    def loss(self, batch: int) -> Tensor:
        """The loss of this process's share of batch number `batch`, a scalar with its graph. The mean of all
        processes' losses is the loss of the whole batch."""

    def log(self, first: int, losses: Sequence[float], rate: float) -> None:
        """Show and track the losses of the steps from number `first` (counted from 1) on."""

    def save(self) -> None:
        """Write a checkpoint of the job and its training, on all processes at once."""

    def untrained(self, names: Sequence[str], unused: bool) -> None:
        """Say that trainable tensors are not trained, or raise RunError where the result would not be what its name
        says. unused: they take no part in the loss; else their gradient was zero in each of the first updates."""


@dataclass
class Training:
    """What the loop updates, how, and how far it has come.

    networks: as they are called, spread over the processes. optimizers: torch's, from which the loop makes accelerate's
    wrappers. rate: the course of the learning rate. schedule: launches the dash. accumulation: batches an optimizer
    step. max_grad_norm: gradients are clipped to it; None leaves them. name, seed: of the steps' random numbers.
    log_every, checkpoint_every: steps; 0 for no checkpoints.

    step: optimizer steps so far. updates: those that fp16's overflow did not leave out. losses: one a step. launch:
    what the dash's launch reported, and after which step. untrained: names of trainable tensors that had no gradient in
    the first updates. seconds: of training.
    """

    networks: list[nn.Module]
    optimizers: list[torch.optim.Optimizer]
    rate: Rate
    schedule: DashSchedule | None = None
    accumulation: int = 1
    max_grad_norm: float | None = None
    name: str = "step"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 0
    after_update: Callable[[int], None] | None = None

    step: int = 0
    updates: int = 0
    losses: list[float] = field(default_factory=list)
    launch: dict[str, Any] | None = None
    untrained: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.watches = watches(self.networks, self.parameters)
        self.full_rates = [[float(group["lr"]) for group in o.param_groups] for o in self.optimizers]
        self.told: set[str] = set()  # which of the untrained ones the job was told of, in this process
        self._wrapped: list[Any] = []

    def wrapped(self, runtime: Runtime) -> list[Any]:
        """accelerate's wrappers of the optimizers, made once."""
        self._wrapped = self._wrapped or [runtime.prepare(optimizer) for optimizer in self.optimizers]
        return self._wrapped

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that the optimizers update."""
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

    def set_rates(self) -> float:
        """Give every parameter group the rate of the next update; the first group's."""
        for optimizer, full_rates in zip(self.optimizers, self.full_rates, strict=True):
            for group, full in zip(optimizer.param_groups, full_rates, strict=True):
                group["lr"] = self.rate(full, self.updates)
        return float(self.optimizers[0].param_groups[0]["lr"])

    def state_dict(self, runtime: Runtime) -> dict[str, Any]:
        """Everything but the trained weights, for a checkpoint; every process has to call it."""
        scaler = runtime.accelerator.scaler
        return {
            "step": self.step,
            "updates": self.updates,
            "losses": self.losses,
            "launch": self.launch,
            "untrained": self.untrained,
            "seconds": self.seconds,
            "optimizers": [whole_state(optimizer.state_dict()) for optimizer in self.optimizers],
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any], runtime: Runtime) -> None:
        """Go on from `state`. Raises KeyError, TypeError or ValueError when it is another training's."""
        step, updates, losses = state["step"], state["updates"], state["losses"]
        if type(step) is not int or type(updates) is not int or not 0 <= updates <= step or len(losses) != step:
            raise ValueError(f"step {step}, {updates} updates and {len(losses)} losses contradict each other")
        if not isinstance(state["launch"], dict | None):
            raise ValueError("it does not say when the dash was launched")
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            if not all(type(key) is int and isinstance(value, dict) for key, value in saved["state"].items()):
                raise ValueError("its optimizer's state is of another kind")
            # Prodigy keeps its estimate of the rate in the groups.
            load_optimizer(optimizer, saved)
        if runtime.accelerator.scaler is not None and state["scaler"]:
            runtime.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.updates, self.losses = step, updates, [float(loss) for loss in losses]
        self.launch, self.seconds = state["launch"], 0.0 + state["seconds"]
        self.untrained = [str(name) for name in state["untrained"]]


def train(job: Job, training: Training, runtime: Runtime, until: int, stop: StopRequest) -> bool:
    """Make optimizer steps up to number `until`. True when there; False when the user asked to stop before, with a
    checkpoint written. Raises RunError when the loss or an update is no finite number, or every step overflows."""
    t, started, pending, skipped = training, time.perf_counter(), list[Tensor](), 0
    optimizers = t.wrapped(runtime)
    while t.step < until:
        if runtime.asked_to_stop(stop):
            t.seconds, started = t.seconds + time.perf_counter() - started, time.perf_counter()
            _look_at(pending, job, t, runtime)
            job.save()
            return False

        # What dropout draws is each process's own: they see different parts of the batch.
        seed_everything(t.seed, t.name, t.step, runtime.rank)
        losses = []
        for part in range(t.accumulation):
            last = part == t.accumulation - 1
            with nullcontext() if last else runtime.unsynchronized(t.networks):
                loss = job.loss(t.step * t.accumulation + part)
                runtime.backward(loss / t.accumulation)
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()

        norm = None if t.max_grad_norm is None else runtime.clip(t.parameters, t.max_grad_norm)
        t.set_rates()
        for optimizer in optimizers:
            optimizer.step()
        t.step += 1

        if runtime.step_was_skipped:  # fp16: the gradients overflowed, no weight was changed, the loss scale goes down
            skipped += 1
        else:
            skipped = 0
            t.updates += 1
            if norm is not None:
                # A gradient that is not finite has just spoilt the weights, though this step's loss may look well.
                mean = torch.where(torch.isfinite(norm), mean, norm.to(mean) * 0)
            _watch(job, t, runtime)
            if t.after_update is not None:
                t.after_update(t.updates)
            _count(t)
        for optimizer in optimizers:
            optimizer.zero_grad()
        pending.append(mean)

        # Each look at the losses makes a GPU wait, so they are looked at together.
        if t.step % t.log_every == 0 or t.step == until or skipped >= _MOST_SKIPPED:
            _look_at(pending, job, t, runtime)
        if skipped >= _MOST_SKIPPED:
            raise RunError(
                f"the gradients overflowed in each of the last {skipped} steps, so nothing is being learned; try "
                "--mixed_precision bf16 or no"
            )
        if t.checkpoint_every and t.step % t.checkpoint_every == 0:
            _look_at(pending, job, t, runtime)
            t.seconds, started = t.seconds + time.perf_counter() - started, time.perf_counter()
            job.save()
    t.seconds += time.perf_counter() - started
    return True


def _watch(job: Job, t: Training, runtime: Runtime) -> None:
    """Look at the gradients of the first updates, and at the shifts' of the first ones after the launch; tell the job
    of tensors without one."""
    for names, unused in look_at(t.watches, t.launch is not None, runtime.total):
        new = [name for name in names if name not in t.told]
        if not new:
            continue
        t.told.update(new)
        t.untrained = sorted({*t.untrained, *new})
        job.untrained(new, unused)
        if unused and runtime.world > 1 and not runtime.sharded:
            raise RunError(
                f"{listed(new)} take no part in the loss, and several processes would wait for their gradients; "
                "train with one process, or leave these layers out"
            )


def _count(t: Training) -> None:
    """Count an update of the weights; the dash is launched right after the one that ends the pre-launch."""
    if t.schedule is None:
        return
    try:
        report = t.schedule.step()
    except ValueError as error:  # an update that is not finite has no directions
        raise RunError(f"the dash cannot be launched at step {t.step}: {error}") from None
    if report is not None:
        t.launch = {"step": t.step, **asdict(report)}


def _look_at(pending: list[Tensor], job: Job, t: Training, runtime: Runtime) -> None:
    """Read the losses of the last steps, check that they are numbers, and give them to the job."""
    if not pending:
        return
    values = runtime.mean(torch.stack(pending)).tolist()
    pending.clear()
    first = t.step - len(values) + 1
    for step, value in enumerate(values, first):
        if not math.isfinite(value):
            raise RunError(
                f"the loss is {value} at step {step}, so nothing trained from here on would be of use; try a lower "
                "--learning_rate, or another --mixed_precision"
            )
    t.losses += values
    job.log(first, values, float(t.optimizers[0].param_groups[0]["lr"]))
