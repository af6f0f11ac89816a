"""Class pictures for prior preservation: the user's own, and as many as are missing made once by the base itself.

CLASS_DATA_DIR/             the user's own pictures, of any kind that can be read; nothing is ever written here
CLASS_DATA_DIR/generated/   0000.png and so on, and made_for.json: of which prompt and base they are
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..bases.families import Base
from ..bases.sampling import Sampling, sample
from ..files.atomic import replacing, write_json
from ..files.errors import InputError
from ..pictures.folder import InstanceImage, Listing, PictureFile, check_folder, decode_files, list_folder
from .config import DreamBoothConfig

GENERATED = "generated"
RECORD_NAME = "made_for.json"


def check_pictures(config: DreamBoothConfig) -> None:
    """Look at all pictures that are there, without decoding one: before minutes are spent on loading a base.

    Raises InputError for what `read_folder` would refuse by its names, captions, headers and ends.
    """
    check_folder(list_folder(config.instance_data_dir, captions=config.use_captions))
    if config.class_data_dir and Path(config.class_data_dir).expanduser().exists():
        check_folder(_own(Path(config.class_data_dir).expanduser(), config))


def class_images(
    base: Base,
    folder: Path,
    prompt: str,
    config: DreamBoothConfig,
    accelerator: Accelerator,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> tuple[InstanceImage, ...]:
    """config.num_class_images pictures of `prompt`: those in `folder`, then those in its subfolder `generated`, which
    are made where they are missing.

    The missing ones are shared out over the processes; number n has the same noise whoever makes it. Raises InputError
    for own pictures that cannot be used, and for generated ones of something else.
    """
    wanted, generated = config.num_class_images, folder / GENERATED
    folder.mkdir(parents=True, exist_ok=True)
    own = _read(_own(folder, config), config, say)
    files = [generated / f"{number:04d}.png" for number in range(wanted - len(own))]
    origin: dict[str, object] = {"prompt": prompt, "base": base.name, "resolution": config.resolution}
    if files:
        _check_origin(generated, origin)
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    accelerator.wait_for_everyone()  # all count before one writes
    if missing:
        have = f"class pictures: {wanted - len(missing)} in {folder}"
        say(f'{have}; generating {len(missing)} of "{prompt}" in {generated}')
        if accelerator.is_main_process:
            generated.mkdir(exist_ok=True)
            write_json(generated / RECORD_NAME, origin)
        accelerator.wait_for_everyone()
        _generate(base, generated, prompt, missing, config, accelerator, dtype)
        accelerator.wait_for_everyone()
    else:
        say(f'class pictures: {wanted} in {folder}, as wanted; none generated ("{prompt}")')
    made = Listing(generated, tuple(PictureFile(file, None, f"{GENERATED}/{file.name}") for file in files), ())
    return (*own, *_read(made, config, say))


def _own(folder: Path, config: DreamBoothConfig) -> Listing:
    """As many of the user's own pictures in the folder as are used."""
    own = list_folder(folder, captions=config.use_captions, skip=(GENERATED,), may_be_empty=True)
    return replace(own, files=own.files[: config.num_class_images])


def _read(listing: Listing, config: DreamBoothConfig, say: Callable[[str], None]) -> tuple[InstanceImage, ...]:
    assert config.resolution is not None
    pictures = decode_files(listing, resolution=config.resolution)
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


def _generate(
    base: Base,
    folder: Path,
    prompt: str,
    numbers: Sequence[int],
    config: DreamBoothConfig,
    accelerator: Accelerator,
    dtype: torch.dtype,
) -> None:
    """Make this process's share of the pictures of those numbers."""
    assert config.num_inference_steps is not None
    assert config.guidance_scale is not None
    assert config.resolution is not None
    size = (config.resolution, config.resolution)
    how = Sampling(config.num_inference_steps, config.guidance_scale, size, config.sample_batch_size)
    share = numbers[accelerator.process_index :: accelerator.num_processes]
    with tqdm(total=len(share), desc="class pictures", disable=not accelerator.is_main_process) as bar:
        for start in range(0, len(share), how.batch_size):
            part = share[start : start + how.batch_size]
            seeds = [(config.seed, 1_000_000 + n) for n in part]
            pictures = sample(base, [prompt] * len(part), seeds, how, accelerator.device, dtype, bar.update)
            for n, picture in zip(part, pictures, strict=True):
                with replacing(folder / f"{n:04d}.png") as temporary:
                    picture.save(temporary, format="PNG")
