"""Differences between rows, paired by task and seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from dash_vision.drawing.numbers import fixed
from dash_vision.files.errors import InputError
from dash_vision.runs.record import METHODS

from ..intervals import student
from .columns import TASKS
from .rows import BLANK, MINUS
from .text import Table, cells, latex_table, pipe, plain, tex

ENOUGH = 3  # tasks for an interval over them; of two it would span a dozen times their gap
_NOTE = (
    "differences in percentage points between runs of one backbone, task, split and seed: mean over seeds, in brackets "
    "the smallest and the largest; last their mean over tasks and, of three tasks or more, its 95% interval (Student's "
    "t over tasks, whose seeds are averaged)"
)
# (name, backbone) -> (task, whether its split is another one) -> seed -> accuracy
_Accuracies = dict[tuple[str, str], dict[tuple[str, bool], Mapping[int, float]]]


def differences(tables: Sequence[Table], against: str, style: str) -> str:
    """Every measured row less the row `against` of its backbone, paired by task and seed, as a table. Raises InputError
    where there is no such row or nothing to set against it."""
    if style == "csv":
        raise InputError("--against is a second table, which one CSV does not hold; leave it out, or --style csv")
    found: _Accuracies = {}
    for row in (row for one in tables for row in one.rows):
        of_row = {(task, task in row.unofficial): accuracies for task, accuracies in row.cells.items()}
        found.setdefault((row.name, row.backbone), {}).update(of_row)
    bases = {backbone: of_row for (name, backbone), of_row in found.items() if name == against}
    if not bases:
        raise InputError(_no_row(found, against))
    there = {task for of_row in bases.values() for task, _ in of_row}
    columns = [*(task for task in TASKS if task in there), *sorted(there - TASKS.keys())]
    lines = [
        _line(name, against, of_row, bases[backbone], columns)
        for (name, backbone), of_row in found.items()
        if name != against and backbone in bases
    ]
    compared = [line for line in lines if line]
    if not compared:
        raise InputError(_nothing_shared(found, against))
    head = ["method", "less", *(TASKS.get(task, task) for task in columns), "pairs", "mean over tasks"]
    return _as_text(head, compared, style)


def _no_row(found: _Accuracies, against: str) -> str:
    """What to run where there is no row of that name."""
    named = ", ".join(dict.fromkeys(name for name, _ in found))
    said = f"--against is {against}, but no row is called that; the rows are {named}"
    return f"{said}. For a row of {against} run: {_command(found, against)}" if against in METHODS else said


def _command(found: _Accuracies, method: str) -> str:
    """The command that trains a method on the tasks and seeds that are there."""
    tasks = list(dict.fromkeys(task for of_row in found.values() for task, _ in of_row))
    seeds = sorted({seed for of_row in found.values() for accuracies in of_row.values() for seed in accuracies})
    return (
        f"python train_vtab.py --task {' '.join(tasks)} --methods {method} --seeds {' '.join(map(str, seeds))}, with "
        "the other settings of the runs that are there"
    )


def _nothing_shared(found: _Accuracies, against: str) -> str:
    others = [name for name, _ in found if name != against]
    if not others:
        return (
            f"--against is {against}, the only row there is; train another method to compare, for instance: "
            f"{_command(found, 'dash' if against != 'dash' else 'lora')}"
        )
    return (
        f"no other row shares a backbone, a task and a seed with {against}; train both with the same settings, or "
        "leave --against out"
    )


def _line(
    name: str,
    against: str,
    of_row: Mapping[tuple[str, bool], Mapping[int, float]],
    base: Mapping[tuple[str, bool], Mapping[int, float]],
    columns: Sequence[str],
) -> list[str]:
    """A row of the table; empty where it shares nothing with the base."""
    shared = {key: gaps_of(of_row[key], base[key]) for key in of_row.keys() & base.keys()}
    gaps = [shared.get((task, False), []) or shared.get((task, True), []) for task in columns]
    pairs = sum(map(len, gaps))
    if not pairs:
        return []
    shown = [_mean(one, lambda g: (min(g), max(g))) for one in gaps]
    # Seeds of one task resemble each other: what a difference should carry over to is other tasks.
    means = [statistics.fmean(one) for one in gaps if one]
    return [name, against, *shown, str(pairs), _mean(means, student if len(means) >= ENOUGH else None)]


def gaps_of(measured: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Of every seed that both have, one accuracy less the other."""
    return [measured[seed] - other[seed] for seed in sorted(measured.keys() & other.keys())]


def _mean(gaps: Sequence[float], ends: Callable[[Sequence[float]], tuple[float, float]] | None) -> str:
    """Their mean, and of two or more the two `ends`, if any, in brackets."""
    if not gaps:
        return BLANK
    mean = fixed(statistics.fmean(gaps), 2, sign=True)
    if len(gaps) == 1 or ends is None:
        return mean
    low, high = ends(gaps)
    return f"{mean} ({fixed(low, 2, sign=True)} to {fixed(high, 2, sign=True)})"


def _as_text(head: Sequence[str], lines: Sequence[list[str]], style: str) -> str:
    if style == "latex":
        minus = [[*line[:2], *(cell.replace("-", MINUS) for cell in line[2:])] for line in lines]
        body = [cells(map(tex, line)) for line in minus]
        return latex_table("ll" + "r" * (len(head) - 2), [cells(map(tex, head))], body, [_NOTE])
    rules = ["---", "---", *["---:"] * (len(head) - 2)]
    body = [pipe([plain(cell) for cell in line]) for line in lines]
    return "\n".join([pipe(head), pipe(rules), *body, "", f"- {_NOTE}"]) + "\n"
