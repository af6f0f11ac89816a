"""Means with bootstrap intervals, paired between methods, and the tables that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .runs import EvalError, read_json

RESULT = "subject.json"
DRAWS = 10_000
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean with its percentile bootstrap interval of LEVEL."""

    mean: float
    low: float
    high: float


def intervals(values: Mapping[str, Sequence[float]], seed: int = 0) -> dict[str, Interval]:
    """Mean and interval of every method's values, one per prompt in the same order for all.

    Whole prompts are drawn with replacement, since pictures of one prompt resemble each other.
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
    draws = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values[draws].mean(axis=1), [tail, 100 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a subject.json: means, differences between methods, and every prompt."""
    metrics = list(result["backbones"])
    lines = [f"# {result['subject']}: the DreamBooth protocol", "", " ".join(describe(result)), ""]
    lines += _table(["", *metrics], [[row["name"], *cells(row, metrics)] for row in rows(result)])
    if result["differences"]:
        lines += ["", f"Paired differences, {LEVEL:.0%} bootstrap intervals over prompts:", ""]
        lines += _table(["", *metrics], [[d["methods"], *cells(d, metrics, "+.3f")] for d in result["differences"]])
    lines += ["", "Per prompt, the mean of its pictures:", ""]
    columns = [(name, m) for name in result["methods"] for m in metrics if m in result["methods"][name]["scores"]]
    body = [
        [prompt, *(f"{result['methods'][name]['scores'][m]['per_prompt'][i]:.3f}" for name, m in columns)]
        for i, prompt in enumerate(result["prompts"])
    ]
    lines += _table(["prompt", *(f"{name}, {m}" for name, m in columns)], body)
    return "\n".join(lines) + "\n"


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
        f"In brackets: {LEVEL:.0%} bootstrap intervals over prompts, of this one subject.",
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
    """A subject.json. Raises EvalError when it is cut short or of another version."""
    path = folder / RESULT
    result = read_json(path)
    try:
        whole = result["kind"] == "subject" and markdown(result)
        whole = whole and all(np.isfinite(s["mean"]) for m in result["methods"].values() for s in m["scores"].values())
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        whole = False
    if not whole:
        raise EvalError(f"{path} is no result of this version of `python -m eval subject`; make it again")
    return result
