"""The table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dash_vision.drawing.numbers import fixed

from .columns import Columns
from .rows import BACKBONE, BLANK, MINUS, OTHER_SPLIT, Cell, Row, best_cells, values


@dataclass(frozen=True)
class Table:
    """Columns, and the measured and the published rows in them."""

    columns: Columns
    rows: Sequence[Row]
    published: Sequence[Row]


def remarks_on(table: Table) -> list[str]:
    """What one has to know to read and to compare the numbers, a sentence each."""
    rows, published = table.rows, table.published
    counts = {len(cell) for row in rows for cell in row.cells.values()}
    remarks = []
    if len(counts) > 1:
        remarks.append("measured rows: mean ± sample standard deviation over seeds; in brackets the number of seeds")
    elif counts:
        n = max(counts)
        one = "one seed each, so nothing is bold: another seed may well turn the order round"
        spread = f"mean ± sample standard deviation over {n} seeds" if n > 1 else one
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
    more = "" if cell.deviation is None else f" ± {fixed(cell.deviation, 1)}"
    more += f" ({cell.seeds})" if counted and cell.seeds is not None else ""
    return fixed(cell.value, 1), more + (OTHER_SPLIT if cell.official is False else "")


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


def markdown(table: Table) -> str:
    head = ["method", "backbone", "parameters", *table.columns.tasks.values(), *table.columns.means]
    lines = [
        head,
        ["---", "---", *["---:"] * (len(head) - 2)],
        ["", "", "", *(name for name, length in _spans(table.columns) for _ in range(length))],
        *_texts(table, "**{}**", plain),
        *_published_texts(table, "*{} (published elsewhere)*", plain),
    ]
    remarks = [f"- {plain(remark)}" for remark in remarks_on(table)]
    return "\n".join([*map(pipe, lines), "", *remarks]) + "\n"


def pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """Text as Markdown shows it unchanged."""
    return "".join("\\" + c if c in r"\|*`<[" else c for c in text)


def latex(table: Table) -> str:
    over, rules, last = [], [], 3
    for name, length in _spans(table.columns):
        over.append(rf"\multicolumn{{{length}}}{{c}}{{{name}}}")
        rules.append(rf"\cmidrule(lr){{{last + 1}-{last + length}}}")
        last += length
    names = map(_rotated, (*table.columns.tasks.values(), *table.columns.means))
    head = [cells(["", "", "", *over]), "".join(rules), cells(["Method", "Backbone", "Parameters", *names])]
    body = [cells(texts) for texts in _texts(table, r"\textbf{{{}}}", tex)]
    if table.published:
        body += [r"\midrule", *(cells(texts) for texts in _published_texts(table, "{}" + tex("†"), tex))]
    remarks = [("† " + r if r.startswith("published elsewhere") else r) for r in remarks_on(table)]
    return latex_table(f"llr{'c' * (last - 3)}", head, body, remarks)


def latex_table(columns: str, head: Iterable[str], body: Iterable[str], notes: Iterable[str]) -> str:
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
        *(r"\par\noindent{\footnotesize\raggedright " + tex(note) + r"\par}" for note in notes),
        r"\par\medskip}",
    ]
    return "\n".join(lines) + "\n"


def cells(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _rotated(text: str) -> str:
    return rf"\rotatebox{{90}}{{{tex(text)}}}"


def tex(text: str) -> str:
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


def as_csv(tables: Sequence[Table]) -> str:
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
