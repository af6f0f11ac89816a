"""What a sweep shows: a line for every run, and one bar over all steps of all runs if this is a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ..runs.gradients import listed
from .config import Run
from .job import Plan, VtabJob
from .run import Progress

_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]"


@dataclass
class Work:
    """Optimizer steps of a run: `selection` for each candidate on train800, then those of the retraining, which are
    fewer than planned where val200 chooses an early epoch."""

    candidates: int
    selection: int
    retraining: int

    @classmethod
    def of(cls, run: Run, sizes: Mapping[str, int]) -> Work:
        """What a run has to do at most. sizes: images by split."""
        retraining = 0 if run.settings.val_only else Plan.of(run, sizes["train800val200"]).steps
        return cls(len(run.candidates()), Plan.of(run, sizes["train800"]).steps, retraining)

    @property
    def total(self) -> int:
        """All steps."""
        return self.candidates * self.selection + self.retraining

    def done(self, job: VtabJob) -> int:
        """Steps that are behind the run when `job` is in hand, before it was resumed and since."""
        return job.stage * self.selection + job.step


class Display(Progress):
    """Shows how far a sweep is.

    work: of the runs that are to be done, in their order. quiet: shows nothing, as on all processes but the first.
    """

    def __init__(self, work: Sequence[Work], quiet: bool = False) -> None:
        self.work, self.quiet = list(work), quiet
        self.run, self.number, self.before = "", 0, 0  # the run in hand, from 1; steps of those before it
        self.own, self.seconds = 0, 0.0  # steps made by this process, and the time from each to the next
        self._job: VtabJob | None = None
        self._seen, self._clock = 0, 0.0  # the step of the job in hand that was last counted, and when
        self._scores, self._told = "", set[str]()
        hidden = True if quiet or not work else None  # None: where the output is no terminal
        self.bar = tqdm(total=self.total, bar_format=_FORMAT, dynamic_ncols=True, disable=hidden)

    @property
    def total(self) -> int:
        """Steps of all runs."""
        return sum(work.total for work in self.work)

    @property
    def remaining(self) -> float | None:
        """Seconds until the end, as far as the steps made here tell; None before the second one."""
        return (self.total - self.done) * self.seconds / self.own if self.own else None

    @property
    def done(self) -> int:
        """Steps that are behind the sweep: of runs that have ended, and of the one in hand."""
        return self.before + (self.work[self.number - 1].done(self._job) if self._job else 0)

    # -- runs

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            tqdm.write(text)

    def begin(self, run: Run) -> None:
        """A run begins, or goes on from its checkpoint."""
        self.number += 1
        self.run, self._job, self._scores, self._told = run.name, None, "", set()
        self.bar.set_description_str(f"[{self.number}/{len(self.work)}] {run.name}")

    def end(self, text: str) -> None:
        """A run has ended in whatever way; what it did not do is no longer to be done."""
        done = self.done
        self.work[self.number - 1] = Work(0, 0, done - self.before)
        self.before, self._job = done, None
        self._draw()
        left = len(self.work) - self.number
        estimate = self.remaining
        about = "" if estimate is None else f", about {duration(estimate)}"
        self.say(f"[{self.number}/{len(self.work)}] {text}" + (f"; {left} to go{about}" if left else ""))

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    # -- steps

    def step(self, job: VtabJob) -> None:
        """A step begins, or an epoch has ended."""
        now = time.perf_counter()
        if job is not self._job:
            self._job, self._seen, self._clock = job, job.step, now
            if job.phase == "retrain":  # only now its length is known
                self.work[self.number - 1].retraining = job.until * job.plan.steps_per_epoch
        self.own, self.seconds = self.own + job.step - self._seen, self.seconds + now - self._clock
        self._seen, self._clock = job.step, now
        self._draw()

    def epoch(self, job: VtabJob) -> None:
        """An epoch has ended: show its scores and, once, tensors without a gradient."""
        score = job.curve[-1]
        self._scores = f"{job.phase} epoch {job.epoch}/{job.until}, loss {score.train_loss:.3f}"
        if score.val_accuracy is not None:
            self._scores += f", val {score.val_accuracy:.1f} %"
        self.step(job)
        new = [name for name in job.training.untrained if name not in self._told]
        if new:
            self._told.update(new)
            self.say(f"{self.run}: trainable tensors without a gradient in the first updates: {listed(new)}")

    def _draw(self) -> None:
        estimate = self.remaining
        if estimate is not None:
            speed = f"{self.seconds / self.own:.2f} s/step, {duration(estimate)} left"
            self.bar.set_postfix_str(", ".join(filter(None, [speed, self._scores])), refresh=False)
        self.bar.total = self.total
        self.bar.update(self.done - self.bar.n)


def duration(seconds: float) -> str:
    """So many seconds in the unit that suits them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
