"""Scores of pictures: how much they resemble the subject, and how well they agree with their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from dash_vision.bases.devices import usable_device
from dash_vision.files.errors import InputError
from dash_vision.measures.encoders import ClipEncoder, DinoEncoder
from dash_vision.measures.names import CLIP, DINO
from dash_vision.measures.similarity import adherence, between, likeness
from dash_vision.miniature import MINIATURE

from ..intervals import differences, intervals
from ..runs import DreamBoothRun
from .jobs import FLOOR, Job, Protocol, load_picture


def encoders(first: DreamBoothRun, how: Protocol) -> tuple[ClipEncoder, DinoEncoder | None]:
    miniature = first.embedded and how.sampler.base is None
    device = usable_device(how.sampler.device)
    clip = ClipEncoder(how.clip or (MINIATURE if miniature else CLIP), device)
    name = how.dino or (MINIATURE if miniature and not how.dino_checkpoint else DINO)
    return clip, None if name == "none" else DinoEncoder(name, how.dino_checkpoint, device)


def backbones(clip: ClipEncoder, dino: DinoEncoder | None) -> dict[str, str]:
    return {**({"DINO": dino.name} if dino else {}), "CLIP-I": clip.name, "CLIP-T": clip.name}


def features(pictures: Sequence[Image.Image], clip: ClipEncoder, dino: DinoEncoder | None) -> dict[str, Tensor]:
    """Metric that compares pictures with pictures -> their unit vectors [n, d]."""
    return {**({"DINO": dino.pictures(pictures)} if dino else {}), "CLIP-I": clip.pictures(pictures)}


def scores(
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
            picture = load_picture(job.picture(p, n))
            if picture is None:
                raise InputError(f"{job.picture(p, n)} vanished or cannot be read; start the command again")
            pictures.append(picture)
    seen = features(pictures, clip, dino)
    said = clip.texts(texts).repeat_interleave(count, dim=0)
    found = {metric: likeness(features, real[metric]) for metric, features in seen.items()}
    found["CLIP-T"] = adherence(seen["CLIP-I"], said)
    return {metric: values.view(-1, count).mean(dim=1).tolist() for metric, values in found.items()}


def ceiling(real: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Metric -> the mean similarity of two different real pictures; empty for a single one."""
    return {metric: {"mean": between(features)} for metric, features in real.items() if len(features) > 1}


def summaries(jobs: Sequence[Job], scores: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    summaries = {}
    for job in jobs:
        summary = {}
        for metric, values in scores[job.name].items():
            summary[metric] = {**intervals({job.name: values})[job.name]._asdict(), "per_prompt": values}
        about: dict[str, Any] = {"method": "base", "run": None, "steps": 0}
        if job.run:
            about = {"method": job.run.method, "run": job.run.folder.name, "steps": job.run.steps_of_adapter}
        summaries[job.name] = {**about, "pictures": f"pictures/{job.folder.name}", "scores": summary}
    return summaries


def paired_differences(scores: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for metric in next(iter(scores.values())):
        trained = {name: values[metric] for name, values in scores.items() if name != FLOOR}
        for (second, first), interval in differences(trained).items():
            entry = found.setdefault(f"{second} - {first}", {"methods": f"{second} - {first}", "scores": {}})
            entry["scores"][metric] = interval._asdict()
    return list(found.values())
