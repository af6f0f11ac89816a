"""The accuracy table of VTAB-1k papers, from result.json files."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from .runs import InputError
from .scores import student
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
class Columns:
    """A table's: groups of tasks with their headings; and means, by name the groups of tasks that they average within
    and then over."""

    groups: Mapping[str, Mapping[str, str]]
    means: Mapping[str, Sequence[Sequence[str]]]

    @property
    def tasks(self) -> dict[str, str]:
        """The heading of every task's column."""
        return {task: heading for tasks in self.groups.values() for task, heading in tasks.items()}


OFFICIAL = Columns(
    GROUPS,
    {
        **{name: [list(tasks)] for name, tasks in GROUPS.items()},
        MEAN_OF_GROUPS: [list(tasks) for tasks in GROUPS.values()],
        MEAN_OF_TASKS: [list(TASKS)],
    },
)


def measured_columns(columns: Columns, rows: Sequence[Row]) -> Columns:
    """The columns of tasks that a row has, and the means over these alone."""
    there = {task for row in rows for task in row.cells}
    groups = {name: {t: h for t, h in tasks.items() if t in there} for name, tasks in columns.groups.items()}
    means = {n: over for n, over in columns.means.items() if any(row.mean(n, columns) is not None for row in rows)}
    return Columns({name: tasks for name, tasks in groups.items() if tasks}, means)


def other_columns(tasks: Sequence[str]) -> Columns:
    """Of tasks that are none of the 19, such as the embedded ones, and their mean."""
    means = {"mean of others": [list(tasks)]} if len(tasks) > 1 else {}
    return Columns({"other tasks": {task: task for task in tasks}}, means)


@dataclass(frozen=True)
class Cell:
    """A number in percent, its sample deviation over seeds, the number of seeds, and whether the split is official.

    None: there is one seed only; the seeds differ from task to task, or a paper does not say.
    """

    value: float
    deviation: float | None = None
    seeds: int | None = None
    official: bool | None = None


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
        return Cell(mean(lambda cell: statistics.fmean(cell.values())), official=self._official(inside))

    def _cell(self, values: Sequence[float], tasks: Sequence[str]) -> Cell:
        deviation = statistics.stdev(values) if len(values) > 1 else None
        seeds = None if self.published else len(values)
        return Cell(statistics.fmean(values), deviation, seeds, self._official(tasks))

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


def table(
    paths: Sequence[Path], style: str, published: bool, compact: bool = False, against: str | None = None
) -> tuple[str, list[str], list[str]]:
    """(the table as "markdown", "latex" or "csv", remarks on it, a sentence on each broken result). Raises InputError.

    The best measured value of a column and backbone is bold; published rows stand apart and never take part in that.
    Results of tasks outside the 19 have a table of their own below. compact: columns without a measured number are left
    out. against: a row's name; the differences of the others to it stand below, which CSV has no columns for. Markdown
    and LaTeX hold the remarks, CSV columns that say the same.
    """
    results, problems = read_results(paths)
    others = sorted({r.task for r in results if r.task not in TASKS})
    elsewhere = published_rows() if published else []
    tables = []
    for columns, beside in ((OFFICIAL, elsewhere), (other_columns(others), [])):
        rows, repeated = measured_rows([r for r in results if r.task in columns.tasks])
        problems += repeated
        if compact and rows:
            columns = measured_columns(columns, rows)
            beside = [row for row in beside if any(cell is not None for cell in values(row, columns))]
        if rows or beside:
            tables.append(Table(columns, rows, beside))
    if not tables:
        raise InputError("; ".join([*problems, "nothing is left for the table; give output folders of train_vtab.py"]))
    remarks = list(dict.fromkeys(remark for one in tables for remark in _remarks(one)))
    differences = [_differences(tables, against, style)] if against is not None else []
    if style == "csv":
        return _csv(tables), remarks, problems
    texts = [*map({"markdown": _markdown, "latex": _latex}[style], tables), *differences]
    return "\n".join(texts), remarks, problems


@dataclass(frozen=True)
class Table:
    """Columns, and the measured and the published rows in them."""

    columns: Columns
    rows: Sequence[Row]
    published: Sequence[Row]


