"""The accuracy table of VTAB-1k papers, from result.json files."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .runs import EvalError
from .vtab_results import Result, read_results

# Columns of the table in the order every paper has them, with the short names they use.
GROUPS = {
    "natural": {
        "cifar": "Cifar100",
        "caltech101": "Caltech101",
        "dtd": "DTD",
        "oxford_flowers102": "Flower102",
        "oxford_iiit_pet": "Pets",
        "svhn": "SVHN",
        "sun397": "Sun397",
    },
    "specialized": {
        "patch_camelyon": "Camelyon",
        "eurosat": "EuroSAT",
        "resisc45": "Resisc45",
        "diabetic_retinopathy": "Retinopathy",
    },
    "structured": {
        "clevr_count": "Clevr-Count",
        "clevr_dist": "Clevr-Dist",
        "dmlab": "DMLab",
        "kitti": "KITTI-Dist",
        "dsprites_loc": "dSpr-Loc",
        "dsprites_ori": "dSpr-Ori",
        "smallnorb_azi": "sNORB-Azim",
        "smallnorb_ele": "sNORB-Ele",
    },
}
TASKS = {task: name for tasks in GROUPS.values() for task, name in tasks.items()}

# ViT-B/16, ImageNet-21k; as printed in the papers that introduced or first tabulated them on VTAB-1k.
PUBLISHED = {
    "full": "68.9 87.7 64.3 97.2 86.9 87.4 38.8 79.7 95.7 84.2 73.9 56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1",
    "linear": "63.4 85.0 63.2 97.0 86.3 36.6 51.0 78.5 87.5 68.6 74.0 34.3 30.6 33.2 55.4 12.5 20.0 9.6 19.2",
    "LoRA r8 (q, v)": "67.1 91.4 69.4 98.8 90.4 85.3 54.0 84.9 95.3 84.4 73.6 82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0",
}


@dataclass
class Row:
    """One line: method, parameters in millions, mean and sample deviation per task in percent."""

    method: str
    parameters: float | None
    cells: Mapping[str, tuple[float, float | None, int]]
    published: bool = False
    notes: set[str] = field(default_factory=set)

    def group(self, name: str) -> float | None:
        """The mean of a group; None while a task of it is missing."""
        return self._mean(GROUPS[name])

    @property
    def mean_of_groups(self) -> float | None:
        """The mean of the three group means: what most papers print."""
        groups = [self.group(name) for name in GROUPS]
        return None if None in groups else statistics.fmean(g for g in groups if g is not None)

    @property
    def mean_of_tasks(self) -> float | None:
        """The mean of the 19 tasks."""
        return self._mean(TASKS)

    def _mean(self, tasks: Iterable[str]) -> float | None:
        values = [self.cells[t][0] for t in tasks if t in self.cells]
        return statistics.fmean(values) if len(values) == len(list(tasks)) else None


def measured_rows(results: Sequence[Result]) -> list[Row]:
    """A row per method, seeds averaged. Results of tasks outside the 19 are left out: see `other_tasks`."""
    rows = {}
    for method in dict.fromkeys(r.method for r in results):
        mine = [r for r in results if r.method == method and r.task in TASKS]
        cells = {}
        for task in TASKS:
            values = [r.accuracy for r in mine if r.task == task]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                cells[task] = (statistics.fmean(values), spread, len(values))
        if cells:
            sizes = [r.parameters for r in mine if r.parameters is not None]
            notes = {note for r in mine for note in r.notes}
            rows[method] = Row(method, statistics.fmean(sizes) / 1e6 if sizes else None, cells, notes=notes)
    return list(rows.values())


def other_tasks(results: Sequence[Result]) -> list[str]:
    """Tasks in the results that the table has no column for."""
    return list(dict.fromkeys(r.task for r in results if r.task not in TASKS))


def published_rows() -> list[Row]:
    """Rows of the literature, marked as published elsewhere."""
    rows = []
    for method, numbers in PUBLISHED.items():
        cells = {task: (float(n), None, 1) for task, n in zip(TASKS, numbers.split(), strict=True)}
        rows.append(Row(method, None, cells, published=True))
    return rows


def table(paths: Sequence[Path], style: str, published: bool) -> tuple[str, list[str], list[str]]:
    """(the table as "markdown", "latex" or "csv", remarks on it, a sentence on each broken result). Raises EvalError.

    The best measured value of a column is bold; published rows stand apart and never take part in that.
    """
    results, problems = read_results(paths)
    remarks = []
    rows = measured_rows(results)
    if not rows and not published:
        where = ", ".join(map(str, paths))
        raise EvalError(f"there are no results of VTAB-1k tasks in {where}; give output folders of train_vtab.py")
    others = other_tasks(results)
    if others:
        remarks.append(f"not in the table, being none of the 19 tasks: {', '.join(others)}")
    for row in rows:
        missing = [task for task in TASKS if task not in row.cells]
        if missing:
            remarks.append(f"{row.method}: no result for {', '.join(missing)}; shown as a dash, and no mean over them")
        remarks += [f"{row.method}: {note}" for note in sorted(row.notes)]
    writers = {"markdown": _markdown, "latex": _latex, "csv": _csv}
    return writers[style](rows, published_rows() if published else []), remarks, problems


# -- writing

_SUMMARY = ("natural", "specialized", "structured", "mean of groups", "mean of 19")


def _values(row: Row) -> list[tuple[float, float | None] | None]:
    """Every cell of a row: 19 tasks, three group means, two overall means; None where there is nothing."""
    tasks = [row.cells.get(task) for task in TASKS]
    cells: list[tuple[float, float | None] | None] = [None if c is None else (c[0], c[1]) for c in tasks]
    for value in (*(row.group(name) for name in GROUPS), row.mean_of_groups, row.mean_of_tasks):
        cells.append(None if value is None else (value, None))
    return cells


def _best(rows: Sequence[Row]) -> list[float | None]:
    """The largest measured value per column, as it is printed; None where there is no comparison to be made."""
    columns = zip(*(_values(row) for row in rows), strict=True)
    best: list[float | None] = []
    for column in columns:
        values = [round(cell[0], 1) for cell in column if cell is not None]
        best.append(max(values) if len(values) > 1 else None)
    return best


def _texts(row: Row, best: Sequence[float | None], bold: str, plus: str) -> list[str]:
    texts = []
    for i, cell in enumerate(_values(row)):
        if cell is None:
            texts.append("--" if plus != "±" else "–")  # noqa: RUF001 (a dash in a table)
            continue
        text = f"{cell[0]:.1f}"
        if best and best[i] is not None and round(cell[0], 1) == best[i]:
            text = bold.format(text)
        texts.append(text + (f" {plus} {cell[1]:.1f}" if cell[1] is not None else ""))
    return texts


def _size(row: Row) -> str:
    return "" if row.parameters is None else f"{row.parameters:.2f}"


def _markdown(rows: Sequence[Row], published: Sequence[Row]) -> str:
    head = ["method", "parameters (M)", *TASKS.values(), *_SUMMARY]
    lines = [_pipe(head), _pipe(["---", *["---:"] * (len(head) - 1)])]
    best = _best(rows) if rows else []
    lines += [_pipe([row.method, _size(row), *_texts(row, best, "**{}**", "±")]) for row in rows]
    for row in published:
        lines.append(_pipe([f"*{row.method} (published elsewhere)*", "", *_texts(row, [], "{}", "±")]))
    return "\n".join(lines) + "\n"


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(rows: Sequence[Row], published: Sequence[Row]) -> str:
    columns = "lr" + "c" * 7 + "c" * 4 + "c" * 8 + "ccccc"
    spans = " & ".join(rf"\multicolumn{{{len(tasks)}}}{{c}}{{{name.capitalize()}}}" for name, tasks in GROUPS.items())
    head = " & ".join(rf"\rotatebox{{90}}{{{name}}}" for name in (*TASKS.values(), *_SUMMARY))
    best = _best(rows) if rows else []
    body = [
        " & ".join([_tex(row.method), _size(row), *_texts(row, best, r"\textbf{{{}}}", r"$\pm$")]) + r" \\"
        for row in rows
    ]
    if published:
        body.append(r"\midrule")
        body += [
            " & ".join([_tex(row.method) + r"$^\dagger$", "", *_texts(row, [], "{}", r"$\pm$")]) + r" \\"
            for row in published
        ]
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rf" & & {spans} & \multicolumn{{5}}{{c}}{{Means}} \\",
        r"\cmidrule(lr){3-9}\cmidrule(lr){10-13}\cmidrule(lr){14-21}\cmidrule(lr){22-26}",
        rf"Method & Param.\ (M) & {head} \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if published:
        lines.append(r"% $^\dagger$: published elsewhere, not measured here")
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    return "".join({"_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#"}.get(c, c) for c in text)


def _csv(rows: Sequence[Row], published: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["method", "published", "parameters_millions", "column", "accuracy", "deviation", "seeds"])
    names = [*TASKS, *(name.replace(" ", "_") for name in _SUMMARY)]
    for row in (*rows, *published):
        seeds = [row.cells[t][2] if t in row.cells else "" for t in TASKS] + [""] * len(_SUMMARY)
        for name, cell, count in zip(names, _values(row), seeds, strict=True):
            numbers = ["", ""] if cell is None else [f"{cell[0]:.4f}", "" if cell[1] is None else f"{cell[1]:.4f}"]
            writer.writerow([row.method, "yes" if row.published else "no", _size(row), name, *numbers, count])
    return file.getvalue()
