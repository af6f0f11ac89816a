"""The five embedded tasks: synthetic pictures from the miniature's renderer, one task or more per VTAB group.

    mini_subject      natural      what is it? 14 classes of subjects
    mini_material     specialized  its coat: plain, striped, spotted, patched, two-tone
    mini_count        structured   how many subjects? 1 to 6
    mini_location     structured   where is the subject's middle? 4 x 4 cells, row by row
    mini_orientation  structured   how far is it turned? 16 steps of 22.5 degrees, anticlockwise

Every picture follows from (task, split, number) alone: the data is the same on every machine and in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from PIL import Image, ImageChops
from torch import Tensor

from ..miniature.world import drawing, scenes, subjects
from ..miniature.world import places as settings
from ..miniature.world.drawing import Canvas, Pen
from ..miniature.world.scenes import KINDS, PATTERNS, SETTINGS, SUPERSAMPLING, random_scene, random_subject, render
from ..miniature.world.subjects import Subject, draw_subject
from ..runs.tasks import Task
from .cache import CachedImages, Images, TensorImages, open_cache, write_cache
from .decode import CHUNK, to_tensor

SIZE = 64
CELLS = 4
TURNS = 16

Painter = Callable[[int, Random, int], Image.Image]


def class_names(task: Task) -> list[str]:
    """One name per class of an embedded task."""
    names: dict[str, list[str]] = {
        "mini_subject": list(KINDS),
        "mini_material": list(PATTERNS),
        "mini_count": [str(n + 1) for n in range(6)],
        "mini_location": [f"row {row + 1}, column {column + 1}" for row in range(CELLS) for column in range(CELLS)],
        "mini_orientation": [f"{360 * turn / TURNS:g} degrees" for turn in range(TURNS)],
    }
    return names[task.name]


def labels(task: Task, split: str) -> Tensor:
    """Labels of a split, [n] int64. train800val200 is train800 followed by val200."""
    return torch.tensor([_picture_rng(task, *key)[1] for key in _keys(task, split)])


def images(task: Task, split: str, size: int = SIZE, cache: Path | None = None) -> Images:
    """Pictures of a split, drawn at size x size; kept in the folder `cache` when one is given."""
    keys = _keys(task, split)
    if cache is None:
        return TensorImages(torch.cat(list(_draw_chunks(task, keys, size))))
    file = cache / f"{task.name}-{split}-{size}-{_renderer_hash()}.safetensors"
    found: CachedImages | None = open_cache(file, len(keys), size)
    if found is None:
        try:
            write_cache(file, _draw_chunks(task, keys, size), len(keys), size)
        except OSError:  # a cache that cannot be written is no reason to stop
            return images(task, split, size, None)
        found = open_cache(file, len(keys), size)
    return found or images(task, split, size, None)


def draw(task: Task, split: str, number: int, size: int = SIZE) -> tuple[Image.Image, int]:
    """Picture `number` of a split (train800, val200 or test) and its label."""
    rng, label = _picture_rng(task, split, number)
    return _PAINTERS[task.name](label, rng, size), label


def _keys(task: Task, split: str) -> list[tuple[str, int]]:
    if split == "train800val200":
        return _keys(task, "train800") + _keys(task, "val200")
    return [(split, number) for number in range(task.size(split))]


def _picture_rng(task: Task, split: str, number: int) -> tuple[Random, int]:
    """The picture's random numbers, and its label: classes come equally often (to within one) in any order."""
    block, place = divmod(number, task.classes)
    shuffled = Random(f"{task.name} {split} labels {block}").sample(range(task.classes), task.classes)
    return Random(f"{task.name} {split} {number}"), shuffled[place]


def _draw_chunks(task: Task, keys: list[tuple[str, int]], size: int) -> Iterator[Tensor]:
    for start in range(0, len(keys), CHUNK):
        yield torch.stack([to_tensor(draw(task, *key, size)[0], size) for key in keys[start : start + CHUNK]])


