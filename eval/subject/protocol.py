"""The DreamBooth protocol: pictures of a subject under 25 prompts, scored by DINO, CLIP-I and CLIP-T.

Pictures are drawn in batches, each from its own seed, and kept: a run that was stopped resumes with the missing ones,
and another adapter can be added later. Under `accelerate launch` they are dealt out over the processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dash_vision.bases.loading import Base
from dash_vision.bases.recorded import check_recorded
from dash_vision.files.atomic import write_json, write_text
from dash_vision.files.errors import InputError
from dash_vision.measures.encoders import ClipEncoder, DinoEncoder
from dash_vision.miniature import MINIATURE
from dash_vision.runs.versions import installed_versions

from ..bases import fitting_runs, load_base
from ..blocks import Block
from ..checks import check_block, check_prompts, check_sampling, check_whole, read_inputs, sampler_notes
from ..intervals import interval_method
from ..runs import DreamBoothRun
from ..sampling import move
from ..saving import check_output
from .jobs import MOST_PROMPTS, Asked, Plan, Protocol, draw_missing, make_plan
from .measures import backbones, ceiling, encoders, features, paired_differences, scores, summaries
from .prompts import PROMPT_LISTS, prompt_list
from .tables import RESULT, markdown

PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "timm")


def evaluate(block: Block, output: Path, how: Protocol, say: Callable[[str], None] = print) -> list[str]:
    """Draw what is missing, score everything, write subject.json and subject.md to `output`; a sentence for each
    adapter that was left out. Raises InputError where none is left."""
    check_output(output, folder=True)
    _check(how)
    notes = check_prompts(how.prompts)
    runs, problems = check_block(block)
    state = _processes(how)
    asked = _asked(next(iter(runs.values())), how)
    base, drawn_by = None, next(iter(runs.values())).record.base.identity
    if how.sampler.base:  # the record names the base: one that is given is looked at
        base, runs = _load(runs, how, notes, problems)
        drawn_by = base.identity()
    plan = make_plan(runs, asked, output, how, drawn_by)
    real = _real_pictures(block.subject, notes.append)
    clip, dino = encoders(
        next(iter(runs.values())), how
    )  # before hours are spent on pictures that nothing could measure
    if not state.is_main_process:
        say = _silent
    for note in [*notes, *sampler_notes(runs, how.sampler)]:
        say(note)
    if base is None and any(plan.missing):
        base, fitting = _load(runs, how, notes, problems)
        if len(fitting) < len(runs):  # as if the others had not been given
            runs = fitting
            plan = make_plan(runs, asked, output, how, drawn_by)
    count, first = how.images_per_prompt, plan.jobs[0].prompts[0]
    say(f'{len(plan.jobs)} methods x {len(asked.prompts)} prompts x {count} pictures; "{first}", ...')
    _draw(base, plan, state, how)
    if state.is_main_process:
        _measure(runs, plan, asked, how, (real, clip, dino), output, say)
    return problems


def _load(
    runs: dict[str, DreamBoothRun], how: Protocol, notes: list[str], problems: list[str]
) -> tuple[Base, dict[str, DreamBoothRun]]:
    """The base, and the runs whose adapters load in it. notes, problems: take what is to be said of it and of the
    others."""
    first = next(iter(runs.values()))
    base = load_base(first, how.sampler.base, how.sampler.dtype, how.sampler.quantize)
    notes += check_recorded(base, first.record.base, first.folder, how.sampler.base)
    runs, unfit = fitting_runs(base, runs)
    problems += unfit
    return base, runs


def _check(how: Protocol) -> None:
    check_whole("images_per_prompt", how.images_per_prompt, 1)
    check_whole("batch_size", how.batch_size, 1)
    check_sampling(how.sampler)
    if len(how.prompts) > MOST_PROMPTS:
        raise InputError(f"--prompts are {len(how.prompts)}; it takes at most {MOST_PROMPTS}")


def _asked(first: DreamBoothRun, how: Protocol) -> Asked:
    kind = class_of(first)
    listed = how.prompt_list or prompt_list(kind)
    return Asked(
        _without_article(first.subject), kind, "own" if how.prompts else listed, how.prompts or PROMPT_LISTS[listed]
    )


def class_of(run: DreamBoothRun) -> str:
    """What the subject is, without the rare word: "cat" of the class prompt "a photo of cat"."""
    return _without_article(run.record.class_prompt.split(" of ", 1)[-1])


def _without_article(words: str) -> str:
    return re.sub(r"^(?:an?|the) ", "", words.strip(), flags=re.IGNORECASE)


def _real_pictures(folder: Path, say: Callable[[str], None]) -> list[Image.Image]:
    pictures, problems = read_inputs(folder, say)
    if problems:
        raise InputError(problems[0])
    return pictures


def _processes(how: Protocol) -> Any:
    """accelerate's state of the processes that share the work."""
    from accelerate import PartialState

    # Under accelerate's FSDP, transformers would leave the weights of all but the first process unread; nothing is
    # split here.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    # Without being told, accelerate starts no process group where there is no GPU. The others wait for the slowest one.
    on_cpu = how.sampler.device == "cpu" or not torch.cuda.is_available()
    return PartialState(cpu=on_cpu, timeout=timedelta(days=1))


