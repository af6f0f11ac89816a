"""The paper's figure of visual results: per subject a collage of the inputs, then per prompt one tile per method.

The methods' names stand on the tiles, the prompt under them. All tiles of a prompt start from the same noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from dash_vision.drawing.fonts import font_for, wrapped
from dash_vision.files.atomic import replacing
from dash_vision.pictures.decode import Refused, read_picture
from dash_vision.pictures.folder import picture_files, picture_notes
from dash_vision.runs.versions import installed_versions

from .runs import (
    DreamBoothRun,
    InputError,
    check_files,
    dtype_name,
    fitting_runs,
    generate,
    load_lora,
    load_pipeline,
    move,
    read_run,
    same_base,
    usable_device,
)

INK, PAPER = "#1b1f24", "#ffffff"
TILE, GAP, ROOM, MARGIN = 256, 6, 26, 24
PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "pillow")


@dataclass(frozen=True)
class Block:
    """One subject: its pictures, adapters by method name in order, and prompts; "{}" stands for the subject."""

    subject: Path
    adapters: tuple[tuple[str, Path], ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Sampled:
    """A block's pictures: tiles[prompt][method]; story: how they were made."""

    name: str
    inputs: list[Image.Image]
    methods: list[str]
    prompts: list[str]
    tiles: list[list[Image.Image]]
    story: dict[str, Any]


def make_figure(
    blocks: Sequence[Block],
    output: Path,
    seed: int = 0,
    base: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Sample every block, write the figure to `output` (.png or .pdf); a sentence for each part that was left out.

    steps, guidance: of the sampler; None takes those of each block's first run. device: None takes the GPU where there
    is one. dtype: of the weights while sampling. Raises InputError where nothing is left to draw.
    """
    check_picture_name(output, "figure")
    check_sampling(seed, steps, guidance)
    device = usable_device(device)
    for block in blocks:
        if not block.prompts:
            raise InputError(f'no prompts for {block.subject}; give --prompts "a {{}} in the snow" ...')
        for note in check_prompts(block.prompts):
            say(note)
    ready, problems, sampled = [], [], []
    for block in blocks:  # all of them, before the first is sampled
        try:
            runs, broken = check_block(block)
            inputs, unread = read_inputs(block.subject, say)
            ready.append((block, runs, inputs))
            problems += broken + unread
        except InputError as error:
            problems.append(str(error))
    for block, runs, inputs in ready:
        try:
            made, unfit = _sample(block, runs, inputs, seed, base, steps, guidance, device, dtype, say)
            sampled.append(made)
            problems += unfit
        except InputError as error:
            problems.append(str(error))
    if not sampled:
        raise InputError("; ".join(problems))
    page = draw(sampled)
    save(page, output, {"seed": seed, "blocks": [s.story for s in sampled], "versions": installed_versions(PACKAGES)})
    say(f"{output}: {page.width} x {page.height}, seed {seed}")
    return problems


def save(page: Image.Image, output: Path, story: dict[str, Any]) -> None:
    """Write the page with its story: in a PNG as the text "dash-vision", in a PDF as its subject."""
    with replacing(output) as temporary:
        if output.suffix.lower() == ".png":
            notes = PngImagePlugin.PngInfo()
            notes.add_itxt("dash-vision", json.dumps(story))
            page.save(temporary, format="PNG", pnginfo=notes, optimize=True)
        else:
            # Pillow stores RGB as lossy JPEG, but RGBA as JPEG 2000, which is exact.
            page.convert("RGBA").save(temporary, format="PDF", resolution=200, subject=json.dumps(story))


def check_picture_name(output: Path, what: str = "picture") -> None:
    """Raises InputError for a file to draw that is not .png or .pdf."""
    if output.suffix.lower() not in (".png", ".pdf"):
        raise InputError(f"the {what}'s name is {output}; it takes a name that ends in .png or .pdf")


def check_sampling(seed: int, steps: int | None, guidance: float | None) -> None:
    """Raises InputError for settings that no sampler takes; None stands for a run's own."""
    check_whole("seed", seed, 0)
    check_whole("num_inference_steps", 1 if steps is None else steps, 1)
    if guidance is not None and not 0 <= guidance < math.inf:
        raise InputError(f"--guidance_scale is {guidance}; it takes a number of 0 or more")


def check_whole(name: str, value: int, least: int) -> None:
    """Raises InputError for a setting below `least`."""
    if value < least:
        raise InputError(f"--{name} is {value}; it takes a whole number of {least} or more")


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """A note for each prompt without a place for the subject. Raises InputError for a blank one."""
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f'prompt {number} of --prompts is blank; write what to draw, such as "a {{}} in the snow"')
    return [
        f'note: "{p}" has no {{}}, the place of the subject\'s name; drawn as it is' for p in prompts if "{}" not in p
    ]


