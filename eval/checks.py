"""What is given to a command that draws pictures, checked before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from dash_vision.bases.devices import usable_device
from dash_vision.files.errors import InputError
from dash_vision.pictures.decode import Refused, read_picture
from dash_vision.pictures.folder import picture_files, picture_notes

from .bases import check_files, compare_bases
from .blocks import Block, Sampler
from .runs import DreamBoothRun, read_run


def check_sampling(sampler: Sampler) -> None:
    """Raises InputError for settings that no sampler takes, and for a device that cannot be used here."""
    check_whole("seed", sampler.seed, 0)
    check_whole("num_inference_steps", 1 if sampler.steps is None else sampler.steps, 1)
    if sampler.guidance is not None and not 0 <= sampler.guidance < math.inf:
        raise InputError(f"--guidance_scale is {sampler.guidance}; it takes a number of 0 or more")
    usable_device(sampler.device)


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
    _check_bases(block, runs)
    _check_words(block, runs)
    return runs, problems


def _check_bases(block: Block, runs: dict[str, DreamBoothRun]) -> None:
    """Raises InputError where a run is known to be of another base than the first."""
    (name, first), *others = runs.items()
    for other, run in others:
        found = compare_bases(first, run)
        if found is not None:
            raise InputError(
                f"the adapters for {block.subject} were trained on different bases ({found}, of {name} and "
                f"{other}); compare like with like"
            )


def _check_words(block: Block, runs: dict[str, DreamBoothRun]) -> None:
    """Raises InputError where one prompt does not fit all runs."""
    if len({(run.subject, run.argument("resolution")) for run in runs.values()}) > 1:
        found = ", ".join(f'{name}: "{run.subject}" at {run.argument("resolution")}' for name, run in runs.items())
        raise InputError(
            f"the adapters for {block.subject} were trained with different words or resolutions ({found}); one prompt "
            "does not fit them: give each its own --subject"
        )


def sampler_notes(runs: Mapping[str, DreamBoothRun], sampler: Sampler) -> list[str]:
    """A note for each setting of the sampler that the runs recorded differently, where none is given: the first counts
    for all, since pictures are compared."""
    notes = []
    for name, given in (("num_inference_steps", sampler.steps), ("guidance_scale", sampler.guidance)):
        values = {method: run.argument(name) for method, run in runs.items()}
        if given is None and len(set(values.values())) > 1:
            recorded = ", ".join(f"{method} {value:g}" for method, value in values.items())
            first = next(iter(values.values()))
            notes.append(f"note: the runs recorded other values of {name} ({recorded}); all are drawn with {first:g}")
    return notes


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