def _silent(line: str) -> None:
    """Only the main process speaks."""


def _draw(base: Base | None, plan: Plan, state: Any, how: Protocol) -> None:
    """Draw this process's share of what is missing, and wait for the others."""
    state.wait_for_everyone()  # nobody may draw before all have seen what is missing
    if state.is_main_process:
        for job, record in zip(plan.jobs, plan.records, strict=True):
            write_json(job.folder / "made.json", record)
    state.wait_for_everyone()
    shares = [pictures[state.process_index :: state.num_processes] for pictures in plan.missing]
    if base is not None and any(shares):
        move(base, how.sampler.device or str(state.device), how.sampler.dtype)
        todo = list(zip(plan.jobs, shares, strict=True))
        draw_missing(base, todo, plan.settings, how, bars=state.is_main_process)
    state.wait_for_everyone()


def _measure(
    runs: dict[str, DreamBoothRun],
    plan: Plan,
    asked: Asked,
    how: Protocol,
    seen_by: tuple[Sequence[Image.Image], ClipEncoder, DinoEncoder | None],
    output: Path,
    say: Callable[[str], None],
) -> None:
    """Score the pictures of a plan, write the result and say it. seen_by: the real pictures, and the encoders."""
    real, clip, dino = seen_by
    words = asked.subject if how.keep_token else asked.kind
    texts = tuple(prompt.replace("{}", words) for prompt in asked.prompts)
    seen = features(real, clip, dino)
    found = {job.name: scores(job, texts, how.images_per_prompt, seen, clip, dino) for job in plan.jobs}
    first = next(iter(runs.values()))
    result = {
        "kind": "subject",
        "subject": asked.subject,
        "class": asked.kind,
        "prompt_list": asked.listed,
        "prompts": list(plan.jobs[0].prompts),
        "images_per_prompt": how.images_per_prompt,
        **plan.settings,
        "base_fingerprint": first.base_fingerprint,
        "base": how.sampler.base or first.base,
        "backbones": backbones(clip, dino),
        "stand_in": any(name.endswith(MINIATURE) for name in backbones(clip, dino).values()),
        "token_in_clip_t": how.keep_token,
        "ceiling": ceiling(seen),
        "methods": summaries(plan.jobs, found),
        "differences": paired_differences(found),
        "intervals": interval_method(len(asked.prompts)),
        "versions": installed_versions(PACKAGES),
    }
    write_json(output / RESULT, result)
    tables = markdown(result)
    write_text(output / "subject.md", tables)
    say(tables.split("\nPer prompt")[0].rstrip())
    say(f"per prompt: {output / 'subject.md'}")
