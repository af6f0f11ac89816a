"""The accuracy table of VTAB-1k papers, from result.json files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dash_vision.files.errors import InputError

from .columns import OFFICIAL, TASKS, other_columns
from .differences import differences
from .results import read_results
from .rows import measured_columns, measured_rows, published_rows, values
from .text import Table, as_csv, latex, markdown, remarks_on


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
        first = "make some first: python train_vtab.py --task mini_location --methods lora dash --seeds 0 1"
        raise InputError("; ".join([*problems, f"there is no result for the table; {first}"]))
    remarks = list(dict.fromkeys(remark for one in tables for remark in remarks_on(one)))
    against_row = [differences(tables, against, style)] if against is not None else []
    if style == "csv":
        return as_csv(tables), remarks, problems
    texts = [*map({"markdown": markdown, "latex": latex}[style], tables), *against_row]
    return "\n".join(texts), remarks, problems
