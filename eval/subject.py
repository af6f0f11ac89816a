"""The DreamBooth protocol: pictures of a subject under 25 prompts, scored by DINO, CLIP-I and CLIP-T.

Pictures are drawn in batches, each from its own seed, and kept: a run that was stopped goes on with the missing ones,
and another adapter can be added later. Under `accelerate launch` they are dealt out over the processes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dash_vision.files.atomic import replacing, write_json, write_text
from dash_vision.files.lora import DIFFUSERS_NAME
from dash_vision.miniature import MINIATURE
from dash_vision.pictures.decode import Refused, read_picture
from dash_vision.runs.versions import installed_versions

from .encoders import ClipEncoder, DinoEncoder
from .figure import (
    Block,
    check_block,
    check_prompts,
    check_sampling,
    check_whole,
    read_inputs,
    sampler_settings,
)
from .prompts import CLIP, DINO, PICTURES_PER_PROMPT, PROMPT_LISTS, prompt_list
from .runs import (
    DreamBoothRun,
    InputError,
    dtype_name,
    fitting_runs,
    generate,
    load_lora,
    load_pipeline,
    move,
    read_json,
    usable_device,
)
from .scores import RESULT, differences, interval_method, intervals, markdown

FLOOR = "base (floor)"
_MOST_PROMPTS = 1000  # picture n of prompt p starts from noise 1000 n + p: the first from that of samples.png
PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "timm")


@dataclass(frozen=True)
class Protocol:
    """How pictures are made and measured. prompts: with "{}" for the subject; () takes the protocol's list of the
    subject's kind. dtype: of the base while drawing. clip, dino: backbones; None takes the protocol's, "none" leaves
    DINO out."""

    prompts: tuple[str, ...] = ()
    prompt_list: str | None = None
    images_per_prompt: int = PICTURES_PER_PROMPT
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    batch_size: int = 4
    base: str | None = None
    device: str | None = None
    dtype: torch.dtype = torch.float32
    clip: str | None = None
    dino: str | None = None
    dino_checkpoint: str | None = None
    keep_token: bool = False


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


def evaluate(block: Block, output: Path, how: Protocol, say: Callable[[str], None] = print) -> list[str]:
    """Draw what is missing, score everything, write subject.json and subject.md to `output`; a sentence for each
    adapter that was left out. Raises InputError where none is left."""
    from accelerate import PartialState

    _check(how)
    notes = check_prompts(how.prompts)
    runs, problems = check_block(block)
    first = next(iter(runs.values()))
    subject, kind = _without_article(first.subject), class_of(first)
    listed = how.prompt_list or prompt_list(kind)
    prompts = how.prompts or PROMPT_LISTS[listed]
    plan = _plan(runs, prompts, subject, kind, output, how)
    real = _real_pictures(block.subject, notes.append)
    clip, dino = _encoders(first, how)  # before hours are spent on pictures that nothing could measure
    # Under accelerate's FSDP, transformers would leave the weights of all but the first process unread; nothing is
    # split here.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    # Without being told, accelerate starts no process group where there is no GPU. The others wait for the slowest one.
    on_cpu = how.device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))
    if not state.is_main_process:
        say = _silent
    for note in notes:
        say(note)
    pipeline = None
    if how.base or any(plan.missing):  # the record names the base: one that is given is looked at
        pipeline = load_pipeline(first, how.base)
        runs, unfit = fitting_runs(pipeline, runs, how.base)
        if unfit:  # as if they had not been given
            problems += unfit
            plan = _plan(runs, prompts, subject, kind, output, how)
    settings, jobs = plan.settings, plan.jobs
    say(f'{len(jobs)} methods x {len(prompts)} prompts x {how.images_per_prompt} pictures; "{jobs[0].prompts[0]}", ...')
    state.wait_for_everyone()  # nobody may draw before all have seen what is missing
    if state.is_main_process:
        for job, record in zip(jobs, plan.records, strict=True):
            write_json(job.folder / "made.json", record)
    state.wait_for_everyone()
    shares = [pictures[state.process_index :: state.num_processes] for pictures in plan.missing]
    if any(shares):
        assert pipeline is not None
        move(pipeline, how.device or str(state.device), how.dtype)
        _draw(pipeline, list(zip(jobs, shares, strict=True)), settings, how, say)
    state.wait_for_everyone()
    if not state.is_main_process:
        return problems
    texts = tuple(p.replace("{}", subject if how.keep_token else kind) for p in prompts)
    seen = _features(real, clip, dino)
    scores = {job.name: _scores(job, texts, how.images_per_prompt, seen, clip, dino) for job in jobs}
    result = {
        "kind": "subject",
        "subject": subject,
        "class": kind,
        "prompt_list": "own" if how.prompts else listed,
        "prompts": list(jobs[0].prompts),
        "images_per_prompt": how.images_per_prompt,
        **settings,
        "base_fingerprint": next(iter(runs.values())).base_fingerprint,
        "base": how.base or first.base,
        "backbones": _backbones(clip, dino),
        "stand_in": any(name.endswith(MINIATURE) for name in _backbones(clip, dino).values()),
        "token_in_clip_t": how.keep_token,
        "ceiling": _ceiling(seen),
        "methods": _summaries(jobs, scores),
        "differences": _differences(scores),
        "intervals": interval_method(len(prompts)),
        "versions": installed_versions(PACKAGES),
    }
    write_json(output / RESULT, result)
    tables = markdown(result)
    write_text(output / "subject.md", tables)
    say(tables.split("\nPer prompt")[0].rstrip())
    say(f"per prompt: {output / 'subject.md'}")
    return problems


def _silent(line: str) -> None:
    """Only the main process speaks."""


def _check(how: Protocol) -> None:
    check_whole("images_per_prompt", how.images_per_prompt, 1)
    check_whole("batch_size", how.batch_size, 1)
    check_sampling(how.seed, how.steps, how.guidance)
    usable_device(how.device)
    if len(how.prompts) > _MOST_PROMPTS:
        raise InputError(f"--prompts are {len(how.prompts)}; it takes at most {_MOST_PROMPTS}")


def class_of(run: DreamBoothRun) -> str:
    """What the subject is, without the rare word: "cat" of the class prompt "a photo of cat"."""
    return _without_article(run.record.class_prompt.split(" of ", 1)[-1])


def _without_article(words: str) -> str:
    return re.sub(r"^(?:an?|the) ", "", words.strip(), flags=re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """What is to be drawn and how; per job what its made.json is to say, and (prompt, number) of what is missing."""

    settings: dict[str, Any]
    jobs: list[Job]
    records: list[dict[str, Any]]
    missing: list[list[tuple[int, int]]]


def _plan(
    runs: dict[str, DreamBoothRun], prompts: Sequence[str], subject: str, kind: str, output: Path, how: Protocol
) -> Plan:
    """For these runs; what the protocol leaves open is as in the first. Raises InputError."""
    first = next(iter(runs.values()))
    settings = {
        "seed": how.seed,
        **sampler_settings(first, how.steps, how.guidance),
        "resolution": int(first.argument("resolution")),
        "dtype": dtype_name(how.dtype),
    }
    bases = sorted({run.base_fingerprint for run in runs.values()})
    jobs = _jobs(runs, prompts, subject, kind, output)
    records = [_claim(job, settings, bases) for job in jobs]
    return Plan(settings, jobs, records, [_missing(job, how.images_per_prompt) for job in jobs])


def _jobs(runs: dict[str, DreamBoothRun], prompts: Sequence[str], subject: str, kind: str, output: Path) -> list[Job]:
    named: list[tuple[str, DreamBoothRun | None, str]] = [(name, run, subject) for name, run in runs.items()]
    named.append((FLOOR, None, kind))  # the rare word means nothing to the base
    jobs = [
        Job(name, run, tuple(p.replace("{}", words) for p in prompts), output / "pictures" / _slug(name))
        for name, run, words in named
    ]
    folders = [job.folder for job in jobs]
    if len(set(folders)) < len(folders):
        raise InputError(f"the adapters' names ({', '.join(runs)}) are too alike for folders; give clearer ones")
    return jobs


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.").lower() or "method"


# -- pictures


def _identity(job: Job, settings: dict[str, Any], bases: list[str]) -> dict[str, Any]:
    """bases: the base's fingerprints, one for each set of layers that the adapters adapt."""
    adapter = None
    if job.run is not None:
        adapter = hashlib.sha256((job.run.folder / DIFFUSERS_NAME).read_bytes()).hexdigest()
        bases = [job.run.base_fingerprint]
    return {"adapter": adapter, "prompts": list(job.prompts), "bases": bases, **settings}


