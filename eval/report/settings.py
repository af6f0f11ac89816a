"""The settings and versions of runs on the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

from dash_vision.drawing.numbers import shortest

from ..colours import method_colours
from ..runs import DreamBoothRun, Run, VtabRun
from ..vtab.rows import BLANK
from .html import Cell, number, scrolling, table

KINDS = ((DreamBoothRun, "DreamBooth"), (VtabRun, "VTAB"))
PLACES = ("output_dir", "cache_dir", "latent_cache_dir")  # where a run wrote is no setting of it


def last_loss(run: DreamBoothRun) -> float | None:
    """The mean loss of the last tenth of the steps."""
    last = run.losses[-max(1, len(run.losses) // 10) :]
    return statistics.fmean(last) if last else None


def dreambooth_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The DreamBooth runs with what is told of a run at first; "" without any."""
    of_methods = method_colours([run.method for run in runs])
    body = [
        [
            Cell(name, colour=of_methods[run.method]),
            number(run.argument("rank")),
            number(run.argument("dash_k")),
            number(run.record.trainable_parameters),
            number(run.record.steps),
            number(run.launch),
            Cell(shortest(run.argument("learning_rate")), float(run.argument("learning_rate"))),
            Cell(str(run.record.seed)),
            number(last_loss(run), 4),
            number(run.record.timings.get("train"), 1),
        ]
        for name, run in zip(names, runs, strict=True)
        if isinstance(run, DreamBoothRun)
    ]
    if not body:
        return ""
    head = ["run", "rank", "k", "parameters", "steps", "launch", "rate", "seed", "last loss", "seconds"]
    note = "DreamBooth runs. last loss: mean of the last tenth of the steps; seconds: of training alone."
    return table(head, body, note)


def settings(runs: Sequence[Run], names: Sequence[str]) -> str:
    """One table for each kind of run, at first of the settings in which its runs differ."""
    parts = []
    for kind, title in KINDS:
        chosen = [(name, run) for name, run in zip(names, runs, strict=True) if isinstance(run, kind)]
        columns = [
            {key: in_plain_words(v) for key, v in run.record.arguments.items() if key not in PLACES}
            for _, run in chosen
        ]
        if not columns:
            continue
        identity = f"settings-{title.lower()}"
        box, only = "", bool(differing(columns))
        if only:
            label = f'<input type="checkbox" class="differences" data-table="{identity}" checked> only what differs'
            box = f"<label>{label}</label>"
        heading = f"<h3>{title}</h3>" if len({type(run) for run in runs}) > 1 else ""
        parts.append(heading + box + _side_by_side(columns, [name for name, _ in chosen], identity, only))
    return "".join(parts)


def versions(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The versions and devices of the runs; "" without any."""
    if not runs:
        return ""
    columns = [{**run.record.versions, "device": run.record.device} for run in runs]
    unlike = differing(columns)
    said = f"They differ in {', '.join(unlike)}." if unlike else "The same for every run."
    if len(runs) == 1:
        said = "What the run was made with."
    every = _side_by_side(columns, names, "all-versions")
    return f"<p>{escape(said)}</p><details><summary>All versions</summary>{every}</details>"


def differing(columns: Sequence[dict[str, str]]) -> list[str]:
    """The names whose values differ among the columns that have them."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [key for key in keys if len({column[key] for column in columns if key in column}) > 1]


def _side_by_side(
    columns: Sequence[dict[str, str]], names: Sequence[str], identity: str, only_differing: bool = False
) -> str:
    """Names down, runs across; the rows in which runs differ are marked, those without any value left out."""
    keys = list(dict.fromkeys(key for column in columns for key, value in column.items() if value != BLANK))
    unlike = set(differing(columns))
    head = "".join(f'<th scope="col" class="words">{escape(name)}</th>' for name in ("", *names))
    shown = ' class="only-differences"' if only_differing else ""
    lines = []
    for key in keys:
        values = "".join(f'<td class="words">{escape(column.get(key, BLANK))}</td>' for column in columns)
        kind = "differs" if key in unlike else "same"
        lines.append(f'<tr class="{kind}"><th scope="row">{escape(key)}</th>{values}</tr>')
    content = f'<table id="{identity}"{shown}><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return scrolling(content, f"table {identity.replace('-', ' ')}")


def in_plain_words(value: Any) -> str:
    """A setting as a reader sees it."""
    if value is None or value == "" or value == []:
        return BLANK
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return shortest(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_plain_words(v)}" for key, v in value.items())
    if isinstance(value, list):
        return "; ".join(in_plain_words(v) for v in value)
    return str(value)
