"""Measured subjects on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dash_vision.files.errors import InputError
from dash_vision.runs.record import RECORDS

from ..colours import method_colours
from ..runs import distinct
from ..subject.tables import RESULT, cells, describe, read_result, rows
from .html import TILE, Cell, Shown, as_data, compare, enlargeable, table


def subject_results(
    paths: Sequence[Path],
) -> tuple[list[tuple[Path, dict[str, Any]]], list[Path], list[str]]:
    """Results of `python -m eval subject` at the paths or below them, the paths that may hold runs, and what cannot be
    read."""
    results, rest, problems = [], [], []
    seen: set[str] = set()
    for path in paths:
        folders = [path] if (path / RESULT).is_file() else sorted(file.parent for file in path.rglob(RESULT))
        if not folders or any(record for name in RECORDS for record in path.rglob(name)):
            rest.append(path)
        for folder in distinct(folders, seen):
            try:
                results.append((folder, read_result(folder)))
            except InputError as error:
                problems.append(str(error))
    return results, rest, problems


def subject_html(folder: Path, result: dict[str, Any]) -> str:
    """The tables of one subject, and for every prompt a slider between two methods or the base and one."""
    metrics = list(result["backbones"])
    parts = [f"<h3>{escape(result['subject'])}</h3>", _scores(result, metrics)]
    if result["differences"]:
        paired = [
            [
                Cell(d["methods"]),
                *(
                    Cell(text, d["scores"][m]["mean"])
                    for m, text in zip(metrics, cells(d, metrics, sign=True), strict=True)
                ),
            ]
            for d in result["differences"]
        ]
        parts.append(table(["paired difference", *metrics], paired, "Differences between methods, paired by prompt."))
    tiles = _tiles(folder, result)
    if tiles:
        parts.append(
            f'<p class="caption">The first picture of every prompt.</p><div class="tiles pairs">{"".join(tiles)}</div>'
        )
    return "".join(parts)


def _scores(result: Mapping[str, Any], metrics: Sequence[str]) -> str:
    of_methods = method_colours([method["method"] for method in result["methods"].values()])
    colours = {name: of_methods[method["method"]] for name, method in result["methods"].items()}
    body = [
        [
            Cell(row["name"], colour=colours.get(row["name"])),
            *(
                Cell(text, row["scores"].get(m, {}).get("mean"))
                for m, text in zip(metrics, cells(row, metrics), strict=True)
            ),
        ]
        for row in rows(result)
    ]
    return table(["method", *metrics], body, " ".join(describe(result)))


def pair_of(result: Mapping[str, Any]) -> list[str]:
    """The names of a LoRA and a LoRA-Dash method of the same number of training steps; else of the base and the first
    method."""
    methods: dict[str, dict[str, Any]] = result["methods"]
    dash = [name for name, m in methods.items() if m["method"] == "LoRA-Dash"]
    lora = [name for name, m in methods.items() if m["method"] == "LoRA"]
    fair = [[a, b] for b in dash for a in lora if methods[a]["steps"] == methods[b]["steps"]]
    base = [name for name, m in methods.items() if m["run"] is None]
    trained = [name for name, m in methods.items() if m["run"] is not None]
    return fair[0] if fair else [*base[:1], *trained[:1]]


def _tiles(folder: Path, result: Mapping[str, Any]) -> list[str]:
    """The first picture of every prompt, by two methods where both have it."""
    chosen = pair_of(result)
    tiles = []
    for number, prompt in enumerate(result["prompts"]):
        shown = [one for name in chosen if (one := _shown(folder, result, name, number, prompt))]
        if len(shown) == 2:
            tiles.append(compare(shown[0], shown[1], prompt))
        elif len(chosen) == len(shown) == 1:
            tiles.append(enlargeable(shown[0].data, shown[0].alt, prompt, room=TILE))
    return tiles


def _shown(folder: Path, result: Mapping[str, Any], name: str, number: int, prompt: str) -> Shown | None:
    """A method's picture of a prompt; None where the pictures are not kept with the result."""
    method = result["methods"][name]
    try:
        data = as_data((folder / method["pictures"] / f"{number:02d}-00.png").read_bytes())
    except (OSError, ValueError):
        return None
    more = f"step {method['steps']:,}" if method["run"] is not None else "without training"
    colour = method_colours([method["method"]])[method["method"]]
    return Shown(name, more, data, f"{name}: {prompt}, generated picture", colour)