def _claim(job: Job, settings: dict[str, Any], bases: list[str]) -> dict[str, Any]:
    """What a job's made.json is to say. Prompts may be added at the end, or left out there: the pictures of the
    others stay. Raises InputError when the folder holds pictures that were made otherwise."""
    record, now = job.folder / "made.json", _identity(job, settings, bases)
    if not record.is_file():
        if list(job.folder.glob("*.png")):
            raise InputError(f"{job.folder} holds pictures of unknown origin; remove them or give another folder by -o")
        return now
    was = read_json(record)
    if isinstance(was, dict):  # the first records had one fingerprint, and float32 alone
        was = {"dtype": "float32", "bases": [was.get("base_fingerprint")], **was}
        if isinstance(was["bases"], list) and set(was["bases"]) & set(now["bases"]):
            was["bases"] = now["bases"] = sorted({*was["bases"], *now["bases"]})
    if isinstance(was, dict) and isinstance(was.get("prompts"), list):
        both = min(len(was["prompts"]), len(job.prompts))
        if was["prompts"][:both] == now["prompts"][:both]:
            was["prompts"] = now["prompts"] = max(was["prompts"], now["prompts"], key=len)
    different = [key for key in now if not isinstance(was, dict) or was.get(key) != now[key]]
    if different:
        other = "other" if different[0].endswith("s") else "another"
        raise InputError(
            f"{job.folder} holds pictures made with {other} {different[0]}; remove it, or give another folder by -o"
        )
    return now


