"""The accuracy table of VTAB-1k papers, from result.json files."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

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
MEAN_OF_GROUPS, MEAN_OF_TASKS = "mean of groups", "mean of 19"
SUMMARY = (*GROUPS, MEAN_OF_GROUPS, MEAN_OF_TASKS)

# ViT-B/16, ImageNet-21k; as printed in the papers that introduced or first tabulated them on VTAB-1k.
BACKBONE = "ViT-B/16, IN-21k"
PUBLISHED = {
    "full": "68.9 87.7 64.3 97.2 86.9 87.4 38.8 79.7 95.7 84.2 73.9 56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1",
    "linear": "63.4 85.0 63.2 97.0 86.3 36.6 51.0 78.5 87.5 68.6 74.0 34.3 30.6 33.2 55.4 12.5 20.0 9.6 19.2",
    "LoRA r8 (q, v)": "67.1 91.4 69.4 98.8 90.4 85.3 54.0 84.9 95.3 84.4 73.6 82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0",
}


@dataclass
class Row:
    """One line: a method under one set of settings. cells: per task the accuracy in percent of every seed.

    parameters: trained, head left out. unofficial: tasks whose images are not the official split's. synthetic: those
    that are no photographs at all. means: what a paper gives without all 19 numbers, by the names in SUMMARY.
    """

    name: str
    backbone: str
    parameters: int | None
    cells: Mapping[str, Mapping[int, float]]
    published: bool = False
    unofficial: Sequence[str] = ()
    synthetic: Sequence[str] = ()
    means: Mapping[str, float] = field(default_factory=dict)

    def mean(self, name: str) -> tuple[float, float | None] | None:
        """One of SUMMARY, and its sample deviation over seeds where all its tasks have the same ones.

        None while a task of it is missing.
        """
        groups = [list(GROUPS[name])] if name in GROUPS else [list(tasks) for tasks in GROUPS.values()]
        if name == MEAN_OF_TASKS:
            groups = [list(TASKS)]
        if name in self.means:
            return self.means[name], None
        if any(task not in self.cells for tasks in groups for task in tasks):
            return None

        def mean(accuracy: Callable[[Mapping[int, float]], float]) -> float:
            return statistics.fmean(statistics.fmean(accuracy(self.cells[task]) for task in tasks) for tasks in groups)

        first, *others = (set(self.cells[task]) for tasks in groups for task in tasks)
        shared = first if all(seeds == first for seeds in others) else set()
        each = [mean(itemgetter(seed)) for seed in shared]
        return mean(lambda cell: statistics.fmean(cell.values())), _deviation(each)


def _deviation(values: Collection[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def measured_rows(results: Sequence[Result]) -> tuple[list[Row], list[str]]:
    """A row per method and settings, and a sentence for each result that another one stands for already.

    Only seeds are averaged. Results of tasks outside the 19 are left out: see `other_tasks`.
    """
    groups: dict[_Key, list[Result]] = {}
    methods = [r.method for r in results]
    ordered = sorted((r for r in results if r.task in TASKS), key=lambda r: methods.index(r.method))
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
        unofficial=[task for task in TASKS if any(r.task == task and not r.official for r in results)],
        synthetic=[task for task in TASKS if any(r.task == task and r.synthetic for r in results)],
    )


def other_tasks(results: Sequence[Result]) -> list[str]:
    """Tasks in the results that the table has no column for."""
    return list(dict.fromkeys(r.task for r in results if r.task not in TASKS))


def published_rows() -> list[Row]:
    """Rows of the literature, marked as published elsewhere."""
    rows = []
    for method, numbers in PUBLISHED.items():
        cells = {task: {0: float(n)} for task, n in zip(TASKS, numbers.split(), strict=True)}
        rows.append(Row(method, BACKBONE, None, cells, published=True))
    return rows


def table(paths: Sequence[Path], style: str, published: bool) -> tuple[str, list[str], list[str]]:
    """(the table as "markdown", "latex" or "csv", remarks on it, a sentence on each broken result). Raises EvalError.

    The best measured value of a column is bold; published rows stand apart and never take part in that.
    """
    results, problems = read_results(paths)
    remarks = []
    rows, repeated = measured_rows(results)
    problems += repeated
    others = other_tasks(results)
    if not rows and not published:
        raise EvalError("; ".join([*problems, _nothing(paths, others)]))
    if others:
        remarks.append(f"not in the table, being none of the 19 tasks: {', '.join(others)}")
    for row in rows:
        missing = [task for task in TASKS if task not in row.cells]
        if missing:
            remarks.append(f"{row.name}: no result for {', '.join(missing)}; shown as a dash, and no mean over them")
        remarks += [f"{row.name}: {task} is synthetic" for task in row.synthetic]
        unofficial = [task for task in row.unofficial if task not in row.synthetic]
        if unofficial:
            remarks.append(
                f"{row.name}: {', '.join(unofficial)}: not the official split; not comparable with published numbers"
            )
    writers = {"markdown": _markdown, "latex": _latex, "csv": _csv}
    return writers[style](rows, published_rows() if published else []), remarks, problems


def _nothing(paths: Sequence[Path], others: Sequence[str]) -> str:
    where = ", ".join(map(str, paths))
    found = f"only {', '.join(others)}, which it has no column for" if others else "none"
    return (
        f"the table takes test results of the 19 VTAB-1k tasks, and {where} gave {found}; give output folders of "
        "train_vtab.py"
    )


# -- writing


def _values(row: Row) -> list[tuple[float, float | None] | None]:
    """Every cell of a row: 19 tasks, three group means, two overall means; None where there is nothing."""
    accuracies = [row.cells[task].values() if task in row.cells else None for task in TASKS]
    tasks = [None if a is None else (statistics.fmean(a), _deviation(a)) for a in accuracies]
    return [*tasks, *(row.mean(name) for name in SUMMARY)]


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
    return "" if row.parameters is None else f"{row.parameters / 1e6:.2f}"


def _markdown(rows: Sequence[Row], published: Sequence[Row]) -> str:
    head = ["method", "parameters (M)", *TASKS.values(), *SUMMARY]
    lines = [_pipe(head), _pipe(["---", *["---:"] * (len(head) - 1)])]
    best = _best(rows) if rows else []
    lines += [_pipe([row.name, _size(row), *_texts(row, best, "**{}**", "±")]) for row in rows]
    for row in published:
        lines.append(_pipe([f"*{row.name} (published elsewhere)*", "", *_texts(row, [], "{}", "±")]))
    return "\n".join(lines) + "\n"


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(rows: Sequence[Row], published: Sequence[Row]) -> str:
    columns = "lr" + "c" * 7 + "c" * 4 + "c" * 8 + "ccccc"
    spans = " & ".join(rf"\multicolumn{{{len(tasks)}}}{{c}}{{{name.capitalize()}}}" for name, tasks in GROUPS.items())
    head = " & ".join(rf"\rotatebox{{90}}{{{name}}}" for name in (*TASKS.values(), *SUMMARY))
    best = _best(rows) if rows else []
    body = [
        " & ".join([_tex(row.name), _size(row), *_texts(row, best, r"\textbf{{{}}}", r"$\pm$")]) + r" \\"
        for row in rows
    ]
    if published:
        body.append(r"\midrule")
        body += [
            " & ".join([_tex(row.name) + r"$^\dagger$", "", *_texts(row, [], "{}", r"$\pm$")]) + r" \\"
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
    names = [*TASKS, *(name.replace(" ", "_") for name in SUMMARY)]
    for row in (*rows, *published):
        seeds = [len(row.cells[t]) if t in row.cells else "" for t in TASKS] + [""] * len(SUMMARY)
        for name, cell, count in zip(names, _values(row), seeds, strict=True):
            numbers = ["", ""] if cell is None else [f"{cell[0]:.4f}", "" if cell[1] is None else f"{cell[1]:.4f}"]
            writer.writerow([row.name, "yes" if row.published else "no", _size(row), name, *numbers, count])
    return file.getvalue()
