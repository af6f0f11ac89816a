"""Which pictures of a subject are to be drawn, which of them are there already, and the drawing of the others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from dash_vision.bases.loading import Base
from dash_vision.bases.recorded import load_lora
from dash_vision.files.atomic import replacing
from dash_vision.files.errors import InputError
from dash_vision.files.lora import DIFFUSERS_NAME
from dash_vision.pictures.decode import Refused, read_picture

from ..bases import prompt_options
from ..blocks import Sampler
from ..runs import DreamBoothRun, read_json
from ..sampling import generate, sampler_settings
from .prompts import PICTURES_PER_PROMPT

FLOOR = "base (floor)"
MOST_PROMPTS = 1000  # picture n of prompt p starts from noise 1000 n + p: the first from that of samples.png


@dataclass(frozen=True)
class Protocol:
    """How pictures are made and measured. prompts: with "{}" for the subject; () takes the protocol's list of the
    subject's kind. clip, dino: backbones; None takes the protocol's, "none" leaves DINO out."""

    sampler: Sampler = field(default_factory=Sampler)
    prompts: tuple[str, ...] = ()
    prompt_list: str | None = None
    images_per_prompt: int = PICTURES_PER_PROMPT
    batch_size: int = 4
    clip: str | None = None
    dino: str | None = None
    dino_checkpoint: str | None = None
    keep_token: bool = False


@dataclass(frozen=True)
class Asked:
    """What is to be drawn. subject: "sks cat"; kind: what it is without the rare word, "cat". listed: the name of the
    list of prompts, or "own"."""

    subject: str
    kind: str
    listed: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One method's pictures: its prompts in full, its adapter (None: the base alone) and where they go."""

    name: str
    run: DreamBoothRun | None
    prompts: tuple[str, ...]
    folder: Path

    def picture(self, prompt: int, number: int) -> Path:
        """The file of picture `number` of a prompt."""
        return self.folder / f"{prompt:02d}-{number:02d}.png"


@dataclass(frozen=True)
class Plan:
    """What is to be drawn and how; per job what its made.json is to say, and (prompt, number) of what is missing."""

    settings: dict[str, Any]
    jobs: list[Job]
    records: list[dict[str, Any]]
    missing: list[list[tuple[int, int]]]


def make_plan(
    runs: dict[str, DreamBoothRun], asked: Asked, output: Path, how: Protocol, base: Mapping[str, str]
) -> Plan:
    """For these runs; what the protocol leaves open is as in the first. base: digests of what draws the pictures.
    Raises InputError."""
    first = next(iter(runs.values()))
    settings = {
        "seed": how.sampler.seed,
        **sampler_settings(first, how.sampler),
        "resolution": int(first.argument("resolution")),
        "dtype": how.sampler.dtype,
    }
    jobs = _jobs(runs, asked, output)
    drawn_by = {"base": dict(base), **prompt_options(first)}
    records = [_claim(job, settings | drawn_by) for job in jobs]
    return Plan(settings, jobs, records, [_missing(job, how.images_per_prompt) for job in jobs])


def _jobs(runs: dict[str, DreamBoothRun], asked: Asked, output: Path) -> list[Job]:
    named: list[tuple[str, DreamBoothRun | None, str]] = [(name, run, asked.subject) for name, run in runs.items()]
    named.append((FLOOR, None, asked.kind))  # the rare word means nothing to the base
    jobs = [
        Job(name, run, tuple(p.replace("{}", words) for p in asked.prompts), output / "pictures" / _slug(name))
        for name, run, words in named
    ]
    folders = [job.folder for job in jobs]
    if len(set(folders)) < len(folders):
        raise InputError(f"the adapters' names ({', '.join(runs)}) are too alike for folders; give clearer ones")
    return jobs


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.").lower() or "method"


def _identity(job: Job, settings: dict[str, Any]) -> dict[str, Any]:
    adapter = None
    if job.run is not None:
        adapter = hashlib.sha256((job.run.folder / DIFFUSERS_NAME).read_bytes()).hexdigest()
    return {"adapter": adapter, "prompts": list(job.prompts), **settings}


def _claim(job: Job, settings: dict[str, Any]) -> dict[str, Any]:
    """What a job's made.json is to say. Prompts may be added at the end, or left out there: the pictures of the
    others stay. Raises InputError when the folder holds pictures that were made otherwise."""
    record, now = job.folder / "made.json", _identity(job, settings)
    if not record.is_file():
        if list(job.folder.glob("*.png")):
            raise InputError(f"{job.folder} holds pictures of unknown origin; remove them or give another folder by -o")
        return now
    was = read_json(record)
    if not isinstance(was, dict) or was.keys() != now.keys():
        raise InputError(f"{record} is of another version of dash-vision; remove {job.folder}, or give another by -o")
    if isinstance(was["prompts"], list):
        both = min(len(was["prompts"]), len(job.prompts))
        if was["prompts"][:both] == now["prompts"][:both]:
            was["prompts"] = now["prompts"] = max(was["prompts"], now["prompts"], key=len)
    different = [key for key in now if was[key] != now[key]]
    if different:
        other = "other" if different[0].endswith("s") else "another"
        raise InputError(
            f"{job.folder} holds pictures made with {other} {different[0]}; remove it, or give another folder by -o"
        )
    return now


def _missing(job: Job, count: int) -> list[tuple[int, int]]:
    """(prompt, number) of every picture that is not there, or not whole."""
    return [(p, n) for p in range(len(job.prompts)) for n in range(count) if load_picture(job.picture(p, n)) is None]


def load_picture(path: Path) -> Image.Image | None:
    """A drawn picture; None where it is missing or not whole."""
    try:
        return read_picture(path).image
    except Refused:
        return None


def draw_missing(
    base: Base,
    todo: Sequence[tuple[Job, Sequence[tuple[int, int]]]],
    settings: dict[str, Any],
    how: Protocol,
    bars: bool,
) -> None:
    """Draw (prompt, number) of every job; settings: of the plan; bars: whether to show how far it is. Raises
    InputError."""
    for job, missing in todo:
        if not missing:
            continue
        if job.run is not None:
            load_lora(base, job.run.folder)
        with tqdm(total=len(missing), desc=job.name, disable=not bars) as bar:
            for start in range(0, len(missing), how.batch_size):
                batch = missing[start : start + how.batch_size]
                _draw_batch(base, job, batch, settings)
                bar.update(len(batch))
        if job.run is not None:
            base.pipeline.unload_lora_weights()


def _draw_batch(base: Base, job: Job, batch: Sequence[tuple[int, int]], settings: dict[str, Any]) -> None:
    sampler = {name: settings[name] for name in ("num_inference_steps", "guidance_scale")}
    numbers = [n * MOST_PROMPTS + p for p, n in batch]
    prompts = [job.prompts[p] for p, _ in batch]
    pictures = generate(base, prompts, settings["seed"], numbers, settings["resolution"], sampler)
    for (p, n), picture in zip(batch, pictures, strict=True):
        with replacing(job.picture(p, n)) as temporary:
            picture.save(temporary, format="PNG")
