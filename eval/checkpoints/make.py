"""Checkpoints drawn, measured and compared; the recommended one applied."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dash_vision.bases.devices import usable_device
from dash_vision.bases.loading import Base
from dash_vision.bases.recorded import check_recorded, load_lora
from dash_vision.files.atomic import replacing, write_text
from dash_vision.files.errors import InputError
from dash_vision.measures.asking import ask
from dash_vision.measures.choice import recommend
from dash_vision.measures.encoders import Encoders
from dash_vision.measures.yardstick import Yardstick
from dash_vision.pictures.decode import Refused, read_picture
from dash_vision.runs.evaluation import MEASURES, Evaluated, Evaluation, read_evaluation, write_evaluation
from dash_vision.runs.seeds import seed_of

from ..bases import load_base
from ..blocks import Sampler
from ..checks import check_prompts, check_sampling
from ..runs import DreamBoothRun, read_run
from ..sampling import encoders_of, generate_all, measuring_settings, move, sampler_settings
from ..saving import check_output, save
from .apply import applying, check_free, wanted_step
from .found import Checkpoint, HeldOut, find_checkpoints, held_out
from .page import draw_page
from .tables import RESULT, markdown


@dataclass(frozen=True)
class Wanted:
    """What a user asked for; None leaves it to the run."""

    prompts: tuple[str, ...] = ()
    prefer: str | None = None
    apply: str | None = None
    holdout: Path | None = None
    encoders: tuple[str, ...] | None = None
    sampler: Sampler = field(default_factory=Sampler)
    output: Path | None = None


def compare_checkpoints(folder: Path, wanted: Wanted, say: Callable[[str], None] = print) -> list[str]:
    """Write checkpoints.png, checkpoints.md and checkpoints.json, and say which checkpoint is recommended; a sentence
    for each thing that could not be measured. Raises InputError where nothing can be compared."""
    run = read_run(folder, torn=wanted.apply is not None)
    if wanted.apply is not None and wanted.output is not None:
        raise InputError(
            f"with --apply the comparison belongs to {run.folder / 'checkpoints'}, which says what was applied; leave "
            "-o out"
        )
    output = wanted.output or run.folder / "checkpoints"
    check_output(output, folder=True)
    check_sampling(wanted.sampler)
    checkpoints = find_checkpoints(run)
    asked_step = wanted_step(wanted.apply, checkpoints)
    if wanted.apply is not None:
        check_free(run.folder)
    for note in check_prompts(wanted.prompts):
        say(note)
    pictures = held_out(run, wanted.holdout)
    work = _Work(run, checkpoints, pictures, wanted, output, say)
    evaluation = work.measured()
    tiles = work.tiles(evaluation)
    step = asked_step or (evaluation.recommended.step if wanted.apply and evaluation.recommended else None)
    if step is not None:  # the sheet and the table mark it
        evaluation = dataclasses.replace(evaluation, applied=None if step == run.record.steps else step)
    page = draw_page(run, evaluation, work.columns, tiles, pictures, work.sampler_words)
    story = {"run": str(run.folder), "prompts": work.columns, **work.settings, "seed": wanted.sampler.seed}
    text = markdown(evaluation, run.launch)
    with applying(run, checkpoints, evaluation, step) as told:
        save(page, output / "checkpoints.png", story)
        write_evaluation(output / RESULT, evaluation)
        write_text(output / "checkpoints.md", text)
    say(text.rstrip())
    prompts = f"{len(work.columns)} prompt{'' if len(work.columns) == 1 else 's'}"
    say(f"{output / 'checkpoints.png'}: {len(checkpoints)} checkpoints, {prompts}")
    if told:
        say(told)
    elif wanted.apply is not None:
        raise InputError("nothing is recommended, since no encoder measured the pictures; name a step by --apply")
    return work.problems


class _Work:
    """Draws and measures what is not there yet."""

    def __init__(
        self,
        run: DreamBoothRun,
        checkpoints: Sequence[Checkpoint],
        pictures: HeldOut,
        wanted: Wanted,
        output: Path,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.checkpoints, self.pictures, self.wanted, self.say = run, checkpoints, pictures, wanted, say
        self.output, self.side = output, int(run.argument("resolution"))
        self.settings = sampler_settings(run, wanted.sampler)
        prompts = wanted.prompts or tuple(dict.fromkeys(run.record.validation_prompts))
        self.columns = [prompt.replace("{}", run.subject) for prompt in prompts]
        self.problems: list[str] = []
        self._base: Base | None = None
        self._loaded: Path | None = None
        recorded = run.record.evaluation
        as_recorded = recorded is not None and wanted.encoders is None and wanted.sampler.base is None
        self.asked, self.own = ask(pictures.captions, run.prompt, run.record.class_prompt, run.embedded)
        self.prefer = wanted.prefer or str(run.record.arguments.get("prefer") or "balanced")
        self.empty = Evaluation(
            heldout=pictures.names,
            captions=pictures.captions,
            folder=pictures.folder,
            every=int(run.record.arguments.get("evaluate_every") or 0),
            encoders=recorded.encoders if recorded and as_recorded else self.encoders.names,
            prompts={
                "subject": [*self.asked.subject],
                "class": [*self.asked.class_],
                "unrelated": [*self.asked.unrelated],
            },
            sampler=self._measured_by(),
            digest=pictures.digest,
            learned=pictures.learned,
        )

    @cached_property
    def encoders(self) -> Encoders:
        """What measures pictures, loaded when something is to be measured."""
        found, notes = encoders_of(self.run, self.wanted.encoders, self.wanted.sampler)
        self.problems += notes
        return found

    def _measured_by(self) -> dict[str, float]:
        """The sampler of pictures that are measured and not shown."""
        how = measuring_settings(self.run, self.wanted.sampler)
        steps, guidance = how["num_inference_steps"], how["guidance_scale"]
        return {"steps": steps, "guidance": guidance, "seed": self.wanted.sampler.seed, "side": self.side}

    @property
    def sampler_words(self) -> str:
        """How the pictures of the sheet were drawn."""
        steps, guidance = self.settings["num_inference_steps"], self.settings["guidance_scale"]
        return f"{steps} sampling steps, guidance {guidance:g}, seed {self.wanted.sampler.seed}"

    # -- measuring

    def measured(self) -> Evaluation:
        """Every checkpoint and the base, with what was measured of them before in the same way."""
        evaluation = self.empty
        kept = {one.step: one for one in self._before()}
        for step, place in [(0, None), *((one.step, one) for one in self.checkpoints)]:
            found = kept.get(step)
            if found is None and self.encoders.likeness is not None:
                self.say(f"measuring {f'step {step}' if step else 'the base'}")
                found = self._measure(place)
            evaluation = evaluation.with_checkpoint(found or Evaluated(step, place.place if place else None))
        recorded = self.run.record.evaluation
        return dataclasses.replace(
            evaluation,
            recommended=recommend(evaluation, self.prefer),
            stopped=recorded.stopped if recorded else None,
            applied=recorded.applied if recorded else None,
        )

    def _before(self) -> list[Evaluated]:
        """What the run, or this command, measured in the same way of the adapters that are there."""
        if self.wanted.sampler.base is not None:
            return []
        found: dict[int, Evaluated] = {}
        digests = {one.step: self._digest(one) for one in self.checkpoints} | {0: self._digest(None)}
        mine, recorded = read_evaluation(self.output / RESULT), self.run.record.evaluation
        if mine is not None and mine.measured_as(self.empty):
            found |= {one.step: one for one in mine.checkpoints if one.digest == digests.get(one.step)}
        if recorded is not None and recorded.measured_as(self.empty):
            found |= {one.step: one for one in recorded.checkpoints if one.step in digests and one.values}
        return list(found.values())

    def _digest(self, checkpoint: Checkpoint | None) -> str:
        """Of an adapter and the base below it."""
        identity = sorted(self.run.record.base.identity.items())
        return f"{seed_of(0, repr([checkpoint.digest() if checkpoint else None, identity])):016x}"

    @cached_property
    def _yardstick(self) -> Yardstick:
        return Yardstick(self.encoders, self.asked, self.pictures.pictures, self.own, self._drawing(None))

    def _measure(self, checkpoint: Checkpoint | None) -> Evaluated:
        started, yardstick = time.perf_counter(), self._yardstick
        with self.encoders.on(torch.device(usable_device(self.wanted.sampler.device))):
            found = yardstick.measure(self._drawing(checkpoint)) if checkpoint else yardstick.of_base()
        values = {name: list(getattr(found, name)) for name in MEASURES if name != "loss" and getattr(found, name)}
        step, place = (checkpoint.step, checkpoint.place) if checkpoint else (0, None)
        seconds = round(time.perf_counter() - started, 2)
        return Evaluated(step, place, values, seconds, self._digest(checkpoint))

    def _drawing(self, checkpoint: Checkpoint | None) -> Callable[[Sequence[str], Sequence[int]], list[Image.Image]]:
        sampler = self._measured_by()
        settings = {"num_inference_steps": sampler["steps"], "guidance_scale": sampler["guidance"]}

        def draw(prompts: Sequence[str], numbers: Sequence[int]) -> list[Image.Image]:
            return self._draw(checkpoint, prompts, numbers, int(sampler["seed"]), settings)

        return draw

    # -- drawing

    def tiles(self, evaluation: Evaluation) -> dict[int, list[Image.Image]]:
        """Step -> its pictures of the columns, each drawn once and kept in the output folder; step 0 is the base."""
        found = {}
        for step, checkpoint in [(0, None), *((one.step, one) for one in self.checkpoints)]:
            files = [self._tile(checkpoint, n) for n in range(len(self.columns))]
            pictures = [_read(file) for file in files]
            missing = [n for n, picture in enumerate(pictures) if picture is None]
            if missing:
                self.say(f"drawing {f'step {step}' if step else 'the base'}")
                prompts = [self.columns[n] for n in missing]
                drawn = self._draw(checkpoint, prompts, missing, self.wanted.sampler.seed, self.settings)
                for n, picture in zip(missing, drawn, strict=True):
                    pictures[n] = picture
                    with replacing(files[n]) as temporary:
                        picture.save(temporary, format="PNG")
            found[step] = [picture for picture in pictures if picture is not None]
        return found

    def _tile(self, checkpoint: Checkpoint | None, number: int) -> Path:
        """The file of a picture, called after all that it depends on."""
        told = [self._digest(checkpoint), self.columns[number], number, self.wanted.sampler, self.side]
        told += sorted(self.settings.items())
        step = checkpoint.step if checkpoint else 0
        return self.output / "pictures" / f"{step:06d}-{number:02d}-{seed_of(0, repr(told)):016x}.png"

    def _draw(
        self,
        checkpoint: Checkpoint | None,
        prompts: Sequence[str],
        numbers: Sequence[int],
        seed: int,
        settings: dict[str, Any],
    ) -> list[Image.Image]:
        base = self._ready(checkpoint)
        return generate_all(base, prompts, seed, numbers, self.side, settings)

    def _ready(self, checkpoint: Checkpoint | None) -> Base:
        """The base with that adapter in."""
        if self._base is None:
            sampler = self.wanted.sampler
            self._base = load_base(self.run, sampler.base, sampler.dtype, sampler.quantize)
            for note in check_recorded(self._base, self.run.record.base, self.run.folder, sampler.base):
                self.say(note)
            move(self._base, usable_device(sampler.device), sampler.dtype)
        folder = checkpoint.folder if checkpoint else None
        if folder != self._loaded:
            if self._loaded is not None:
                self._base.pipeline.unload_lora_weights()
            self._loaded = None
            if folder is not None:
                load_lora(self._base, folder)
                self._loaded = folder
        return self._base


def _read(file: Path) -> Image.Image | None:
    try:
        return read_picture(file).image
    except Refused:
        return None
