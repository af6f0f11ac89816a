"""Class pictures for prior preservation: the user's own, and as many as are missing made once by the base itself.

CLASS_DATA_DIR/             the user's own pictures, of any kind that can be read; nothing is ever written here
CLASS_DATA_DIR/generated/   0000.png and so on, and made_for.json: of which prompt and base they are
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

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
    origin: dict[str, object] = {"prompt": prompt, "base": base.name, "resolution": plan.resolution}
    if files:
        _check_origin(generated, origin)
    missing = [number for number, file in enumerate(files) if not file.is_file()]
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


def _check_origin(folder: Path, now: dict[str, object]) -> None:
    """Raises InputError when the pictures in `folder` were not generated for the same thing."""
    if not any(folder.glob("*.png")):
        return
    try:
        was = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        was = None
    if was != now:
        what = f"were generated for {was}" if was else f"are of unknown origin ({RECORD_NAME} is missing)"
        raise InputError(
            f"the class pictures in {folder} {what}, this run wants {now}; give another --class_data_dir, or delete "
            "that folder"
        )


def _generate(base: Base, plan: Plan, folder: Path, numbers: Sequence[int], runtime: Runtime) -> None:
    """Draw the class pictures of these numbers, and write each to its file."""
    size, at_once = (plan.resolution, plan.resolution), plan.settings.sample_batch_size
    how = Sampling(plan.num_inference_steps, plan.guidance_scale, size, at_once)
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