def check_block(block: Block) -> tuple[dict[str, DreamBoothRun], list[str]]:
    """The runs of a block, all of one subject on one base, and a sentence for each that was left out.

    Everything that is wrong with it is found before a model is loaded. Raises InputError where no run is left.
    """
    if not block.adapters:
        raise InputError(f"no adapter for {block.subject}; give --adapter NAME=FOLDER, for each method one")
    if not picture_files(block.subject):
        raise InputError(f"there are no pictures in {block.subject}; give the folder of the input pictures")
    names = [name for name, _ in block.adapters]
    if len(set(names)) < len(names):
        raise InputError(f"two adapters for {block.subject} have one name ({', '.join(names)}); give each its own")
    runs, problems = {}, []
    for name, folder in block.adapters:
        try:
            run = read_run(folder)
            check_files(run)
            runs[name] = run
        except InputError as error:
            problems.append(f"{name}: {error}")
    if not runs:
        raise InputError("; ".join(problems))
    first = next(iter(runs.values()))
    if any(same_base(first, run) is False for run in runs.values()):
        bases = ", ".join(f"{name}: {run.base}" for name, run in runs.items())
        raise InputError(
            f"the adapters for {block.subject} were trained on different bases ({bases}); compare like with like"
        )
    if len({(run.subject, run.argument("resolution")) for run in runs.values()}) > 1:
        found = ", ".join(f'{name}: "{run.subject}" at {run.argument("resolution")}' for name, run in runs.items())
        raise InputError(
            f"the adapters for {block.subject} were trained with different words or resolutions ({found}); one prompt "
            "does not fit them: give each its own --subject"
        )
    return runs, problems


def read_inputs(folder: Path, say: Callable[[str], None]) -> tuple[list[Image.Image], list[str]]:
    """The pictures in a folder, and a sentence for each that cannot be read. Raises InputError where none can."""
    pictures, problems = [], []
    remarks: dict[str, list[str]] = {}
    for path in picture_files(folder):
        try:
            picture = read_picture(path)
        except Refused as reason:
            problems.append(f"{path} is no readable picture ({reason}); remove or replace it")
            continue
        pictures.append(picture.image)
        for remark in picture.remarks:
            remarks.setdefault(remark, []).append(path.name)
    if not pictures:
        raise InputError(f"no picture in {folder} can be read ({problems[0]})")
    for note in picture_notes(remarks):
        say(f"note: {note}")
    return pictures, problems


def sampler_settings(run: DreamBoothRun, steps: int | None, guidance: float | None) -> dict[str, Any]:
    """The sampler's steps and guidance; None takes the run's."""
    return {
        "num_inference_steps": int(run.argument("num_inference_steps")) if steps is None else steps,
        "guidance_scale": float(run.argument("guidance_scale")) if guidance is None else guidance,
    }


