"""Class pictures for prior preservation: the user's own, and as many as are missing made once by the base itself.

CLASS_DATA_DIR/             the user's own pictures, of any kind that can be read; nothing is ever written here
CLASS_DATA_DIR/generated/   0000.png and so on, and made_for.json: of which prompt and base they are
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..bases.identity import difference
from ..bases.loading import Base
from ..bases.sampling import Sampling, sample
from ..files.atomic import replacing, write_json
from ..files.errors import InputError
from ..pictures.folder import InstanceImage, decode_files
from ..pictures.listing import Listing, PictureFile, check_folder, list_folder
from ..runs.runtime import Runtime
from .config import DreamBoothConfig
from .plan import Plan

GENERATED = "generated"
RECORD_NAME = "made_for.json"
# Settings of which other values make other pictures of the class.
_SAMPLER = ("num_inference_steps", "guidance_scale", "max_sequence_length", "clip_skip")
_FIRST_NOISE = 1_000_000  # the numbers below are those of samples.png


def check_class_pictures(settings: DreamBoothConfig) -> None:
    """Look at the user's own class pictures, without decoding one. Raises InputError as `check_folder`."""
    if settings.class_data_dir and Path(settings.class_data_dir).expanduser().exists():
        check_folder(_own(Path(settings.class_data_dir).expanduser(), settings))


def class_images(base: Base, plan: Plan, runtime: Runtime, say: Callable[[str], None]) -> tuple[InstanceImage, ...]:
    """num_class_images pictures of the class prompt: those in the plan's class folder, then those in its subfolder
    `generated`, which are made where they are missing.

    The missing ones are shared out over the processes; number n has the same noise whoever makes it. Raises InputError
    for own pictures that cannot be used, and for generated ones of something else.
    """
    settings, folder, prompt = plan.settings, plan.class_folder, plan.prompts.class_
    wanted, generated = settings.num_class_images, folder / GENERATED
    folder.mkdir(parents=True, exist_ok=True)
    own = _read(_own(folder, settings), plan, say)
    files = [generated / f"{number:04d}.png" for number in range(wanted - len(own))]
    origin = {
        "prompt": prompt,
        "resolution": plan.resolution,
        "base": base.name,
        "identity": base.identity(),
        "sampler": {name: value for name, value in plan.arguments().items() if name in _SAMPLER},
    }
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    if files:
        note = _check_origin(generated, origin, bool(missing))
        if note:
            say(f"note: {note}")
    runtime.wait()  # all count before one writes
    if missing:
        have = f"class pictures: {wanted - len(missing)} in {folder}"
        say(f'{have}; generating {len(missing)} of "{prompt}" in {generated}')
        if runtime.main:
            generated.mkdir(exist_ok=True)
            write_json(generated / RECORD_NAME, origin)
        runtime.wait()
        _generate(base, plan, generated, missing[runtime.rank :: runtime.world], runtime)
        runtime.wait()
    else:
        say(f'class pictures: {wanted} in {folder}, as wanted; none generated ("{prompt}")')
    made = Listing(generated, tuple(PictureFile(file, None, f"{GENERATED}/{file.name}") for file in files), ())
    return (*own, *_read(made, plan, say))


def _own(folder: Path, settings: DreamBoothConfig) -> Listing:
    """As many of the user's own pictures in the folder as are used."""
    own = list_folder(folder, captions=settings.use_captions, skip=(GENERATED,), may_be_empty=True)
    return replace(own, files=own.files[: settings.num_class_images])


def _read(listing: Listing, plan: Plan, say: Callable[[str], None]) -> tuple[InstanceImage, ...]:
    pictures = decode_files(listing, resolution=plan.resolution)
    for note in pictures.notes:
        say(f"note: class pictures: {note}")
    return pictures.images


def _check_origin(folder: Path, now: dict[str, Any], more: bool) -> str | None:
    """What to say of the pictures in `folder` that were drawn by other settings of the sampler.

    more: others will be drawn beside them. Raises InputError when they were not generated for the same thing, and when
    they would be mixed with others.
    """
    if not any(folder.glob("*.png")):
        return None
    drawn = None
    try:
        was = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        other, drawn = _difference(was, now), _drawn_otherwise(was["sampler"], now["sampler"])
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        other = f"are of unknown origin ({RECORD_NAME} is missing or broken)"
    if other or (drawn and more):
        raise InputError(
            f"the class pictures in {folder} {other or drawn}; give another --class_data_dir, or delete that folder"
        )
    return drawn and f"the class pictures in {folder} {drawn}; they are kept, and drawn anew if you delete that folder"


def _difference(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What tells the pictures that were generated from those that are wanted; None where nothing does."""
    for name in ("prompt", "resolution"):
        if was[name] != now[name]:
            return f"were generated for the {name} {was[name]!r}, this run wants {now[name]!r}"
    part = difference(was["identity"], now["identity"])
    return part and f"were generated by another base ({was['base']}; its {part} differs from that of {now['base']})"


def _drawn_otherwise(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In which settings of the sampler pictures differ from those of this run; None where they do not."""
    different = [name for name in _SAMPLER if was[name] != now[name]]
    if not different:
        return None
    then, here = (", ".join(f"{name} {_said(values[name])}" for name in different) for values in (was, now))
    return f"were generated with {then}, this run has {here}"


def _said(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _generate(base: Base, plan: Plan, folder: Path, numbers: Sequence[int], runtime: Runtime) -> None:
    """Draw the class pictures of these numbers, and write each to its file."""
    size, at_once = (plan.resolution, plan.resolution), plan.settings.sample_batch_size
    makes_room = plan.settings.offload != "none"
    how = Sampling(plan.num_inference_steps, plan.guidance_scale, size, at_once, makes_room)
    with tqdm(total=len(numbers), desc="class pictures", disable=not runtime.main) as bar:
        for start in range(0, len(numbers), at_once):
            part = numbers[start : start + at_once]
            noises = [_FIRST_NOISE + n for n in part]
            prompts = [plan.prompts.class_] * len(part)
            seed, device = plan.settings.seed, runtime.device
            pictures = sample(base, prompts, seed, noises, how, device, runtime.dtype, bar.update)
            for n, picture in zip(part, pictures, strict=True):
                with replacing(folder / f"{n:04d}.png") as temporary:
                    picture.save(temporary, format="PNG")
