"""Class pictures for prior preservation: made once by the base itself, then reused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from ..bases.loading import Base
from ..bases.sampling import Sampling, sample
from ..files.atomic import replacing, write_json
from ..files.errors import InputError
from ..runs.runtime import Runtime
from .plan import Plan

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FIRST_NOISE = 1_000_000  # the numbers below are those of samples.png


def _record(folder: Path) -> Path:
    """What the generated pictures in a folder are of: a file beside it, since inside it would be a stray one."""
    return folder.with_name(folder.name + ".json")


def _check_origin(folder: Path, now: dict[str, object]) -> None:
    """Raises InputError when the folder's generated pictures are of something else. A user's own have no record."""
    if not _record(folder).is_file():
        return
    try:
        was = json.loads(_record(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        was = None
    if was != now:
        raise InputError(
            f"the class pictures in {folder} were generated for {was}, this run wants {now}; give another "
            f"--class_data_dir, or delete that folder and {_record(folder).name}"
        )


def make_class_images(base: Base, plan: Plan, runtime: Runtime, say: Callable[[str], None]) -> None:
    """Make sure that the plan's class folder holds num_class_images pictures of the class prompt.

    Pictures that are there, the user's own included, are counted and kept. The missing ones are shared out over the
    processes; number n has the same noise whoever makes it. Raises InputError when the folder's pictures were generated
    for something else.
    """
    wanted, folder, prompt = plan.settings.num_class_images, plan.class_folder, plan.prompts.class_
    origin: dict[str, object] = {"prompt": prompt, "base": base.name, "resolution": plan.resolution}
    folder.mkdir(parents=True, exist_ok=True)
    _check_origin(folder, origin)
    present = [p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES]
    runtime.wait()  # all count before one writes
    missing = wanted - len(present)
    if missing <= 0:
        say(f'class pictures: {len(present)} in {folder}, as wanted; none generated ("{prompt}")')
        return
    names = {p.stem for p in present}
    numbers = [n for n in range(wanted) if f"{n:04d}" not in names][:missing]
    say(f'class pictures: {len(present)} in {folder}; generating {missing} of "{prompt}"')
    if runtime.main:
        write_json(_record(folder), origin)
    _generate(base, plan, numbers[runtime.rank :: runtime.world], runtime)


def _generate(base: Base, plan: Plan, numbers: list[int], runtime: Runtime) -> None:
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
                with replacing(plan.class_folder / f"{n:04d}.png") as temporary:
                    picture.save(temporary, format="PNG")
