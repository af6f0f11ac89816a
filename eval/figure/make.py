"""The pictures of a figure: drawn by the base and with each adapter, and put on a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dash_vision.bases.devices import usable_device
from dash_vision.bases.recorded import check_recorded, load_lora
from dash_vision.files.errors import InputError
from dash_vision.runs.versions import installed_versions

from ..bases import fitting_runs, load_base
from ..blocks import Block, Sampler
from ..checks import check_block, check_prompts, check_sampling, read_inputs, sampler_notes
from ..runs import DreamBoothRun
from ..sampling import generate, move, sampler_settings
from ..saving import check_output, check_picture_name, save
from .page import BASE, Sampled, draw

PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "pillow")
_Ready = tuple[Block, dict[str, DreamBoothRun], list[Image.Image]]


def make_figure(
    blocks: Sequence[Block], output: Path, sampler: Sampler, say: Callable[[str], None] = print
) -> list[str]:
    """Sample every block, write the figure to `output` (.png or .pdf); a sentence for each part that was left out.

    Raises InputError where nothing is left to draw.
    """
    check_picture_name(output, "figure")
    check_output(output)
    check_sampling(sampler)
    for block in blocks:
        if not block.prompts:
            raise InputError(f'no prompts for {block.subject}; give --prompts "a {{}} in the snow" ...')
        for note in check_prompts(block.prompts):
            say(note)
    ready, problems = _ready(blocks, say)  # all of them, before the first is sampled
    sampled = []
    for block, runs, inputs in ready:
        try:
            made, unfit = _sample(block, runs, inputs, sampler, say)
            sampled.append(made)
            problems += unfit
        except InputError as error:
            problems.append(str(error))
    if not sampled:
        raise InputError("; ".join(problems))
    story = {"seed": sampler.seed, "blocks": [s.story for s in sampled], "versions": installed_versions(PACKAGES)}
    page = draw(sampled)
    save(page, output, story)
    say(f"{output}: {page.width} x {page.height}, seed {sampler.seed}")
    return problems


def _ready(blocks: Sequence[Block], say: Callable[[str], None]) -> tuple[list[_Ready], list[str]]:
    """The blocks that can be drawn with their runs and input pictures, and a sentence for each part that cannot."""
    ready, problems = [], []
    for block in blocks:
        try:
            if BASE in dict(block.adapters):
                raise InputError(
                    f'an adapter for {block.subject} is called "{BASE}", as the tiles without an adapter are'
                )
            runs, broken = check_block(block)
            inputs, unread = read_inputs(block.subject, say)
            ready.append((block, runs, inputs))
            problems += broken + unread
        except InputError as error:
            problems.append(str(error))
    return ready, problems


def _sample(
    block: Block,
    runs: dict[str, DreamBoothRun],
    inputs: list[Image.Image],
    sampler: Sampler,
    say: Callable[[str], None],
) -> tuple[Sampled, list[str]]:
    """A block's pictures, and a sentence for each adapter that does not fit the base. Raises InputError."""
    first = next(iter(runs.values()))
    prompts = [prompt.replace("{}", first.subject) for prompt in block.prompts]
    base = load_base(first, sampler.base, sampler.dtype, sampler.quantize)
    notes = check_recorded(base, first.record.base, first.folder, sampler.base)
    runs, problems = fitting_runs(base, runs)
    move(base, usable_device(sampler.device), sampler.dtype)
    kept = next(iter(runs.values()))
    side = int(kept.argument("resolution"))
    settings = sampler_settings(kept, sampler)
    for note in [*notes, *sampler_notes(runs, sampler)]:
        say(note)
    tiles: list[list[Image.Image]] = [[] for _ in prompts]
    methods: dict[str, DreamBoothRun | None] = {BASE: None, **runs}
    for name, run in methods.items():
        say(f"{first.subject}: {name}, {len(prompts)} pictures")
        if run is not None:
            load_lora(base, run.folder)
        for number, prompt in enumerate(prompts):
            tiles[number] += generate(base, [prompt], sampler.seed, [number], side, settings)
        if run is not None:
            base.pipeline.unload_lora_weights()
    story = {
        "subject": str(block.subject),
        "adapters": {name: str(run.folder) for name, run in runs.items()},
        "prompts": prompts,
        "base": sampler.base or first.base,
        "base_fingerprint": kept.base_fingerprint,
        "resolution": side,
        "dtype": sampler.dtype,
        **settings,
    }
    footer = _footer(story, sampler.seed, runs)
    return Sampled(first.subject, inputs, list(methods), prompts, tiles, story, footer), problems


def _footer(story: Mapping[str, Any], seed: int, runs: Mapping[str, DreamBoothRun]) -> str:
    """The settings that a reader has to know to compare the tiles."""
    side, base = story["resolution"], story["base"]
    words = [f"{name}: {_about(name, run)}" for name, run in runs.items()]
    words.append(f"{BASE}: {Path(base).name if Path(base).exists() else base}, without an adapter")
    sampler = f"{story['num_inference_steps']} sampling steps, guidance {story['guidance_scale']:g}, seed {seed}"
    half = "" if story["dtype"] == "float32" else f", {story['dtype']}"
    words.append(f"{side} x {side} pixels, {sampler}{half}; all tiles of a prompt start from the same noise")
    return ". ".join(words) + "."


def _about(name: str, run: DreamBoothRun) -> str:
    k = f", k = {run.argument('dash_k')}" if run.argument("dash_k") else ""
    method = "" if name == run.method else f"{run.method}, "
    return f"{method}rank {run.argument('rank')}{k}, {run.steps_of_adapter:,} training steps"
