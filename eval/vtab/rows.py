"""The rows of the table: what was measured, and what papers report."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from .columns import MEAN_OF_GROUPS, MEAN_OF_TASKS, OFFICIAL, TASKS, Columns
from .results import Result

# As printed in the papers that introduced or first tabulated them on VTAB-1k.
BACKBONE = "ViT-B/16, IN-21k"
PUBLISHED = {
    "full": "68.9 87.7 64.3 97.2 86.9 87.4 38.8 79.7 95.7 84.2 73.9 56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1",
    "linear": "63.4 85.0 63.2 97.0 86.3 36.6 51.0 78.5 87.5 68.6 74.0 34.3 30.6 33.2 55.4 12.5 20.0 9.6 19.2",
    "LoRA r8 (q, v)": "67.1 91.4 69.4 98.8 90.4 85.3 54.0 84.9 95.3 84.4 73.6 82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0",
}
PUBLISHED_PARAMETERS = {"LoRA r8 (q, v)": 290_000}
# Mean of groups and mean of the 19 tasks; one number where the source does not say which of the two it is.
PUBLISHED_MEANS: dict[str, tuple[float, ...]] = {
    "HST": (78.13, 75.99),
    "GPS": (77.47, 75.18),
    "RepAdapter": (77.15, 75.02),
    "Convpass": (76.56, 74.44),
    "Adapter+": (77.6,),
    "SSF": (75.69,),
    "FacT": (75.55,),
    "NOAH": (75.48,),
}
BLANK = "–"  # noqa: RUF001 (a dash in a table)
MINUS = "\u2212"  # in LaTeX, where a hyphen is none
OTHER_SPLIT = "‡"  # marks numbers that are not of the official split


@dataclass(frozen=True)
class Cell:
    """A number in percent, its sample deviation over seeds, the number of seeds, and whether the split is official.

    None: there is one seed only; the seeds differ from task to task, or a paper does not say. repeated: whether there
    are two seeds or more, of every task where it is a mean over tasks.
    """

    value: float
    deviation: float | None = None
    seeds: int | None = None
    official: bool | None = None
    repeated: bool = False


@dataclass
class Row:
    """One line: a method under one set of settings. cells: per task the accuracy in percent of every seed.

    parameters: trained, head left out. unofficial: tasks whose images are not the official split's. synthetic: those
    that are drawn by a program. undashed: per task the number of runs whose model has no shifts, its epoch being
    before the launch. means: what a paper gives without the 19 numbers, by the names in OFFICIAL; unclear_mean: one of
    which it does not say over what.
    """

    name: str
    backbone: str
    parameters: int | None
    cells: Mapping[str, Mapping[int, float]]
    published: bool = False
    unofficial: Sequence[str] = ()
    synthetic: Sequence[str] = ()
    undashed: Mapping[str, int] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    unclear_mean: float | None = None

    def cell(self, task: str) -> Cell | None:
        """A task's accuracy, mean over seeds."""
        if task not in self.cells:
            return None
        return self._cell(list(self.cells[task].values()), [task])

    def mean(self, name: str, columns: Columns = OFFICIAL) -> Cell | None:
        """One of the means, with seeds and deviation where all its tasks have the same seeds.

        None while a task of it is missing.
        """
        groups = columns.means[name]
        if name in self.means:
            return Cell(self.means[name])
        if any(task not in self.cells for tasks in groups for task in tasks):
            return None

        def mean(accuracy: Callable[[Mapping[int, float]], float]) -> float:
            return statistics.fmean(statistics.fmean(accuracy(self.cells[task]) for task in tasks) for tasks in groups)

        inside = [task for tasks in groups for task in tasks]
        seeds = set(self.cells[inside[0]])
        if all(set(self.cells[task]) == seeds for task in inside):
            return self._cell([mean(itemgetter(seed)) for seed in seeds], inside)
        repeated = not self.published and all(len(self.cells[task]) > 1 for task in inside)
        return Cell(mean(lambda cell: statistics.fmean(cell.values())), None, None, self._official(inside), repeated)

    def _cell(self, values: Sequence[float], tasks: Sequence[str]) -> Cell:
        deviation = statistics.stdev(values) if len(values) > 1 else None
        seeds = None if self.published else len(values)
        repeated = not self.published and len(values) > 1
        return Cell(statistics.fmean(values), deviation, seeds, self._official(tasks), repeated)

    def _official(self, tasks: Sequence[str]) -> bool | None:
        return None if self.published else not set(tasks) & set(self.unofficial)


def measured_rows(results: Sequence[Result]) -> tuple[list[Row], list[str]]:
    """A row per method and settings, and a sentence for each result that another one stands for already.

    Only seeds are averaged.
    """
    groups: dict[_Key, list[Result]] = {}
    methods = [r.method for r in results]
    ordered = sorted(results, key=lambda r: methods.index(r.method))
    for result, other_data in _with_data(ordered):
        key = (result.method, frozenset({**result.settings, **other_data}.items()))
        groups.setdefault(key, []).append(result)
    rows, problems = [], []
    for mine, name in zip(groups.values(), _names(list(groups)), strict=True):
        first: dict[tuple[str, int], Result] = {}
        for result in mine:
            counted = first.setdefault((result.task, result.seed), result)
            if counted is not result:
                run = f"{name}, {result.task}, seed {result.seed}"
                problems.append(f"{result.file} is of the same run as {counted.file} ({run}); keep one of them")
        rows.append(_row(name, list(first.values())))
    return rows, problems