def _remarks(table: Table) -> list[str]:
    """What one has to know to read and to compare the numbers, a sentence each."""
    rows, published = table.rows, table.published
    counts = {len(cell) for row in rows for cell in row.cells.values()}
    remarks = []
    if len(counts) > 1:
        remarks.append("measured rows: mean ± sample standard deviation over seeds; in brackets the number of seeds")
    elif counts:
        n = max(counts)
        spread = f"mean ± sample standard deviation over {n} seeds" if n > 1 else "one seed"
        remarks.append(f"measured rows: {spread}")
    if len({row.backbone for row in rows}) > 1:
        remarks.append(
            "the measured rows have different backbones: bold is the best of each, not comparable with others"
        )
    if published:
        remarks.append(f"published elsewhere, not measured here: {BACKBONE}, under the protocols of their papers")
    about: dict[str, list[str]] = {}  # what is said of several rows is said once
    for row in rows:
        for remark in _row_remarks(row, table.columns):
            about.setdefault(remark, []).append(row.name)
    return remarks + [f"{'; '.join(names)}: {remark}" for remark, names in about.items()]


def _row_remarks(row: Row, columns: Columns) -> Iterator[str]:
    missing = [task for task in columns.tasks if task not in row.cells]
    if missing:
        yield f"no result for {', '.join(missing)}; shown as {BLANK}, and no mean over them"
    if row.synthetic:
        yield f"{', '.join(row.synthetic)} {OTHER_SPLIT} synthetic"
    unofficial = [task for task in row.unofficial if task not in row.synthetic]
    if unofficial:
        yield f"{', '.join(unofficial)} {OTHER_SPLIT} not the official split; not comparable with published numbers"
    undashed = [f"{n} of {len(row.cells[task])} on {task}" for task, n in row.undashed.items() if task in columns.tasks]
    if undashed:
        yield f"runs whose chosen epoch lies before the launch, and whose model is plain LoRA: {', '.join(undashed)}"


# -- differences

_ENOUGH = 3  # tasks for an interval over them; of two it would span a dozen times their gap


def _differences(tables: Sequence[Table], against: str, style: str) -> str:
    """Every measured row less the row `against` of its backbone, paired by task and seed, as a table. Raises InputError
    where there is no such row or nothing to set against it."""
    if style == "csv":
        raise InputError("--against is a second table, which one CSV does not hold; leave it out, or --style csv")
    found: dict[tuple[str, str], dict[tuple[str, bool], Mapping[int, float]]] = {}  # by name and backbone
    for row in (row for one in tables for row in one.rows):
        cells = {(task, task in row.unofficial): accuracies for task, accuracies in row.cells.items()}
        found.setdefault((row.name, row.backbone), {}).update(cells)
    bases = {backbone: cells for (name, backbone), cells in found.items() if name == against}
    if not bases:
        named = ", ".join(dict.fromkeys(name for name, _ in found))
        raise InputError(f"--against is {against}, which no row is called; the rows are {named}")
    there = {task for cells in bases.values() for task, _ in cells}
    columns = [*(task for task in TASKS if task in there), *sorted(there - TASKS.keys())]
    head = ["method", "less", *(TASKS.get(task, task) for task in columns), "pairs", "mean over tasks"]
    lines = []
    for (name, backbone), mine in found.items():
        if name == against or backbone not in bases:
            continue
        shared = {key: _gaps(mine[key], bases[backbone][key]) for key in mine.keys() & bases[backbone].keys()}
        gaps = [shared.get((task, False), []) or shared.get((task, True), []) for task in columns]
        pairs = sum(map(len, gaps))
        if pairs:
            shown = [_mean(one, lambda g: (min(g), max(g))) for one in gaps]
            # Seeds of one task resemble each other: what a difference should carry over to is other tasks.
            means = [statistics.fmean(one) for one in gaps if one]
            lines.append([name, against, *shown, str(pairs), _mean(means, student if len(means) >= _ENOUGH else None)])
    if not lines:
        raise InputError(f"no other row shares a backbone, a task and a seed with {against}; leave --against out")
    note = (
        "differences in percentage points between runs of one backbone, task, split and seed: mean over seeds, in "
        "brackets the smallest and the largest; last their mean over tasks and, of three tasks or more, its 95% "
        "interval (Student's t over tasks, whose seeds are averaged)"
    )
    if style == "latex":
        minus = [[*line[:2], *(cell.replace("-", MINUS) for cell in line[2:])] for line in lines]
        body = [_cells(map(_tex, line)) for line in minus]
        return _tabular("ll" + "r" * (len(head) - 2), [_cells(map(_tex, head))], body, [note])
    rules = ["---", "---", *["---:"] * (len(head) - 2)]
    body = [_pipe([_plain(cell) for cell in line]) for line in lines]
    return "\n".join([_pipe(head), _pipe(rules), *body, "", f"- {note}"]) + "\n"


