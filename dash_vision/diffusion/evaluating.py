"""Measuring a run while it goes on: on held-out pictures, on the class, and on prompts that have nothing to do with it.

Whatever it draws comes from streams of its own (runs.seeds), so that a run is trained to the same numbers with it and
without it. A measurement that fails costs one sentence.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image

from ..bases.sampling import Sampling, pictures_at_once, sample
from ..drawing.numbers import fixed
from ..files.errors import RunError, one_line
from ..measures.asking import ask
from ..measures.charts import draw_progress
from ..measures.choice import highest, recommend
from ..measures.encoders import Encoders, find_encoders
from ..measures.names import SAMPLING_STEPS
from ..measures.yardstick import Yardstick
from ..runs.evaluation import EVALUATION, MEASURES, PROGRESS, Evaluated, Evaluation, read_evaluation, write_evaluation
from ..runs.seeds import stream
from .heldout import seen_again
from .job import DreamBoothJob
from .latents import Batch, Example
from .outputs import save_picture

TIMES = 8  # noise levels at which the loss of a held-out picture is taken
_FAILURES = (RuntimeError, OSError, ValueError, MemoryError)  # InputError and RunError are among these


class Evaluator:
    """Measures the job when it is told to, and keeps what it found in `evaluation`, evaluation.json and progress.png.

    encoders are loaded at once: what is missing is said before the training. Of several processes the first one
    measures.
    """

    def __init__(self, job: DreamBoothJob) -> None:
        plan, self.job, heldout = job.plan, job, job.material.heldout
        self.every, self.path = plan.evaluate_every or plan.max_train_steps, plan.output / EVALUATION
        self.encoders, notes = Encoders(), list[str]()
        if job.runtime.main:
            self.encoders, notes = find_encoders(plan.settings.eval_encoders, job.base.embedded)
            if not self.encoders.names and notes:
                notes = [f"{note}; the loss of held-out pictures is measured alone" for note in notes]
            if self.encoders.likeness is None and plan.settings.early_stop:
                notes.append("--early_stop ends nothing early, since that takes a likeness to the held-out pictures")
        captions = [one.example.prompt for one in heldout]
        asked, own = ask(captions, plan.prompts.instance, plan.prompts.class_, job.base.embedded)
        if self.encoders.likeness is not None and not asked.class_:
            notes.append(
                f'the leak into the class is not measured, since the class prompt, "{plan.prompts.class_}", names no '
                'class without the subject; give --class_prompt, such as "a photo of a dog"'
            )
        for note in notes:
            job.say(f"note: {note}")
        self.steps = min(plan.num_inference_steps, SAMPLING_STEPS)
        self.yardstick = Yardstick(self.encoders, asked, [one.image for one in heldout], own, self._draw_base)
        self.evaluation = Evaluation(
            heldout=[one.example.name for one in heldout],
            captions=captions,
            folder=job.material.heldout_folder,
            every=self.every,
            encoders=self.encoders.names,
            prompts={"subject": [*asked.subject], "class": [*asked.class_], "unrelated": [*asked.unrelated]},
            sampler={
                "steps": self.steps,
                "guidance": plan.guidance_scale,
                "seed": plan.settings.seed,
                "side": plan.resolution,
            },
            notes=notes,
            digest=job.material.heldout_digest,
            learned=all(seen_again([one.image for one in heldout], job.material.inputs)),
        )

    @property
    def evaluation(self) -> Evaluation:
        """What was measured so far."""
        return self._evaluation

    @evaluation.setter
    def evaluation(self, found: Evaluation) -> None:
        self._evaluation = self.job.evaluation = found

    # -- when

    def due(self, step: int) -> bool:
        """Whether the run is measured after `step`: at the end too."""
        return step % self.every == 0 or step == self.job.plan.max_train_steps

    def resume(self) -> None:
        """Take what was measured before the step at which the job goes on."""
        before = read_evaluation(self.path) if self.job.training.step else None
        if before is None:
            return
        if not before.measured_as(self.evaluation):
            self.job.say("note: what was measured before was measured otherwise, and is left out")
            return
        kept = [one for one in before.checkpoints if one.step <= self.job.training.step]
        self.evaluation = dataclasses.replace(self.evaluation, checkpoints=kept)

    def missing(self, step: int) -> bool:
        """Whether nothing was measured after `step`."""
        return all(one.step != step for one in self.evaluation.checkpoints)

    # -- what

    def measure(self, adapter: str | None) -> None:
        """Measure the job as it stands. adapter: the folder that keeps it, in the run's; None for the base alone.

        What fails is noted, and the run goes on.
        """
        job, started = self.job, time.perf_counter()
        if not job.runtime.main:
            return
        with job.timed("evaluation"), resting(job):
            try:
                values = self._values(trained=adapter is not None)
            except _FAILURES as error:
                self._fail(error)
                return
        seconds = round(time.perf_counter() - started, 2)
        self._keep(Evaluated(job.training.step if adapter else 0, adapter, values, seconds))

    def _fail(self, error: Exception) -> None:
        step = self.job.training.step
        reason = one_line(" ".join(str(error).split())[:200]) or type(error).__name__
        note = f"step {step} could not be measured ({reason})"
        self.evaluation = dataclasses.replace(self.evaluation, notes=[*self.evaluation.notes, note])
        self.job.tell(f"warning: {note}; the training goes on")

    def _keep(self, found: Evaluated) -> None:
        evaluation = self.evaluation.with_checkpoint(found)
        chosen = recommend(evaluation, self.job.plan.settings.prefer)
        self.evaluation = dataclasses.replace(evaluation, recommended=chosen)
        try:
            write_evaluation(self.path, self.evaluation)
            self.draw()
        except _FAILURES as error:
            self._fail(error)
        means = {name: found.mean(name) for name in MEASURES}
        told = {name: mean for name, mean in means.items() if mean is not None}
        self.job.runtime.log({f"eval/{name}": mean for name, mean in told.items()}, found.step)
        shown = ", ".join(f"{name} {fixed(mean, 3)}" for name, mean in told.items())
        self.job.tell(f"{f'step {found.step}' if found.step else 'base'}: {shown} ({found.seconds:.0f} s)")

    def draw(self) -> None:
        """Write progress.png."""
        job = self.job
        launch = job.training.launch["step"] if job.training.launch else None
        page = draw_progress(self.evaluation, job.training.losses, launch, job.plan.prompts.subject or "")
        save_picture(page, job.plan.output / PROGRESS)

    @torch.no_grad()
    def _values(self, trained: bool) -> dict[str, list[float]]:
        job = self.job
        with switched(job, trained):
            losses = [self._loss(i, one.example) for i, one in enumerate(job.material.heldout)]
            if not all(map(math.isfinite, losses)):
                raise RunError("the loss of a held-out picture is no finite number")
            with self.encoders.on(job.runtime.device):
                found = self.yardstick.measure(self._draw) if trained else self.yardstick.of_base()
        values = {name: getattr(found, name) for name in MEASURES if name != "loss"}
        return {name: list(value) for name, value in values.items() if value} | {"loss": losses}

    def _loss(self, number: int, example: Example) -> float:
        """The mean loss of a held-out picture at TIMES noise levels, the same at every step."""
        job, view = self.job, example.views[0]
        noises, times = [], []
        for draw in range(TIMES):
            generator = stream(job.plan.settings.seed, "heldout", number, draw)
            noises.append(torch.randn(view.mean.shape, generator=generator))
            times.append(job.process.sample_times(1, view.size, generator))
        size, total = max(job.plan.train_batch_size, pictures_at_once(job.plan.resolution)), 0.0
        for first in range(0, TIMES, size):
            part = range(first, min(first + size, TIMES))
            count = len(part)
            pictures = job.base.family.picture_conditions([view.info] * count, view.size)
            batch = Batch(
                torch.stack([view.mean] * count),
                torch.stack([noises[i] for i in part]),
                torch.cat([times[i] for i in part]),
                [example.prompt] * count,
                pictures,
                torch.full((count,), 1 / TIMES),
            )
            total += float(job.loss_over(batch))
        return total

    def _draw_base(self, prompts: Sequence[str], numbers: Sequence[int]) -> list[Image.Image]:
        with switched(self.job, trained=False):
            return self._draw(prompts, numbers)

    def _draw(self, prompts: Sequence[str], numbers: Sequence[int]) -> list[Image.Image]:
        job, plan = self.job, self.job.plan
        size = (plan.resolution, plan.resolution)
        makes_room = plan.settings.offload != "none"
        how = Sampling(self.steps, plan.guidance_scale, size, pictures_at_once(plan.resolution), makes_room)
        return sample(job.base, prompts, plan.settings.seed, numbers, how, job.runtime.device, job.runtime.dtype)

    # -- the end

    def worth_going_on(self) -> bool:
        """False where the last measurements, as many as --early_stopping_patience, brought no higher score."""
        settings = self.job.plan.settings
        best = highest(self.evaluation, settings.prefer) if settings.early_stop else None
        if best is None:
            return True
        return sum(one.step > best for one in self.evaluation.trained) < settings.early_stopping_patience

    def stop(self) -> None:
        """Note that the training ended before its last step."""
        self.evaluation = dataclasses.replace(self.evaluation, stopped=self.job.training.step)
        write_evaluation(self.path, self.evaluation)


@contextmanager
def resting(job: DreamBoothJob) -> Iterator[None]:
    """The networks without dropout while inside."""
    for network in job.networks.values():
        network.eval()
    try:
        yield
    finally:
        for network in job.networks.values():
            network.train()


@contextmanager
def switched(job: DreamBoothJob, trained: bool) -> Iterator[None]:
    """The adapters on or off while inside, and on after."""
    for adapter in job.adapters.values():
        (adapter.enable if trained else adapter.disable)()
    try:
        yield
    finally:
        for adapter in job.adapters.values():
            adapter.enable()
