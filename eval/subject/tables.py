"""The tables of a measured subject, and its result on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dash_vision.drawing.numbers import fixed
from dash_vision.files.errors import InputError

from ..intervals import LEVEL
from ..runs import read_json
from .prompts import PICTURES_PER_PROMPT

RESULT = "subject.json"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a subject.json: means, differences between methods, and every prompt."""
    metrics = list(result["backbones"])
    lines = [f"# {result['subject']}: {_title(result)}", "", " ".join(describe(result)), ""]
    lines += _table(["", *metrics], [[row["name"], *cells(row, metrics)] for row in rows(result)])
    if result["differences"]:
        lines += ["", "Paired differences, prompt by prompt:", ""]
        lines += _table(["", *metrics], [[d["methods"], *cells(d, metrics, sign=True)] for d in result["differences"]])
    lines += ["", "Per prompt, the mean of its pictures:", ""]
    columns = [(name, m) for name in result["methods"] for m in metrics if m in result["methods"][name]["scores"]]
    body = [
        [prompt, *(fixed(result["methods"][name]["scores"][m]["per_prompt"][i], 3) for name, m in columns)]
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
        _intervals_in_words(result["intervals"]),
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


def cells(row: Mapping[str, Any], metrics: Sequence[str], sign: bool = False) -> list[str]:
    """A row's scores as text: the mean, and its interval where it has one; sign: with their signs."""
    return [_text(row["scores"].get(metric), sign) for metric in metrics]


def _text(score: Mapping[str, Any] | None, sign: bool) -> str:
    if score is None:
        return "–"  # noqa: RUF001
    mean = fixed(score["mean"], 3, sign)
    if score.get("low") is None:
        return mean
    return f"{mean} [{fixed(score['low'], 3, sign)}, {fixed(score['high'], 3, sign)}]"


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
        methods = result["methods"].values()
        whole = whole and all(np.isfinite(s["mean"]) for m in methods for s in m["scores"].values())
        whole = whole and all(isinstance(m["method"], str) and m["steps"] >= 0 for m in methods)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"{path} is no result of this version of `python -m eval subject`; make it again")
    return result
