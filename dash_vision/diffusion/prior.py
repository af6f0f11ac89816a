"""Class pictures for prior preservation: made once by the base itself, then reused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..bases.families import Base
from ..bases.sampling import Sampling, sample
from ..files.atomic import replacing, write_json
from ..files.errors import InputError
from .config import DreamBoothConfig


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


def class_images(
    base: Base,
    folder: Path,
    prompt: str,
    config: DreamBoothConfig,
    accelerator: Accelerator,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> None:
    """Make sure that `folder` holds config.num_class_images pictures of `prompt`; generate what is missing.

    Pictures that are there, the user's own included, are counted and kept. The missing ones are shared out over the
    processes; number n has the same noise whoever makes it.
    """
    wanted = config.num_class_images
    origin: dict[str, object] = {"prompt": prompt, "base": base.name, "resolution": config.resolution}
    folder.mkdir(parents=True, exist_ok=True)
    _check_origin(folder, origin)
    there = [p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]
    accelerator.wait_for_everyone()  # all count before one writes
    missing = wanted - len(there)
    if missing <= 0:
        say(f'class pictures: {len(there)} in {folder}, as wanted; none generated ("{prompt}")')
        return
    names = {p.stem for p in there}
    numbers = [n for n in range(wanted) if f"{n:04d}" not in names][:missing]
    mine = numbers[accelerator.process_index :: accelerator.num_processes]
    say(f'class pictures: {len(there)} in {folder}; generating {missing} of "{prompt}"')
    if accelerator.is_main_process:
        write_json(_record(folder), origin)
    assert config.num_inference_steps is not None
    assert config.guidance_scale is not None
    assert config.resolution is not None
    how = Sampling(
        config.num_inference_steps,
        config.guidance_scale,
        (config.resolution, config.resolution),
        config.sample_batch_size,
    )
    with tqdm(total=len(mine), desc="class pictures", disable=not accelerator.is_main_process) as bar:
        for start in range(0, len(mine), how.batch_size):
            part = mine[start : start + how.batch_size]
            seeds = [(config.seed, 1_000_000 + n) for n in part]
            pictures = sample(base, [prompt] * len(part), seeds, how, accelerator.device, dtype, bar.update)
            for n, picture in zip(part, pictures, strict=True):
                with replacing(folder / f"{n:04d}.png") as temporary:
                    picture.save(temporary, format="PNG")
