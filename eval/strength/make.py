"""The pictures of an adapter at several strengths, and what is measured of them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from dash_vision.bases.devices import usable_device
from dash_vision.bases.loading import Base
from dash_vision.bases.recorded import check_recorded, load_lora
from dash_vision.files.atomic import write_json, write_text
from dash_vision.files.errors import InputError
from dash_vision.measures.asking import ask
from dash_vision.measures.encoders import Encoders, find_encoders
from dash_vision.measures.yardstick import Asked, Measured, Yardstick
from dash_vision.miniature import MINIATURE
from dash_vision.pictures.folder import decode_files
from dash_vision.pictures.listing import list_folder
from dash_vision.runs.versions import installed_versions

from ..bases import fitting_runs, load_base
from ..blocks import Sampler
from ..checks import check_prompts, check_sampling
from ..runs import DreamBoothRun, read_run
from ..sampling import generate, move, sampler_settings
from ..saving import check_output, save
from .page import curves, markdown, sheet

RESULT, SHEET, CURVES, TABLE = "strength.json", "sheet.png", "curves.png", "strength.md"
PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "pillow")
_AT_ONCE = 4  # pictures
_MOST = 10.0  # a strength beyond which nothing is left of any picture


@dataclass(frozen=True)
class Real:
    """Pictures of the subject and the prompt of each. source: what they are, for the reader."""

    images: list[Image.Image]
    captions: list[str]
    source: str


@dataclass(frozen=True)
class At:
    """What an adapter draws at one strength. columns: the sheet's pictures."""

    scale: float
    columns: list[Image.Image]
    measured: Measured


