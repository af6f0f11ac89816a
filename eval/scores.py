"""Means with intervals over prompts, paired between methods, and the tables that show them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .prompts import PICTURES_PER_PROMPT
from .runs import InputError, read_json

RESULT = "subject.json"
DRAWS = 10_000
LEVEL = 0.95
FEW = 10  # values; with fewer a percentile bootstrap is too narrow

# Student's t at 97.5% for 1 to 30 degrees of freedom, as tabulated; beyond, 1.96 + 2.46 / n.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Interval(NamedTuple):
    """A mean with its interval of LEVEL, by the method of `interval_method`; None where one value has none."""

    mean: float
    low: float | None
    high: float | None


def interval_method(count: int) -> str | None:
    """How the interval of the mean of `count` values is found; None for a single value, which has no interval."""
    if count < 2:
        return None
    return "Student's t" if count < FEW else "percentile bootstrap"


def student(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the values' mean, by Student's t.

    With a handful of values a percentile bootstrap is too narrow. One value has no interval: infinite ends.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return -math.inf, math.inf
    freedom = len(values) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.46 / freedom
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def intervals(values: Mapping[str, Sequence[float]], seed: int = 0) -> dict[str, Interval]:
    """Mean and interval of every method's values, one per prompt in the same order for all.

    The prompt is the unit, not the picture, since pictures of one prompt resemble each other.
    """
    return {name: _interval(np.asarray(v, float), seed) for name, v in values.items()}


def differences(values: Mapping[str, Sequence[float]], seed: int = 0) -> dict[tuple[str, str], Interval]:
    """(second, first) -> second minus first for every pair of methods, paired prompt by prompt."""
    names = list(values)
    return {
        (second, first): _interval(np.asarray(values[second], float) - np.asarray(values[first], float), seed)
        for i, second in enumerate(names)
        for first in names[:i]
    }


def _interval(values: np.ndarray, seed: int) -> Interval:
    method = interval_method(len(values))
    mean = float(values.mean())
    if method is None:
        return Interval(mean, None, None)
    if method == "Student's t":
        return Interval(mean, *student(values.tolist()))
    draws = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values[draws].mean(axis=1), [tail, 100 - tail])
    return Interval(mean, float(low), float(high))


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a subject.json: means, differences between methods, and every prompt."""
    metrics = list(result["backbones"])
    lines = [f"# {result['subject']}: {_title(result)}", "", " ".join(describe(result)), ""]
    lines += _table(["", *metrics], [[row["name"], *cells(row, metrics)] for row in rows(result)])
    if result["differences"]:
        lines += ["", "Paired differences, prompt by prompt:", ""]
        lines += _table(["", *metrics], [[d["methods"], *cells(d, metrics, "+.3f")] for d in result["differences"]])
    lines += ["", "Per prompt, the mean of its pictures:", ""]
    columns = [(name, m) for name in result["methods"] for m in metrics if m in result["methods"][name]["scores"]]
    body = [
        [prompt, *(f"{result['methods'][name]['scores'][m]['per_prompt'][i]:.3f}" for name, m in columns)]
        for i, prompt in enumerate(result["prompts"])
    ]
    lines += _table(["prompt", *(f"{name}, {m}" for name, m in columns)], body)
    return "\n".join(lines) + "\n"


def _title(result: Mapping[str, Any]) -> str:
    """The protocol's name only for its own prompts with its number of pictures or more."""
    count, own = result["images_per_prompt"], result["prompt_list"] == "own"
    if not own and count >= PICTURES_PER_PROMPT:
        return "the DreamBooth protocol"
    prompts = "own prompts" if own else "the DreamBooth protocol's prompts"
    return f"{prompts}, {count} picture{'s' if count > 1 else ''} each"


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ceiling, methods and floor in the order of the table, each with a name and its scores by metric."""
    ceiling = {"name": "real pictures (ceiling)", "scores": result["ceiling"]}
    methods = [{"name": name, "scores": method["scores"]} for name, method in result["methods"].items()]
    return [ceiling, *methods]


def describe(result: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before comparing: sentences."""
    by_name: dict[str, list[str]] = {}
    for metric, name in result["backbones"].items():
        by_name.setdefault(name, []).append(metric)
    backbones = ", ".join(f"{' and '.join(metrics)} by {name}" for name, metrics in by_name.items())
    count = result["images_per_prompt"]
    token = "with" if result["token_in_clip_t"] else "without"
    sentences = [
        f"{len(result['prompts'])} prompts, {count} picture{'s' if count > 1 else ''} each, seed {result['seed']}; "
        f"{result['num_inference_steps']} sampling steps, guidance {result['guidance_scale']:g}.",
        f"{backbones}; CLIP-T compares with the prompt {token} the rare word.",
        # Results of older versions do not say, and have bootstrap intervals whatever the number of prompts.
        _intervals_in_words(result.get("intervals", "percentile bootstrap")),
    ]
    if "DINO" not in result["backbones"]:
        sentences.append("DINO was left out.")
    if result["stand_in"]:
        sentences.append("Backbones of the embedded miniature stand in: not comparable with published numbers.")
    above = [
        metric
        for metric, real in result["ceiling"].items()
        if any(method["scores"][metric]["mean"] > real["mean"] for method in result["methods"].values())
    ]
    if above:
        sentences.append(
            f"By {' and '.join(above)} generated pictures resemble the real ones more than these resemble each other: "
            "it sees more than the subject, and the real pictures are no ceiling."
        )
    return sentences


def _intervals_in_words(method: str | None) -> str:
    if method is None:
        return "A single prompt: no intervals."
    return f"In brackets: {LEVEL:.0%} intervals over prompts ({method}), of this one subject."


def cells(row: Mapping[str, Any], metrics: Sequence[str], form: str = ".3f") -> list[str]:
    """A row's scores as text: the mean, and its interval where it has one."""
    return [_text(row["scores"].get(metric), form) for metric in metrics]


def _text(score: Mapping[str, Any] | None, form: str) -> str:
    if score is None:
        return "–"  # noqa: RUF001
    mean = format(score["mean"], form)
    return mean if score.get("low") is None else f"{mean} [{score['low']:{form}}, {score['high']:{form}}]"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(head), line(["---"] * len(head)), *map(line, body)]


def read_result(folder: Path) -> dict[str, Any]:
    """A subject.json. Raises InputError when it is cut short or of another version."""
    path = folder / RESULT
    result = read_json(path)
    try:
        whole = result["kind"] == "subject" and markdown(result)
        whole = whole and all(np.isfinite(s["mean"]) for m in result["methods"].values() for s in m["scores"].values())
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"{path} is no result of this version of `python -m eval subject`; make it again")
    return result
