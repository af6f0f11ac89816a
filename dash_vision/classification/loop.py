"""The training loop: one model, one split, a schedule counted in optimizer steps, exact to resume at any step.

All randomness of a step is drawn from (seed, stage, step): a run that was stopped and resumed computes what it would
have computed, with no state of any random generator stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bases.backbones import Backbone, plain_attention
from ..core.schedule import DashSchedule
from ..core.sharding import load_optimizer, whole_state
from ..files.errors import InputError
from .config import Run
from .data import Split
from .drop_path import DropPaths
from .methods import Tuned
from .protocol import EpochScore, accuracy, mean_loss
from .runtime import Runtime


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite: where, and what helps."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast: everything in epochs becomes optimizer steps here."""

    images: int
    batch_size: int
    epochs: int
    warmup_epochs: int
    learning_rate: float

    @classmethod
    def of(cls, run: Run, images: int) -> Plan:
        return cls(images, run.settings.batch_size, run.epochs, run.warmup_epochs, run.learning_rate)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.images // self.batch_size)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step `step` (from 0): linear warm-up, then half a cosine to zero."""
        warmup = self.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed of several small numbers; different numbers give unrelated seeds."""
    value = 0x9E3779B97F4A7C15
    for part in parts:
        value = ((value ^ part) * 0xD1342543DE82EF95 + 0x2545F4914F6CDD1D) % 2**64
        value ^= value >> 29
    return value >> 1


class Normalize(nn.Module):
    """uint8 images to a model's input: (x / 255 - mean) / std, in float32, on the images' device."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        self.register_buffer("scale", (1 / (255 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images.float(), self.scale)