_Key = tuple[str, frozenset[tuple[str, str]]]


def _with_data(results: Sequence[Result]) -> Iterator[tuple[Result, dict[str, str]]]:
    """Each result, and a setting that tells it apart where its row's task was tested on other images as well.

    The official split comes first, then the largest.
    """
    data: dict[Any, set[tuple[bool, int]]] = {}
    for r in results:
        data.setdefault((r.method, frozenset(r.settings.items()), r.task), set()).add((r.official, r.images))
    for r in results:
        ranked = sorted(data[r.method, frozenset(r.settings.items()), r.task], reverse=True)
        place = ranked.index((r.official, r.images))
        yield r, {"data": f"other data{'' if place == 1 else f' {place}'}"} if place else {}


def _names(keys: Sequence[_Key]) -> list[str]:
    """The rows' names: the method and, where it has several rows, the settings that differ between them."""
    names = []
    for method, settings in keys:
        common = settings.intersection(*(other for name, other in keys if name == method))
        different = sorted(settings - common, key=lambda item: (item[0] != "model", item))
        parts = [value if name in ("model", "data") else f"{name} {value}" for name, value in different]
        names.append(f"{method} ({', '.join(parts)})" if parts else method)
    return names


def _row(name: str, results: Sequence[Result]) -> Row:
    cells: dict[str, dict[int, float]] = {}
    for r in results:
        cells.setdefault(r.task, {})[r.seed] = r.accuracy
    sizes = [r.parameters for r in results if r.parameters is not None]
    return Row(
        name,
        results[0].backbone,
        round(statistics.fmean(sizes)) if sizes else None,
        cells,
        unofficial=[task for task in cells if any(r.task == task and not r.official for r in results)],
        synthetic=[task for task in cells if any(r.task == task and r.synthetic for r in results)],
        undashed=Counter(r.task for r in results if r.undashed),
    )


def published_rows() -> list[Row]:
    """Rows of the literature, marked as published elsewhere; with the columns that are known."""
    rows = []
    for name, numbers in PUBLISHED.items():
        cells = {task: {0: float(n)} for task, n in zip(TASKS, numbers.split(), strict=True)}
        rows.append(Row(name, BACKBONE, PUBLISHED_PARAMETERS.get(name), cells, published=True))
    for name, means in PUBLISHED_MEANS.items():
        row = Row(name, BACKBONE, PUBLISHED_PARAMETERS.get(name), {}, published=True)
        if len(means) == 1:
            row.unclear_mean = means[0]
        else:
            row.means = dict(zip((MEAN_OF_GROUPS, MEAN_OF_TASKS), means, strict=True))
        rows.append(row)
    return rows


def measured_columns(columns: Columns, rows: Sequence[Row]) -> Columns:
    """The columns of tasks that a row has, and the means over these alone."""
    there = {task for row in rows for task in row.cells}
    groups = {name: {t: h for t, h in tasks.items() if t in there} for name, tasks in columns.groups.items()}
    means = {n: over for n, over in columns.means.items() if any(row.mean(n, columns) is not None for row in rows)}
    return Columns({name: tasks for name, tasks in groups.items() if tasks}, means)


def values(row: Row, columns: Columns) -> list[Cell | None]:
    """Every cell of a row: the tasks', then the means; None where there is nothing."""
    return [*map(row.cell, columns.tasks), *(row.mean(name, columns) for name in columns.means)]


def best_cells(rows: Sequence[Row], columns: Columns) -> list[set[int]]:
    """Per row, the numbers of the columns whose largest value it has, as it is printed, among two or more rows of its
    backbone.

    Rows of a single seed take no part: the order of two runs is mostly chance. Numbers of other splits are compared
    with one another only where there is none of the official one.
    """
    best: list[set[int]] = [set() for _ in rows]
    every = [values(row, columns) for row in rows]
    for backbone in {row.backbone for row in rows}:
        of_backbone = [i for i, row in enumerate(rows) if row.backbone == backbone]
        for number in range(len(every[0])):
            for i in _largest({i: every[i][number] for i in of_backbone}):
                best[i].add(number)
    return best


def _largest(cells: Mapping[int, Cell | None]) -> list[int]:
    """The keys of the largest values, as they are printed; none where fewer than two can be compared."""
    measured = {i: cell for i, cell in cells.items() if cell is not None and cell.repeated}
    official = {i: cell for i, cell in measured.items() if cell.official is not False}
    compared = {i: round(cell.value, 1) for i, cell in (official or measured).items()}
    if len(compared) < 2:
        return []
    return [i for i, value in compared.items() if value == max(compared.values())]