def _missing(job: Job, count: int) -> list[tuple[int, int]]:
    """(prompt, number) of every picture that is not there, or not whole."""
    return [(p, n) for p in range(len(job.prompts)) for n in range(count) if _load(job.picture(p, n)) is None]


def _load(path: Path) -> Image.Image | None:
    try:
        return read_picture(path).image
    except Refused:
        return None


def _draw(
    pipeline: Any,
    todo: Sequence[tuple[Job, Sequence[tuple[int, int]]]],
    settings: dict[str, Any],
    how: Protocol,
    say: Callable[[str], None],
) -> None:
    from tqdm.auto import tqdm

    sampler = {name: settings[name] for name in ("num_inference_steps", "guidance_scale")}
    for job, missing in todo:
        if not missing:
            continue
        if job.run is not None:
            load_lora(pipeline, job.run)
        with tqdm(total=len(missing), desc=job.name, disable=say is _silent) as bar:
            for start in range(0, len(missing), how.batch_size):
                batch = missing[start : start + how.batch_size]
                numbers = [n * _MOST_PROMPTS + p for p, n in batch]
                asked = [job.prompts[p] for p, _ in batch]
                pictures = generate(pipeline, asked, how.seed, numbers, settings["resolution"], sampler)
                for (p, n), picture in zip(batch, pictures, strict=True):
                    with replacing(job.picture(p, n)) as temporary:
                        picture.save(temporary, format="PNG")
                bar.update(len(batch))
        if job.run is not None:
            pipeline.unload_lora_weights()


def _real_pictures(folder: Path, say: Callable[[str], None]) -> list[Image.Image]:
    pictures, problems = read_inputs(folder, say)
    if problems:
        raise InputError(problems[0])
    return pictures


# -- scores


def _encoders(first: DreamBoothRun, how: Protocol) -> tuple[ClipEncoder, DinoEncoder | None]:
    miniature = first.base == MINIATURE and how.base is None
    device = usable_device(how.device)
    clip = ClipEncoder(how.clip or (MINIATURE if miniature else CLIP), device)
    name = how.dino or (MINIATURE if miniature and not how.dino_checkpoint else DINO)
    return clip, None if name == "none" else DinoEncoder(name, how.dino_checkpoint, device)


def _backbones(clip: ClipEncoder, dino: DinoEncoder | None) -> dict[str, str]:
    return {**({"DINO": dino.name} if dino else {}), "CLIP-I": clip.name, "CLIP-T": clip.name}


def _features(pictures: Sequence[Image.Image], clip: ClipEncoder, dino: DinoEncoder | None) -> dict[str, Tensor]:
    """Metric that compares pictures with pictures -> their unit vectors [n, d]."""
    return {**({"DINO": dino.pictures(pictures)} if dino else {}), "CLIP-I": clip.pictures(pictures)}


def _scores(
    job: Job,
    texts: Sequence[str],
    count: int,
    real: dict[str, Tensor],
    clip: ClipEncoder,
    dino: DinoEncoder | None,
) -> dict[str, list[float]]:
    """Metric -> its mean over the pictures of every prompt."""
    pictures = []
    for p in range(len(job.prompts)):
        for n in range(count):
            picture = _load(job.picture(p, n))
            if picture is None:
                raise InputError(f"{job.picture(p, n)} vanished or cannot be read; start the command again")
            pictures.append(picture)
    seen = _features(pictures, clip, dino)
    said = clip.texts(texts).repeat_interleave(count, dim=0)
    found = {metric: (features @ real[metric].T).mean(dim=1) for metric, features in seen.items()}
    found["CLIP-T"] = (seen["CLIP-I"] * said).sum(dim=1)
    return {metric: values.view(-1, count).mean(dim=1).tolist() for metric, values in found.items()}


def _ceiling(real: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Metric -> the mean similarity of two different real pictures; empty for a single one."""
    return {metric: {"mean": _between(features)} for metric, features in real.items() if len(features) > 1}


def _between(features: Tensor) -> float:
    """Mean cosine over pairs of different rows."""
    n = len(features)
    return ((features @ features.T).sum().item() - n) / (n * (n - 1))


def _summaries(jobs: Sequence[Job], scores: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    summaries = {}
    for job in jobs:
        summary = {}
        for metric, values in scores[job.name].items():
            summary[metric] = {**intervals({job.name: values})[job.name]._asdict(), "per_prompt": values}
        about = {"method": job.run.method, "run": job.run.folder.name} if job.run else {"method": "base", "run": None}
        summaries[job.name] = {**about, "pictures": f"pictures/{job.folder.name}", "scores": summary}
    return summaries


def _differences(scores: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for metric in next(iter(scores.values())):
        trained = {name: values[metric] for name, values in scores.items() if name != FLOOR}
        for (second, first), interval in differences(trained).items():
            entry = found.setdefault(f"{second} - {first}", {"methods": f"{second} - {first}", "scores": {}})
            entry["scores"][metric] = interval._asdict()
    return list(found.values())
