"""What several records of train_vtab.py say together: means, spreads, differences in pairs, and a table of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from ..runs.record import VtabRecord
from ..runs.tasks import GROUPS, TASKS, VTAB


def figure(record: VtabRecord) -> float:
    """The run's accuracy in percent: on test, or on val200 where test was left closed."""
    return record.val_accuracy if record.test_accuracy is None else record.test_accuracy


def summarize(records: Iterable[VtabRecord]) -> dict[str, Any]:
    """Per method: mean and sample standard deviation over seeds per task, means over groups and tasks; and the paired
    differences between methods. JSON-ready.

    The mean over the three groups and the mean over the 19 tasks are given only where all 19 are there.
    """
    table: dict[str, dict[str, dict[int, float]]] = {}
    flags: dict[str, list[str]] = {"synthetic": [], "not the official split": [], "val200 only": []}
    for record in records:
        table.setdefault(record.method, {}).setdefault(record.task, {})[record.seed] = figure(record)
        for flag, holds in (
            ("synthetic", record.synthetic),
            ("not the official split", not record.official_split and not record.synthetic),
            ("val200 only", record.test_accuracy is None),
        ):
            if holds and record.task not in flags[flag]:
                flags[flag].append(record.task)
    methods = {method: _method_summary(tasks) for method, tasks in table.items()}
    return {"methods": methods, "differences": _differences(table), "notes": {k: v for k, v in flags.items() if v}}


def _method_summary(tasks: dict[str, dict[int, float]]) -> dict[str, Any]:
    ordered = sorted(tasks, key=list(TASKS).index)
    per_task = {task: spread(list(tasks[task].values())) for task in ordered}
    summary: dict[str, Any] = {"tasks": per_task}
    if set(VTAB) <= per_task.keys():
        groups = {
            group: statistics.fmean(per_task[t]["mean"] for t in VTAB if TASKS[t].group == group) for group in GROUPS
        }
        summary["groups"] = groups
        summary["mean_of_groups"] = statistics.fmean(groups.values())
        summary["mean_of_tasks"] = statistics.fmean(per_task[t]["mean"] for t in VTAB)
    return summary


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for a single value) and number of values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "n": len(values)}


def _differences(table: dict[str, dict[str, dict[int, float]]]) -> list[dict[str, Any]]:
    """Every method minus every one before it, paired by task and seed: mean, standard error, wins, ties, losses."""
    methods = sorted(table, key=_order)
    found = []
    for i, second in enumerate(methods):
        for first in methods[:i]:
            pairs = [
                value - table[first][task][seed]
                for task, seeds in table[second].items()
                for seed, value in seeds.items()
                if seed in table[first].get(task, {})
            ]
            if pairs:
                found.append({"method": second, "minus": first, **paired(pairs)})
    return found


def paired(differences: list[float]) -> dict[str, Any]:
    """Mean of paired differences, its standard error (None for one pair), and how many were above, at and below 0."""
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return {
        "mean": statistics.fmean(differences),
        "standard_error": error,
        "pairs": len(differences),
        "wins": sum(d > 0 for d in differences),
        "ties": sum(d == 0 for d in differences),
        "losses": sum(d < 0 for d in differences),
    }


def _order(method: str) -> tuple[int, str]:
    known = ("linear", "full", "bitfit", "lora", "dash")
    return (known.index(method) if method in known else len(known), method)


def render(summary: dict[str, Any]) -> list[str]:
    """The summary as lines for a terminal: one row per task, one column per method, in percent."""
    methods = sorted(summary["methods"], key=_order)
    if not methods:
        return ["no results yet"]
    tasks = sorted({t for m in methods for t in summary["methods"][m]["tasks"]}, key=list(TASKS).index)
    rows = [["accuracy in %", *methods]]
    for task in tasks:
        rows.append([task, *(_cell(summary["methods"][m]["tasks"].get(task)) for m in methods)])
    for key, label in (("mean_of_groups", "mean of the 3 groups"), ("mean_of_tasks", "mean of the 19 tasks")):
        if any(key in summary["methods"][m] for m in methods):
            rows.append([label, *(_number(summary["methods"][m].get(key)) for m in methods)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    for d in summary["differences"]:
        error = "" if d["standard_error"] is None else f" +- {d['standard_error']:.2f} (standard error)"
        lines.append(
            f"{d['method']} - {d['minus']}: {d['mean']:+.2f}{error} over {d['pairs']} pairs of task and seed; "
            f"{d['wins']} above, {d['ties']} equal, {d['losses']} below"
        )
    lines += [f"{note}: {', '.join(tasks)}" for note, tasks in summary["notes"].items()]
    return lines


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    deviation = f" +- {value['std']:.1f}" if value["std"] is not None else ""
    return f"{value['mean']:.1f}{deviation} ({value['n']})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
