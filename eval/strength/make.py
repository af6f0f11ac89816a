"""The pictures of an adapter at several strengths, and what is measured of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from dash_vision.bases.devices import usable_device
from dash_vision.bases.loading import Base
from dash_vision.bases.recorded import check_recorded, load_lora
from dash_vision.files.atomic import write_json, write_text
from dash_vision.files.errors import InputError
from dash_vision.measures.asking import ask
from dash_vision.measures.encoders import Encoders
from dash_vision.measures.yardstick import Measured, Yardstick
from dash_vision.runs.versions import installed_versions

from ..bases import fitting_runs, load_base
from ..blocks import Sampler
from ..checkpoints.found import HeldOut, held_out
from ..checks import check_prompts, check_sampling
from ..runs import DreamBoothRun, read_run
from ..sampling import encoders_of, generate_all, measuring_settings, move, sampler_settings
from ..saving import check_output, save
from .page import curves, markdown, sheet

RESULT, SHEET, CURVES, TABLE = "strength.json", "sheet.png", "curves.png", "strength.md"
PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "pillow")
_MOST = 10.0  # a strength beyond which nothing is left of any picture


@dataclass(frozen=True)
class Wanted:
    """What a user asked for; None leaves it to the run. prompts: the sheet's columns. holdout: pictures of the subject
    to compare with."""

    scales: Sequence[float]
    prompts: Sequence[str] = ()
    holdout: Path | None = None
    encoders: Sequence[str] | None = None
    sampler: Sampler = field(default_factory=Sampler)
    output: Path | None = None


@dataclass(frozen=True)
class At:
    """What an adapter draws at one strength. columns: the sheet's pictures."""

    scale: float
    columns: list[Image.Image]
    measured: Measured


class Strength:
    """How strongly a stock pipeline applies the adapter that it has loaded, as diffusers' set_adapters scales it; 0 is
    the base alone."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.now = pipeline, 1.0
        self._names = pipeline.get_active_adapters()

    def set(self, scale: float) -> None:
        """From here on."""
        if scale:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters(self._names, [scale] * len(self._names))
        else:
            self.pipeline.disable_lora()
        self.now = scale

    @contextmanager
    def at(self, scale: float) -> Iterator[None]:
        """While inside."""
        before = self.now
        self.set(scale)
        try:
            yield
        finally:
            self.set(before)


def make_strength(folder: Path, wanted: Wanted, say: Callable[[str], None] = print) -> list[str]:
    """Draw the run in `folder` at every scale, write sheet, curves and table; a sentence for each part that was left
    out. Raises InputError."""
    scales = _checked(wanted.scales)
    run = read_run(folder)
    output, sampler = wanted.output or run.folder / "strength", wanted.sampler
    check_output(output, folder=True)
    check_sampling(sampler)
    for note in check_prompts(wanted.prompts):
        say(note)
    real = held_out(run, wanted.holdout)
    if real.learned:
        say("note: the run held no pictures out, so these are compared with its training pictures; see --holdout")
    encoders, problems = encoders_of(run, wanted.encoders, sampler)
    base = load_base(run, sampler.base, sampler.dtype, sampler.quantize)
    for note in check_recorded(base, run.record.base, run.folder, sampler.base):
        say(note)
    fitting_runs(base, {run.method: run})
    move(base, usable_device(sampler.device), sampler.dtype)
    load_lora(base, run.folder)
    columns = [prompt.replace("{}", run.subject) for prompt in wanted.prompts or run.record.validation_prompts]
    settings = sampler_settings(run, sampler)
    rows = _draw(base, run, real, scales, columns, encoders, sampler)
    story = {
        "run": str(run.folder),
        "scales": list(scales),
        "prompts": columns,
        "seed": sampler.seed,
        "resolution": int(run.argument("resolution")),
        "dtype": sampler.dtype,
        **settings,
        "measured in steps": measuring_settings(run, sampler)["num_inference_steps"],
        "encoders": encoders.names,
        "compared with": _words(real, wanted.holdout is not None),
        "values": {f"{row.scale:g}": dataclasses.asdict(row.measured) for row in rows},
        "versions": installed_versions(PACKAGES),
    }
    _write(run, real, rows, story, output, say)
    return problems


def _checked(scales: Sequence[float]) -> list[float]:
    """Each scale once, from the lowest, in the six digits that it is written with. Raises InputError."""
    for scale in scales:
        if not (math.isfinite(scale) and abs(scale) <= _MOST):
            raise InputError(f"--scales has {scale:g}; it takes numbers from -{_MOST:g} to {_MOST:g}, such as 0 0.5 1")
    return sorted({float(f"{scale:g}") + 0.0 for scale in scales})  # 0.0: there is no second zero


def _words(real: HeldOut, given: bool) -> str:
    """What the pictures are. given: the user named them, and nothing is known of them."""
    source = f"in {real.folder}" if given else "of the training" if real.learned else "that the run held out"
    return f"{len(real.pictures)} picture{'s' if len(real.pictures) > 1 else ''} {source}"


def _draw(
    base: Base,
    run: DreamBoothRun,
    real: HeldOut,
    scales: Sequence[float],
    columns: Sequence[str],
    encoders: Encoders,
    sampler: Sampler,
) -> list[At]:
    """Every scale's pictures, and what is measured of others."""
    side, strength = int(run.argument("resolution")), Strength(base.pipeline)
    asked, own = ask(real.captions, run.prompt, run.record.class_prompt, run.embedded)
    shown, measured = sampler_settings(run, sampler), measuring_settings(run, sampler)
    many = len(asked.prompts) * len({0.0, *scales}) if encoders.likeness is not None else 0
    with tqdm(total=len(columns) * len(scales) + many, desc="pictures") as bar:

        def draw(prompts: Sequence[str], numbers: Sequence[int], how: dict[str, Any] = measured) -> list[Image.Image]:
            return generate_all(base, prompts, sampler.seed, numbers, side, how, bar.update)

        def draw_base(prompts: Sequence[str], numbers: Sequence[int]) -> list[Image.Image]:
            with strength.at(0):
                return draw(prompts, numbers)

        yardstick = Yardstick(encoders, asked, real.pictures, own, draw_base)
        rows = []
        for scale in scales:
            with strength.at(scale), encoders.on(torch.device(usable_device(sampler.device))):
                found = yardstick.measure(draw) if scale else yardstick.of_base()
                rows.append(At(scale, draw(columns, range(len(columns)), shown), found))
    return rows


def _write(
    run: DreamBoothRun,
    real: HeldOut,
    rows: Sequence[At],
    story: dict[str, Any],
    output: Path,
    say: Callable[[str], None],
) -> None:
    """The four files."""
    output.mkdir(parents=True, exist_ok=True)
    about = f"{run.subject}, {run.method}, {run.steps_of_adapter:,} training steps"
    how = (
        f"{story['num_inference_steps']} sampling steps, guidance {story['guidance_scale']:g}, seed {story['seed']}; "
        "all pictures of a column start from the same noise"
    )
    measured = [(row.scale, row.measured) for row in rows]
    save(
        sheet(about, real.pictures, story["prompts"], [(row.scale, row.columns) for row in rows], how),
        output / SHEET,
        story,
    )
    write_json(output / RESULT, story)
    text = markdown(about, measured, story["encoders"], story["compared with"])
    write_text(output / TABLE, text)
    say(text)
    written = [SHEET, TABLE, RESULT]
    if any(row.measured.likeness for row in rows):
        save(curves(measured, story["encoders"], about), output / CURVES, story)
        written.insert(1, CURVES)
    say(f"{output}: {', '.join(written)}")