def _sample(
    block: Block,
    runs: dict[str, DreamBoothRun],
    inputs: list[Image.Image],
    seed: int,
    base: str | None,
    steps: int | None,
    guidance: float | None,
    device: str,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> tuple[Sampled, list[str]]:
    """A block's pictures, and a sentence for each adapter that does not fit the base. Raises InputError."""
    first = next(iter(runs.values()))
    prompts = [prompt.replace("{}", first.subject) for prompt in block.prompts]
    pipeline = load_pipeline(first, base)
    runs, problems = fitting_runs(pipeline, runs, base)
    move(pipeline, device, dtype)
    kept = next(iter(runs.values()))
    side = int(kept.argument("resolution"))
    settings = sampler_settings(kept, steps, guidance)
    columns: list[list[Image.Image]] = [[] for _ in prompts]
    for name, run in runs.items():
        load_lora(pipeline, run)
        say(f"{first.subject}: {name}, {len(prompts)} pictures")
        for number, prompt in enumerate(prompts):
            columns[number] += generate(pipeline, [prompt], seed, [number], side, settings)
        pipeline.unload_lora_weights()
    story = {
        "subject": str(block.subject),
        "adapters": {name: str(run.folder) for name, run in runs.items()},
        "prompts": prompts,
        "base": base or first.base,
        "base_fingerprint": kept.base_fingerprint,
        "resolution": side,
        "dtype": dtype_name(dtype),
        **settings,
    }
    return Sampled(first.subject, inputs, list(runs), prompts, columns, story), problems


# -- drawing


def draw(blocks: Sequence[Sampled]) -> Image.Image:
    """All blocks below each other on one page."""
    rows = [_draw_block(block) for block in blocks]
    width = max(row.width for row in rows) + 2 * MARGIN
    height = sum(row.height for row in rows) + GAP * (len(rows) - 1) + 2 * MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    y = MARGIN
    for row in rows:
        page.paste(row, (MARGIN, y))
        y += row.height + GAP
    return page


def _draw_block(block: Sampled) -> Image.Image:
    """Collage on the left; beside it the prompts' tiles, the methods of one prompt close together."""
    font = font_for(" ".join((block.name, *block.prompts)), 17)
    methods = len(block.methods)
    pair = methods * TILE + (methods - 1) * GAP
    captions = [wrapped(prompt, font, pair) for prompt in block.prompts]
    about = wrapped(f"input: {block.name}", font, TILE)
    words = max(map(len, (about, *captions))) * 22
    width = TILE + ROOM + len(block.prompts) * pair + (len(block.prompts) - 1) * ROOM
    row = Image.new("RGB", (width, TILE + 10 + words + 12), PAPER)
    canvas = ImageDraw.Draw(row)
    row.paste(collage(block.inputs, TILE), (0, 0))
    _write(canvas, about, TILE / 2, font)
    for i, (tiles, lines) in enumerate(zip(block.tiles, captions, strict=True)):
        x = TILE + ROOM + i * (pair + ROOM)
        for j, (tile, method) in enumerate(zip(tiles, block.methods, strict=True)):
            row.paste(_named(tile, method), (x + j * (TILE + GAP), 0))
        _write(canvas, lines, x + pair / 2, font)
    return row


def _write(canvas: ImageDraw.ImageDraw, lines: Sequence[str], x: float, font: Any) -> None:
    """Lines under the tiles, each with its middle at x."""
    for k, line in enumerate(lines):
        canvas.text((x, TILE + 10 + 22 * k), line, font=font, fill=INK, anchor="ma")


def collage(pictures: Sequence[Image.Image], side: int) -> Image.Image:
    """Up to nine pictures in a square of `side` pixels, each cut to a square."""
    shown = pictures[:9]
    columns = max(1, math.ceil(math.sqrt(len(shown))))
    rows = math.ceil(len(shown) / columns)
    cell = (side - (columns - 1) * 4) // columns
    square = Image.new("RGB", (side, side), PAPER)
    top = (side - rows * cell - (rows - 1) * 4) // 2
    for i, picture in enumerate(shown):
        # A last row that is not full stands in the middle.
        in_row = min(columns, len(shown) - i // columns * columns)
        left = (side - in_row * cell - (in_row - 1) * 4) // 2
        place = (left + i % columns * (cell + 4), top + i // columns * (cell + 4))
        square.paste(ImageOps.fit(picture, (cell, cell), Image.Resampling.LANCZOS), place)
    return square


def _named(tile: Image.Image, name: str) -> Image.Image:
    """The tile at its size in the figure, with the method's name in its lower left corner."""
    large = ImageOps.fit(tile.convert("RGB"), (TILE, TILE), Image.Resampling.BICUBIC)
    font = font_for(name, 17)
    lines = wrapped(name, font, TILE - 16)
    width = math.ceil(max(map(font.getlength, lines))) + 16
    label = Image.new("RGBA", (width, 22 * len(lines) + 5), (20, 24, 28, 190))
    for k, line in enumerate(lines):
        ImageDraw.Draw(label).text((8, 13 + 22 * k), line, font=font, fill="#ffffff", anchor="lm")
    large.paste(label, (0, TILE - label.height), label)
    return large