class Trainer:
    """Trains `tuned` on `train` for up to plan.epochs epochs.

    stage tells the runs of one protocol apart, so that they do not share their random numbers. `step` counts
    optimizer steps; `curve` holds the epochs finished so far. Raises NonFiniteLoss at the end of the epoch in which
    the loss stopped being a number.
    """

    def __init__(
        self,
        run: Run,
        tuned: Tuned,
        backbone: Backbone,
        train: Split,
        val: Split | None,
        runtime: Runtime,
        stage: int,
    ) -> None:
        self.run, self.tuned, self.runtime, self.stage = run, tuned, runtime, stage
        self.plan = Plan.of(run, len(train))
        self.train = train.to(runtime.device)
        self.val = val.to(runtime.device) if val else None
        tuned.model.to(runtime.device)
        if runtime.device.type == "cpu":
            plain_attention(tuned.model)
        self.paths = DropPaths(tuned.model)
        self.normalize = Normalize(backbone).to(runtime.device)
        if run.settings.compile:
            if runtime.sharded:
                raise InputError("--compile does not go with FSDP, which hooks into the blocks; leave one of them out")
            tuned.model.compile()
        self.parallel = runtime.parallel(tuned.model)
        s = run.settings
        groups = tuned.groups(run.learning_rate, s.weight_decay, s.dash_lr_scale)
        self.optimizer = torch.optim.AdamW(groups, fused=runtime.device.type == "cuda")
        self.step = 0
        self.curve: list[EpochScore] = []
        self.launch: dict[str, Any] | None = None
        self.seconds = 0.0
        self._loss_sum = torch.zeros((), device=runtime.device)
        self._order: tuple[int, Tensor] | None = None

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.plan.steps_per_epoch

    def fit(
        self,
        until: int,
        after_epoch: Callable[[Trainer], None] = lambda trainer: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train up to the end of epoch `until`; True when there, False when `stop()` asked for an end before.

        `after_epoch` is called after every epoch, its score being the last of `curve`.
        """
        started = time.perf_counter()
        self.tuned.model.train()
        while self.epoch < until:
            if stop():
                self._check_finite()
                self.seconds += time.perf_counter() - started
                return False
            self._step()
            if self.step % self.plan.steps_per_epoch == 0:
                self._finish_epoch()
                now = time.perf_counter()
                self.seconds, started = self.seconds + now - started, now
                after_epoch(self)
        return True

    def _step(self) -> None:
        runtime, plan = self.runtime, self.plan
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate(self.step) * group["scale"]
        batch = self._batch()
        torch.manual_seed(mixed_seed(self.run.seed, self.stage, self.step, 0))
        self.paths.draw(len(batch), runtime.rank, runtime.world, runtime.device)
        if runtime.rank:  # what else is drawn, each process draws for its own images
            torch.manual_seed(mixed_seed(self.run.seed, self.stage, self.step, runtime.rank))
        mine = batch[runtime.rank :: runtime.world]
        images, labels = self.train.images[mine], self.train.labels[mine]
        weight = runtime.world / len(batch)
        if len(mine) == 0:  # the last batch is smaller than the world: take part in the reduction with nothing
            images, labels, weight = self.train.images[:1], self.train.labels[:1], 0.0
        with runtime.autocast():
            logits = self.parallel(self.normalize(images))
        # DDP averages over processes; the weight makes that the mean over the whole batch.
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") * weight
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._loss_sum += loss.detach() / runtime.world * len(batch)
        self.step += 1
        if self.tuned.schedule is not None:
            self._count(self.tuned.schedule)

    def _count(self, schedule: DashSchedule) -> None:
        try:
            report = schedule.step()
        except ValueError as error:  # an update that is not finite has no directions
            raise NonFiniteLoss(self._diverged(str(error))) from None
        if report is not None:
            self.launch = {"step": self.step, **asdict(report)}

    def _batch(self) -> Tensor:
        """Indices of the images of this step: the next part of the epoch's permutation."""
        epoch, place = divmod(self.step, self.plan.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.run.seed, self.stage, -1 - epoch))
            order = torch.randperm(len(self.train), generator=generator)
            self._order = epoch, order.to(self.train.images.device)
        return self._order[1][place * self.plan.batch_size : (place + 1) * self.plan.batch_size]

    def _finish_epoch(self) -> None:
        self._check_finite()
        train_loss = self.runtime.total(self._loss_sum).item() / len(self.train)
        self._loss_sum.zero_()
        score = EpochScore(self.epoch, train_loss, launched=self.tuned.launched)
        if self.val is not None:
            logits = self.logits(self.val.images)
            right = self.runtime.agreed(accuracy(logits, self.val.labels))
            loss = self.runtime.agreed(mean_loss(logits, self.val.labels))
            score = EpochScore(self.epoch, train_loss, right, loss, self.tuned.launched)
        self.curve.append(score)

    def _check_finite(self) -> None:
        if torch.isfinite(self.runtime.total(self._loss_sum)):
            return
        raise NonFiniteLoss(self._diverged("the loss became NaN or infinite"))

    def _diverged(self, what: str) -> str:
        step = self.step - 1
        return (
            f"{self.run.name}: {what}, in epoch {step // self.plan.steps_per_epoch + 1} (by step {self.step}, learning "
            f"rate {self.plan.rate(step):.2g}). Lower --learning_rate (now {self.run.learning_rate:g}), lengthen "
            "--warmup_epochs, or try --mixed_precision no; and add --overwrite to start anew"
        )

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
        """Everything needed to go on from this step, for checkpoint.save_checkpoint."""
        return {
            "step": self.step,
            "curve": [asdict(score) for score in self.curve],
            "launch": self.launch,
            "seconds": self.seconds,
            "loss_sum": self.runtime.total(self._loss_sum).item(),
            "model": self.tuned.state(),
            "optimizer": whole_state(self.optimizer.state_dict()["state"]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises ValueError if it is another model's, or contradicts itself."""
        step, curve = state["step"], [EpochScore(**score) for score in state["curve"]]
        if type(step) is not int or not 0 <= step <= self.plan.steps or len(curve) != step // self.plan.steps_per_epoch:
            raise ValueError(f"step {step} and {len(curve)} epochs contradict each other")
        if not isinstance(state["launch"], dict | None):
            raise ValueError("it does not say when the dash was launched")
        if not all(torch.isfinite(tensor).all() for tensor in state["model"].values()):
            raise ValueError("its weights hold NaN or infinity")
        moments = state["optimizer"]
        if not all(type(key) is int and isinstance(value, dict) for key, value in moments.items()):
            raise ValueError("its optimizer's state is of another kind")
        loss_sum, seconds = state["loss_sum"] / self.runtime.world, 0.0 + state["seconds"]
        self.tuned.load_state(state["model"], state["step"])
        groups = self.optimizer.state_dict()["param_groups"]
        load_optimizer(self.optimizer, {"state": moments, "param_groups": groups})
        self.step, self.launch, self.seconds, self.curve = step, state["launch"], seconds, curve
        self._loss_sum.fill_(loss_sum)
