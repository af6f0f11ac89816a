"""The accuracies of VTAB runs on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dash_vision.drawing.numbers import fixed

from ..colours import method_colours
from ..runs import VtabRun
from ..vtab.columns import GROUPS, MEAN_OF_GROUPS, TASKS, Columns
from ..vtab.rows import BLANK, OTHER_SPLIT, Row, best_cells, values
from ..vtab.text import in_words
from .html import Cell, number, table
from .settings import PLACES, differing, in_plain_words


def accuracy(runs: Sequence[VtabRun]) -> str:
    """The table of VTAB-1k papers of what was tested, one of val200 for what was not, then every run."""
    if not runs:
        return ""
    names = row_names(runs)
    colours = _colours(runs, names)
    tested, untested = by_row(runs, tested=True), by_row(runs, tested=False)
    notes = [
        f"{run.record.task} is {'synthetic' if run.record.synthetic else 'not the official split'}"
        for run in runs
        if _unofficial(run)
    ]
    seeds = (
        "in percent: mean and sample standard deviation over seeds (number of seeds). The best of a column is bold "
        "where two methods have two seeds or more."
    )
    seeds += "".join(f" Note {OTHER_SPLIT}: {note}." for note in dict.fromkeys(notes))
    summary = _by_task(rows_of(tested, "test_accuracy"), f"Test accuracy {seeds}", colours)
    closed = f"Accuracy on val200 of runs that kept their test images closed, {seeds}"
    return summary + _by_task(rows_of(untested, "val_accuracy"), closed, colours) + _every_run(runs, names, colours)


def _every_run(runs: Sequence[VtabRun], names: Sequence[str], colours: Mapping[str, int]) -> str:
    head = ["task", "method", "seed", "epoch", "val200", "test", "parameters", "seconds"]
    every = [
        [
            Cell(run.record.task),
            Cell(name, colour=colours[name]),
            Cell(str(run.record.seed)),
            number(run.record.selected_epoch),
            number(run.record.val_accuracy, 1),
            number(run.record.test_accuracy, 2),
            number((run.record.parameters or {}).get("trained_without_head")),
            number(run.record.seconds.get("total"), 1),
        ]
        for name, run in zip(names, runs, strict=True)
    ]
    note = "Every run. epoch: chosen on val200; accuracies in percent; parameters: trained, without the head."
    return table(head, every, note)


def by_row(runs: Sequence[VtabRun], tested: bool) -> dict[str, list[VtabRun]]:
    """The runs whose test images were opened, or the others, by their row's name."""
    found: dict[str, list[VtabRun]] = {}
    for name, run in zip(row_names(runs), runs, strict=True):
        if (run.record.test_accuracy is not None) == tested:
            found.setdefault(name, []).append(run)
    return found


def row_names(runs: Sequence[VtabRun]) -> list[str]:
    """Each run's method with the settings in which runs of this method differ: only seeds are averaged."""
    unlike = {*PLACES, "task", "method", "seed"}
    settings = [{k: in_plain_words(v) for k, v in run.record.arguments.items() if k not in unlike} for run in runs]
    of_methods = {
        method: differing([s for r, s in zip(runs, settings, strict=True) if r.method == method])
        for method in {run.method for run in runs}
    }
    return [
        ", ".join([run.method, *(f"{key} {own.get(key, BLANK)}" for key in of_methods[run.method])])
        for run, own in zip(runs, settings, strict=True)
    ]


def _colours(runs: Sequence[VtabRun], names: Sequence[str]) -> dict[str, int]:
    """The colour of every row: of its method."""
    of_methods = method_colours([run.method for run in runs])
    return {name: of_methods[run.method] for name, run in zip(names, runs, strict=True)}


def _unofficial(run: VtabRun) -> bool:
    return bool(run.record.synthetic or not run.record.official_split)


def rows_of(found: Mapping[str, Sequence[VtabRun]], measure: str) -> list[Row]:
    """A row per name with what its runs have of `measure`; of two runs of one task and seed the first counts."""
    rows = []
    for name, runs in found.items():
        measured = [run for run in runs if getattr(run.record, measure) is not None]
        cells: dict[str, dict[int, float]] = {}
        for run in measured:
            task = cells.setdefault(run.record.task, {})
            task.setdefault(run.record.seed, float(getattr(run.record, measure)))
        unofficial = [run.record.task for run in measured if _unofficial(run)]
        if measured:
            rows.append(Row(name, measured[0].record.model, None, cells, unofficial=unofficial))
    return rows


def _by_task(rows: Sequence[Row], caption: str, colours: Mapping[str, int]) -> str:
    """Methods down, tasks across in the papers' order and groups, then means; "" without a row."""
    there = list(dict.fromkeys(task for row in rows for task in row.cells))
    if not there:
        return ""
    columns = _columns(there)
    body = [
        [
            Cell(row.name, colour=colours[row.name]),
            *(
                Cell("".join(in_words(cell, True)), None if cell is None else cell.value, column in best)
                for column, cell in enumerate(values(row, columns))
            ),
        ]
        for row, best in zip(rows, best_cells(rows, columns), strict=True)
    ]
    spans = [("", 1), *((name, len(tasks)) for name, tasks in columns.groups.items())]
    spans += [("means", len(columns.means))] if columns.means else []
    return table(["method", *columns.tasks.values(), *columns.means], body, caption, spans)


def _columns(there: Sequence[str]) -> Columns:
    """The columns of these tasks, and means: of whole groups, of these, and of all tasks of the 19 that are there."""
    groups = {name: {task: TASKS[task] for task in tasks if task in there} for name, tasks in GROUPS.items()}
    whole = {name: [list(tasks)] for name, tasks in groups.items() if len(tasks) == len(GROUPS[name])}
    of_vtab = [task for tasks in groups.values() for task in tasks]
    means: dict[str, list[list[str]]] = dict(whole)
    if len(whole) == len(GROUPS):
        means[MEAN_OF_GROUPS] = [list(tasks) for tasks in groups.values()]
    if len(of_vtab) > 1:
        means[f"mean of {len(of_vtab)}"] = [of_vtab]
    groups["other"] = {task: task for task in there if task not in TASKS}
    return Columns({name: tasks for name, tasks in groups.items() if tasks}, means)


def in_percent(value: float) -> str:
    """An accuracy: "55.4 %"."""
    return f"{fixed(value, 1)} %"
