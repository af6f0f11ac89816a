"""What the training loop runs for VTAB: one model on one split, measured on another after every epoch.

All randomness of a step follows from (seed, stage, step), see runs.seeds: a run that was stopped and resumed computes
what it would have computed, with no state of any random generator stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bases.backbones import Backbone, Normalize, plain_attention
from ..core.schedule import DashSchedule
from ..files.errors import InputError, RunError
from ..runs.loop import Training, train
from ..runs.optimizers import make_optimizer
from ..runs.record import Launch
from ..runs.runtime import Runtime
from ..runs.seeds import stream
from ..runs.signals import StopRequest
from .config import Run
from .data import Split
from .drop_path import DropPaths
from .methods import Tuned
from .protocol import EpochScore, accuracy, mean_loss


@dataclass(frozen=True)
class Plan:
    """How long and how fast: everything in epochs becomes optimizer steps here. batch_size: images of a step."""

    images: int
    batch_size: int
    epochs: int
    warmup_epochs: int

    @classmethod
    def of(cls, run: Run, images: int) -> Plan:
        """The plan of `run` on a split of `images`."""
        return cls(images, run.batch_size, run.epochs, run.warmup_epochs)

    @property
    def steps_per_epoch(self) -> int:
        """The last batch of an epoch may be smaller."""
        return -(-self.images // self.batch_size)

    @property
    def steps(self) -> int:
        """Of the whole schedule."""
        return self.epochs * self.steps_per_epoch

    def batch(self, step: int) -> int:
        """Images of optimizer step `step` (from 0)."""
        start = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.images - start)

    def rate(self, full: float, updates: int) -> float:
        """The learning rate after `updates` updates: linear warm-up to `full`, then half a cosine to zero."""
        warmup = self.warmup_epochs * self.steps_per_epoch
        if updates < warmup:
            return full * (updates + 1) / warmup
        progress = (updates - warmup) / max(1, self.steps - warmup)
        return full * 0.5 * (1 + math.cos(math.pi * progress))


class VtabJob:
    """Trains `tuned` on `images`, and measures it on `val` after every epoch.

    stage: number of this training within its run; trainings of one run do not share their random numbers. phase: what
    a display calls it. write: writes a checkpoint of the job. curve: scores of the epochs finished so far.
    """

    def __init__(
        self,
        run: Run,
        tuned: Tuned,
        backbone: Backbone,
        images: Split,
        val: Split | None,
        runtime: Runtime,
        stage: int,
        phase: str = "",
        write: Callable[[VtabJob], None] = lambda job: None,
    ) -> None:
        self.run, self.tuned, self.runtime, self.stage, self.phase = run, tuned, runtime, stage, phase
        self.plan = Plan.of(run, len(images))
        self.images = images.to(runtime.device)
        self.val = val.to(runtime.device) if val else None
        self.curve: list[EpochScore] = []
        self.until = self.plan.epochs
        self.before_step: Callable[[VtabJob], None] = lambda job: None
        self._write = write
        self._order: tuple[int, Tensor] | None = None
        self.normalize = Normalize(backbone).to(runtime.device)
        if runtime.sharded and tuned.duties and tuned.duties.allocator is not None:
            raise InputError("AdaLoRA weighs whole gradients, and FSDP splits them; use a whole base on each process")
        self.paths = DropPaths(tuned.model)
        self.parallel = _placed(tuned.model, runtime, run.settings.compile)
        runtime.release()
        optimizer = make_optimizer(run.settings, tuned.groups(run.learning_rate, run.dash_lr))
        self.training = Training(
            networks=[self.parallel],
            optimizers=[optimizer],
            rate=self.plan.rate,
            schedule=_schedule(run, tuned, optimizer),
            max_grad_norm=run.settings.max_grad_norm,
            name=f"VTAB, stage {stage}",
            seed=run.seed,
            log_every=self.plan.steps_per_epoch,
            after_update=tuned.duties.after_update if tuned.duties else None,
        )

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.training.step

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.plan.steps_per_epoch

    @property
    def launch(self) -> Launch | None:
        """The dash's launch, once there was one."""
        return Launch(**self.training.launch) if self.training.launch else None

    def fit(self, until: int, stop: StopRequest, after_epoch: Callable[[VtabJob], None] = lambda job: None) -> bool:
        """Train up to the end of epoch `until`; True when there, False when `stop` asked for an end before, with a
        checkpoint written. after_epoch: called after every epoch, whose score is the last of `curve`.

        Raises RunError as `train`.
        """
        self.tuned.model.train()
        self.until = until
        while self.epoch < until:
            end = (self.epoch + 1) * self.plan.steps_per_epoch
            if not train(self, self.training, self.runtime, end, stop):
                return False
            self.curve.append(self._score())
            after_epoch(self)
        return True

    # -- what the loop asks for

    def loss(self, batch: int) -> Tensor:
        """Cross-entropy of this process's part of batch number `batch`, weighted so that the mean over processes is the
        mean over the batch's images; and what the method adds to it."""
        self.before_step(self)
        runtime, numbers = self.runtime, self._numbers(batch)
        # Drawn for the whole batch, by all processes alike; dropout is each process's own, and the loop seeds it.
        draws = stream(self.run.seed, f"{self.training.name}, drop path", batch)
        self.paths.draw(len(numbers), runtime.rank, runtime.world, runtime.device, draws)
        share = numbers[runtime.rank :: runtime.world]
        images, labels, weight = self.images.images[share], self.images.labels[share], runtime.world / len(numbers)
        if len(share) == 0:  # the last batch is smaller than the world: take part in the reduction with nothing
            images, labels, weight = self.images.images[:1], self.images.labels[:1], 0.0
        with runtime.autocast():
            logits = self.parallel(self.normalize(images))
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") * weight
        penalty = self.tuned.duties.penalty() if self.tuned.duties else None
        return loss if penalty is None else loss + penalty

    def log(self, first: int, losses: Sequence[float], rate: float) -> None:
        """Give the losses to the run's trackers."""
        for step, loss in enumerate(losses, first):
            self.runtime.log({f"{self.phase}/loss": loss}, step)

    def save(self) -> None:
        """Write a checkpoint."""
        self._write(self)

    def untrained(self, names: Sequence[str], unused: bool) -> None:
        """Raises RunError where a result would not be one of this method; the display tells of other tensors."""
        problem = self.tuned.missed(names, unused)
        if problem is not None:
            raise RunError(problem)

    # -- batches and scores

    def _numbers(self, batch: int) -> Tensor:
        """The images of a batch: the next part of the epoch's permutation."""
        epoch, place = divmod(batch, self.plan.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            draws = stream(self.run.seed, f"{self.training.name}, order", epoch)
            order = torch.randperm(len(self.images), generator=draws)
            self._order = epoch, order.to(self.runtime.device)
        return self._order[1][place * self.plan.batch_size : (place + 1) * self.plan.batch_size]

    def _score(self) -> EpochScore:
        """Of the epoch that has just ended."""
        steps = range(self.step - self.plan.steps_per_epoch, self.step)
        total = sum(self.training.losses[step] * self.plan.batch(step) for step in steps)
        score = EpochScore(self.epoch, total / len(self.images), launched=self.tuned.launched)
        if self.val is None:
            return score
        logits = self.logits(self.val.images)
        right = self.runtime.agreed(accuracy(logits, self.val.labels))
        loss = self.runtime.agreed(mean_loss(logits, self.val.labels))
        if not math.isfinite(loss):
            raise RunError(f"the loss on val200 is {loss} after step {self.step}; try a lower --learning_rate")
        self.runtime.log({f"{self.phase}/val_accuracy": right, f"{self.phase}/val_loss": loss}, self.step)
        return EpochScore(score.epoch, score.train_loss, right, loss, score.launched)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """[n, classes] float32 of uint8 images [n, 3, s, s] on any device, in evaluation mode."""
        training = self.tuned.model.training
        self.tuned.model.eval()
        parts = []
        for chunk in images.split(self.run.settings.eval_batch_size):
            with self.runtime.autocast():
                inputs = self.normalize(chunk.to(self.runtime.device, non_blocking=True))
                parts.append(self.tuned.model(inputs).float())
        self.tuned.model.train(training)
        return torch.cat(parts)

    def predict(self, images: Tensor) -> Tensor:
        """[n] classes of uint8 images."""
        return self.logits(images).argmax(dim=1)

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from this step; every process has to call it."""
        return {
            "curve": [asdict(score) for score in self.curve],
            "model": self.tuned.state(),
            "duties": self.tuned.duties.state_dict() if self.tuned.duties else {},
            "training": self.training.state_dict(self.runtime),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises KeyError, TypeError or ValueError if it is another model's, or contradicts
        itself."""
        step, curve = state["training"]["step"], [EpochScore(**score) for score in state["curve"]]
        if type(step) is not int or not 0 <= step <= self.plan.steps or len(curve) != step // self.plan.steps_per_epoch:
            raise ValueError(f"step {step} and {len(curve)} epochs contradict each other")
        if not all(torch.isfinite(tensor).all() for tensor in state["model"].values()):
            raise ValueError("its weights hold NaN or infinity")
        self.tuned.load_state(state["model"])
        if self.tuned.duties:
            self.tuned.duties.load_state_dict(state["duties"])
        self.training.load_state_dict(state["training"], self.runtime)
        self.curve = curve


def _schedule(run: Run, tuned: Tuned, optimizer: torch.optim.Optimizer) -> DashSchedule | None:
    """What launches the dash of a method that has an adapter, unless its launch may not come."""
    if tuned.adapter is None or not tuned.may_launch:
        return None
    return DashSchedule(tuned.adapter, run.prelaunch_steps, optimizer, run.seed)


def _placed(model: nn.Module, runtime: Runtime, compiled: bool) -> nn.Module:
    """`model` on the run's device and processes. Raises InputError where FSDP is asked for and cannot be."""
    model.to(runtime.device)
    if runtime.device.type == "cpu":
        plain_attention(model)
    if compiled:
        if runtime.sharded:
            raise InputError("--compile does not go with FSDP, which hooks into the blocks; leave one of them out")
        model.compile()
    return runtime.spread(model, lambda name, module: re.search(r"(^|\.)blocks\.\d+$", name) is not None)