def _gaps(mine: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Of every seed that both have."""
    return [mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())]


def _mean(gaps: Sequence[float], ends: Callable[[Sequence[float]], tuple[float, float]] | None) -> str:
    """Their mean, and of two or more the two `ends`, if any, in brackets."""
    if not gaps:
        return BLANK
    mean = f"{statistics.fmean(gaps):+.2f}"
    if len(gaps) == 1 or ends is None:
        return mean
    low, high = ends(gaps)
    return f"{mean} ({low:+.2f} to {high:+.2f})"


# -- writing


def values(row: Row, columns: Columns) -> list[Cell | None]:
    """Every cell of a row: the tasks', then the means; None where there is nothing."""
    return [*map(row.cell, columns.tasks), *(row.mean(name, columns) for name in columns.means)]


def best_cells(rows: Sequence[Row], columns: Columns) -> list[set[int]]:
    """Per row, the numbers of the columns whose largest value it has, as it is printed, among two or more rows of its
    backbone.

    Numbers of other splits are compared with one another only where there is none of the official one.
    """
    best: list[set[int]] = [set() for _ in rows]
    every = [values(row, columns) for row in rows]
    for backbone in {row.backbone for row in rows}:
        mine = [i for i, row in enumerate(rows) if row.backbone == backbone]
        for number in range(len(every[0])):
            there = {i: cell for i in mine if (cell := every[i][number]) is not None}
            official = {i: cell for i, cell in there.items() if cell.official is not False}
            compared = {i: round(cell.value, 1) for i, cell in (official or there).items()}
            if len(compared) < 2:
                continue
            largest = max(compared.values())
            for i in (i for i, value in compared.items() if value == largest):
                best[i].add(number)
    return best


def _texts(table: Table, bold: str, escape: Callable[[str], str]) -> Iterator[list[str]]:
    """Per measured row name, backbone, parameters and every cell; the best of each backbone in bold."""
    counts = {len(cell) for row in table.rows for cell in row.cells.values()}
    for row, best in zip(table.rows, best_cells(table.rows, table.columns), strict=True):
        texts = [escape(text) for text in (row.name, row.backbone or BLANK, _size(row))]
        for column, cell in enumerate(values(row, table.columns)):
            number, more = in_words(cell, len(counts) > 1)
            texts.append((bold.format(number) if column in best else escape(number)) + escape(more))
        yield texts


def in_words(cell: Cell | None, counted: bool) -> tuple[str, str]:
    """A cell's number, and what follows it: its deviation, the number of seeds if `counted`, the mark of another
    split."""
    if cell is None:
        return BLANK, ""
    more = "" if cell.deviation is None else f" ± {cell.deviation:.1f}"
    more += f" ({cell.seeds})" if counted and cell.seeds is not None else ""
    return f"{cell.value:.1f}", more + (OTHER_SPLIT if cell.official is False else "")


def _published_texts(table: Table, name: str, escape: Callable[[str], str]) -> Iterator[list[str]]:
    for row in table.published:
        label = row.name if row.unclear_mean is None else f"{row.name}, mean {row.unclear_mean:g} of groups or of tasks"
        numbers = [escape("".join(in_words(cell, False))) for cell in values(row, table.columns)]
        yield [name.format(escape(label)), escape(row.backbone), escape(_size(row)), *numbers]


def _size(row: Row) -> str:
    """The number of parameters: exact, or to the two digits that a paper gives."""
    if row.parameters is None:
        return BLANK
    return f"{row.parameters / 1e6:.2f}M" if row.published else f"{row.parameters:,}"


def _spans(columns: Columns) -> list[tuple[str, int]]:
    """What stands over the columns, and over how many."""
    spans = [(name.capitalize(), len(tasks)) for name, tasks in columns.groups.items()]
    return [*spans, ("Means", len(columns.means))] if columns.means else spans


def _markdown(table: Table) -> str:
    head = ["method", "backbone", "parameters", *table.columns.tasks.values(), *table.columns.means]
    lines = [
        head,
        ["---", "---", *["---:"] * (len(head) - 2)],
        ["", "", "", *(name for name, length in _spans(table.columns) for _ in range(length))],
        *_texts(table, "**{}**", _plain),
        *_published_texts(table, "*{} (published elsewhere)*", _plain),
    ]
    remarks = [f"- {_plain(remark)}" for remark in _remarks(table)]
    return "\n".join([*map(_pipe, lines), "", *remarks]) + "\n"


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text as Markdown shows it unchanged."""
    return "".join("\\" + c if c in r"\|*`<[" else c for c in text)


def _latex(table: Table) -> str:
    over, rules, last = [], [], 3
    for name, length in _spans(table.columns):
        over.append(rf"\multicolumn{{{length}}}{{c}}{{{name}}}")
        rules.append(rf"\cmidrule(lr){{{last + 1}-{last + length}}}")
        last += length
    names = map(_rotated, (*table.columns.tasks.values(), *table.columns.means))
    head = [_cells(["", "", "", *over]), "".join(rules), _cells(["Method", "Backbone", "Parameters", *names])]
    body = [_cells(texts) for texts in _texts(table, r"\textbf{{{}}}", _tex)]
    if table.published:
        body += [r"\midrule", *(_cells(texts) for texts in _published_texts(table, "{}" + _tex("†"), _tex))]
    remarks = [("† " + r if r.startswith("published elsewhere") else r) for r in _remarks(table)]
    return _tabular(f"llr{'c' * (last - 3)}", head, body, remarks)


def _tabular(columns: str, head: Iterable[str], body: Iterable[str], notes: Iterable[str]) -> str:
    """A table in LaTeX, made smaller where a line is too short for it. columns: of the tabular; head, body: lines that
    end in two backslashes; notes: below it."""
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"{\setlength{\tabcolsep}{4pt}\noindent\sbox0{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
        *(r"\par\noindent{\footnotesize\raggedright " + _tex(note) + r"\par}" for note in notes),
        r"\par\medskip}",
    ]
    return "\n".join(lines) + "\n"


def _cells(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _rotated(text: str) -> str:
    return rf"\rotatebox{{90}}{{{_tex(text)}}}"


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


_TEX = {
    **{c: "\\" + c for c in "_&%#${}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    BLANK: "--",
    MINUS: "$-$",
}


def _csv(tables: Sequence[Table]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ("method", "model", "published", "official_split", "parameters")
    writer.writerow([*head, "column", "accuracy", "deviation", "seeds", "before_launch"])
    for row, columns in ((row, t.columns) for t in tables for row in (*t.rows, *t.published)):
        about = [row.name, row.backbone, "yes" if row.published else "no"]
        names = [*columns.tasks, *(name.replace(" ", "_") for name in columns.means)]
        cells = list(zip(names, values(row, columns), strict=True))
        if row.unclear_mean is not None:
            cells.append(("mean_of_groups_or_of_19", Cell(row.unclear_mean)))
        for name, cell in cells:
            official = "" if cell is None or cell.official is None else "yes" if cell.official else "no"
            numbers = ["", "", ""] if cell is None else [f"{cell.value:.4f}", _decimals(cell.deviation), cell.seeds]
            writer.writerow([*about, official, row.parameters, name, *numbers, row.undashed.get(name)])
    return file.getvalue()


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