def make_strength(
    folder: Path,
    scales: Sequence[float],
    prompts: Sequence[str],
    pictures: Path | None,
    encoders: Sequence[str],
    output: Path,
    sampler: Sampler,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Draw the run in `folder` at every scale, and write sheet, curves and table to the folder `output`; a sentence for
    each part that was left out. prompts: the sheet's columns; () takes the run's. pictures: of the subject; None takes
    those of the run. Raises InputError."""
    scales = _checked(scales)
    check_output(output, folder=True)
    check_sampling(sampler)
    for note in check_prompts(prompts):
        say(note)
    run = read_run(folder)
    real = _real(run, pictures, say)
    device = usable_device(sampler.device)
    found, problems = find_encoders(encoders, run.record.base.name == MINIATURE, device)
    base = load_base(run, sampler.base, sampler.dtype, sampler.quantize)
    for note in check_recorded(base, run.record.base, run.folder, sampler.base):
        say(note)
    fitting_runs(base, {run.method: run})
    move(base, device, sampler.dtype)
    settings = sampler_settings(run, sampler)
    columns = [prompt.replace("{}", run.subject) for prompt in prompts or run.record.validation_prompts]
    rows = _draw(base, run, real, (scales, columns), found, sampler, settings)
    story = {
        "run": str(run.folder),
        "scales": list(scales),
        "prompts": columns,
        "seed": sampler.seed,
        "resolution": int(run.argument("resolution")),
        "dtype": sampler.dtype,
        **settings,
        "encoders": found.names,
        "compared with": real.source,
        "values": {f"{row.scale:g}": dataclasses.asdict(row.measured) for row in rows},
        "versions": installed_versions(PACKAGES),
    }
    _write(run, real, rows, story, output, say)
    return problems


def _checked(scales: Sequence[float]) -> list[float]:
    """Each scale once, from the lowest. Raises InputError."""
    for scale in scales:
        if not (math.isfinite(scale) and abs(scale) <= _MOST):
            raise InputError(f"--scales has {scale:g}; it takes numbers from -{_MOST:g} to {_MOST:g}, such as 0 0.5 1")
    return sorted(set(scales))


def _real(run: DreamBoothRun, given: Path | None, say: Callable[[str], None]) -> Real:
    """What the drawn pictures are compared with: those in a folder that is given, else those that the run kept out of
    its training, else those of the training. Raises InputError."""
    measured = run.record.evaluation
    kept = measured.heldout if measured is not None and given is None else []
    folder = given or Path(measured.folder if measured is not None else run.argument("instance_data_dir")).expanduser()
    if given is None and not folder.is_dir():
        raise InputError(
            f"the pictures of {run.folder} were in {folder}, which is not there; --pictures says where pictures of the "
            "subject are"
        )
    listing = list_folder(folder, captions=bool(run.argument("use_captions")))
    if kept:
        listing = replace(listing, files=tuple(file for file in listing.files if file.name in kept))
        if len(listing.files) != len(kept):
            raise InputError(
                f"{folder} lacks pictures that {run.folder} was not trained on ({kept[0]}); --pictures says where "
                "pictures of the subject are"
            )
    decoded = decode_files(listing, resolution=int(run.argument("resolution")))
    for note in decoded.notes:
        say(f"note: {note}")
    if given is None and not kept:
        say("note: the pictures are compared with those of the training; --pictures names others, which tell more")
    what = f"in {given}" if given else "that were kept out of the training" if kept else "of the training"
    instance = run.record.instance_prompt
    images, captions = [p.image for p in decoded.images], [p.caption or instance for p in decoded.images]
    return Real(images, captions, f"{len(images)} picture{'s' if len(images) > 1 else ''} {what}")


def asked_of(run: DreamBoothRun, captions: Sequence[str], embedded: bool) -> tuple[Asked, list[list[int]]]:
    """What is drawn to measure a run: see measures.asking. Where the class prompt is the instance prompt, there is
    nothing to draw of the class alone."""
    instance, class_prompt = run.record.instance_prompt, run.record.class_prompt
    rare = set(instance.split()) - set(class_prompt.split())
    asked, own = ask(captions, instance, class_prompt, embedded, rare)
    return (dataclasses.replace(asked, class_=()) if class_prompt == instance else asked), own


def _draw(
    base: Base,
    run: DreamBoothRun,
    real: Real,
    what: tuple[Sequence[float], Sequence[str]],
    encoders: Encoders,
    sampler: Sampler,
    settings: dict[str, Any],
) -> list[At]:
    """Every scale's pictures. what: the scales, and the sheet's columns."""
    scales, columns = what
    asked, own = asked_of(run, real.captions, base.embedded)
    each = len(columns) + (len(asked.prompts) if encoders.likeness is not None else 0)
    side = int(run.argument("resolution"))
    load_lora(base, run.folder)
    with tqdm(total=each * len({*scales, 0.0}), desc="pictures") as bar:

        def draw(prompts: Sequence[str], numbers: Sequence[int]) -> list[Image.Image]:
            found: list[Image.Image] = []
            for start in range(0, len(prompts), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                found += generate(base, prompts[part], sampler.seed, numbers[part], side, settings)
                bar.update(len(prompts[part]))
            return found

        def draw_base(prompts: Sequence[str], numbers: Sequence[int]) -> list[Image.Image]:
            with scaled(base.pipeline, 0.0):
                return draw(prompts, numbers)

        yardstick = Yardstick(encoders, asked, real.images, own, draw_base)
        rows = []
        for scale in scales:
            with scaled(base.pipeline, scale):
                measured = yardstick.measure(draw) if scale else yardstick.of_base()
                rows.append(At(scale, draw(columns, range(len(columns))), measured))
    return rows


@contextmanager
def scaled(pipeline: Any, scale: float) -> Iterator[None]:
    """The loaded adapter at a strength while inside, as diffusers' set_adapters gives it; at 0 the base alone."""
    names = pipeline.get_active_adapters()
    if scale:
        pipeline.set_adapters(names, [scale] * len(names))
    else:
        pipeline.disable_lora()
    try:
        yield
    finally:
        pipeline.enable_lora()
        pipeline.set_adapters(names, [1.0] * len(names))


def _write(
    run: DreamBoothRun, real: Real, rows: Sequence[At], story: dict[str, Any], output: Path, say: Callable[[str], None]
) -> None:
    """The four files."""
    os.makedirs(output, exist_ok=True)
    about = f"{run.subject}, {run.method}, {run.record.steps:,} training steps"
    how = (
        f"{story['num_inference_steps']} sampling steps, guidance {story['guidance_scale']:g}, seed {story['seed']}; "
        "all pictures of a column start from the same noise"
    )
    pictures = [(row.scale, row.columns) for row in rows]
    save(sheet(about, real.images, story["prompts"], pictures, how), output / SHEET, story)
    write_json(output / RESULT, story)
    text = markdown(about, [(row.scale, row.measured) for row in rows], story["encoders"], real.source)
    write_text(output / TABLE, text)
    say(text)
    written = [SHEET, TABLE, RESULT]
    if any(row.measured.likeness for row in rows):
        save(curves([(row.scale, row.measured) for row in rows], story["encoders"], about), output / CURVES, story)
        written.insert(1, CURVES)
    say(f"{output}: {', '.join(written)}")