def _renderer_hash() -> str:
    """Of the source that draws: pictures of another version of it are not found in the cache."""
    files = [module.__file__ for module in (drawing, scenes, settings, subjects)] + [__file__]
    return hashlib.sha256(b"".join(Path(str(file)).read_bytes() for file in files)).hexdigest()[:20]


# -- one painter per task


def _subject(label: int, rng: Random, size: int) -> Image.Image:
    return render(random_scene(rng, random_subject(rng, list(KINDS)[label])), size)


def _material(label: int, rng: Random, size: int) -> Image.Image:
    # Outfits and properties would cover the coat.
    subject = replace(random_subject(rng), pattern=PATTERNS[label])
    return render(random_scene(rng, subject, plain=True), size)


def _count(label: int, rng: Random, size: int) -> Image.Image:
    canvas, units = _background(rng, size)
    cells = rng.sample([(column, row) for row in range(3) for column in range(3)], label + 1)
    for column, row in sorted(cells, key=lambda cell: cell[1]):  # nearer ones over farther ones
        x = (column + 0.5 + rng.uniform(-0.12, 0.12)) / 3
        y = (row + 0.5 + rng.uniform(-0.1, 0.1)) / 3
        _place(canvas, random_subject(rng), rng, x * units, y * units, rng.uniform(0.2, 0.27) * units / 2)
    return canvas.image.reduce(SUPERSAMPLING)


def _location(label: int, rng: Random, size: int) -> Image.Image:
    canvas, units = _background(rng, size)
    row, column = divmod(label, CELLS)
    x, y = ((cell + rng.uniform(0.1, 0.9)) / CELLS for cell in (column, row))
    _place(canvas, random_subject(rng), rng, x * units, y * units, rng.uniform(0.28, 0.4) * units / 2)
    return canvas.image.reduce(SUPERSAMPLING)


def _orientation(label: int, rng: Random, size: int) -> Image.Image:
    canvas, units = _background(rng, size)
    subject, sway, seed = random_subject(rng), rng.uniform(-1, 1), rng.random()
    scale = rng.uniform(0.5, 0.62) * units / 2
    x, y = (units * (0.5 + rng.uniform(-0.06, 0.06)) for _ in range(2))
    # Drawn over black and over white, the subject gives its colour and its coverage, which can be turned.
    over = {}
    for shade in (0, 255):
        layer = Canvas(canvas.pixels)
        layer.replace(Image.new("RGB", canvas.image.size, (shade, shade, shade)))
        draw_subject(layer, Pen(layer, units / 2, units / 2, scale), subject, Random(seed), sway)
        over[shade] = layer.image
    coverage = ImageChops.invert(ImageChops.subtract(over[255], over[0])).convert("L")
    shift = (round((x - units / 2) * canvas.k), round((y - units / 2) * canvas.k))
    angle = 360 * label / TURNS + rng.uniform(-8, 8)
    turned, mask = (picture.rotate(angle, Image.Resampling.BICUBIC, translate=shift) for picture in (over[0], coverage))
    canvas.image.paste(turned, (0, 0), mask)
    return canvas.image.reduce(SUPERSAMPLING)


def _background(rng: Random, size: int) -> tuple[Canvas, float]:
    """A canvas with a random place on it, and its side in drawing units."""
    canvas = Canvas(size * SUPERSAMPLING)
    SETTINGS[rng.choice(list(SETTINGS))](canvas, rng)
    return canvas, canvas.pixels / canvas.k


def _place(canvas: Canvas, subject: Subject, rng: Random, x: float, y: float, scale: float) -> None:
    pen = Pen(canvas, x, y, scale, mirror=rng.random() < 0.5)
    draw_subject(canvas, pen, subject, Random(rng.random()), sway=rng.uniform(-1, 1))


_PAINTERS: dict[str, Painter] = {
    "mini_subject": _subject,
    "mini_material": _material,
    "mini_count": _count,
    "mini_location": _location,
    "mini_orientation": _orientation,
}
