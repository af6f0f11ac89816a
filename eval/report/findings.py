"""What was found, in sentences: the title of the page and what stands under it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dash_vision.drawing.numbers import fixed

from ..comparable import differences, not_comparable
from ..intervals import FEW, student
from ..runs import DreamBoothRun, Run, VtabRun, labels
from ..vtab.columns import TASKS
from ..vtab.differences import ENOUGH, gaps_of
from ..vtab.rows import Row
from .accuracy import by_row, in_percent, rows_of
from .pictures import Figure
from .settings import last_loss

LORA, DASH = "LoRA", "LoRA-Dash"
_MOST = 4  # sentences of one kind


class Finding(NamedTuple):
    """title: for the head of the page; sentence: with the numbers."""

    title: str
    sentence: str


def findings(
    runs: Sequence[Run], subjects: Sequence[Mapping[str, Any]], figures: Sequence[Figure]
) -> tuple[str, list[str]]:
    """The title of the page and the sentences under it: what was measured comes before what was only drawn."""
    dreambooth = [run for run in runs if isinstance(run, DreamBoothRun)]
    vtab = [run for run in runs if isinstance(run, VtabRun)]
    kinds = (_of_subjects(subjects), _of_vtab(vtab), _of_dreambooth(dreambooth), _of_figures(figures))
    found = [list(kind) for kind in kinds]
    sentences = [finding.sentence for kind in found for finding in kind[:_MOST]]
    sentences += not_comparable(runs, labels(runs))[:_MOST]
    titles = [kind[0].title for kind in found if kind]
    return titles[0] if titles else "What runs left", sentences


# -- measured subjects


def _of_subjects(results: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for result in results:
        subject, methods = result["subject"], result["methods"]
        named = {m["method"]: name for name, m in reversed(list(methods.items())) if m["run"] is not None}
        difference = f"{named.get(DASH)} - {named.get(LORA)}"
        scores = next((d["scores"] for d in result["differences"] if d["methods"] == difference), None)
        if scores is None:
            every = ", ".join(name for name, m in methods.items() if m["run"] is not None) or "the base"
            yield Finding(f"{subject}, as drawn by {every}", f"{subject}, drawn by {every}: scores are below.")
        else:
            yield _compared(result, scores)


def _compared(result: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> Finding:
    subject, count = result["subject"], len(result["prompts"])
    # Of a handful of prompts an interval that leaves out zero is no reason for a headline.
    enough = count >= FEW
    verdicts = {metric: _verdict(score["low"], score["high"]) if enough else 0 for metric, score in scores.items()}
    words = {metric: _words(verdict) if enough else "" for metric, verdict in verdicts.items()}
    parts = [
        f"{metric} {fixed(score['mean'], 3, sign=True)} ({_interval(score, 3)}){words[metric]}"
        for metric, score in scores.items()
    ]
    doubt = "" if enough else f" {_plural(count, 'prompt')} are too few to tell a difference; {FEW} or more may."
    sentence = f"{subject}: {DASH} less {LORA}, paired by prompt: {'; '.join(parts)}.{doubt}"
    ahead, behind = (
        [f"{m} by {fixed(abs(scores[m]['mean']), 3)}" for m, verdict in verdicts.items() if verdict == sign]
        for sign in (1, -1)
    )
    if not ahead and not behind:
        return Finding(f"{subject}: no difference between {DASH} and {LORA} is shown", sentence)
    parts = [f"ahead of {LORA} in {' and '.join(ahead)}"] if ahead else []
    parts += [f"behind {LORA} in {' and '.join(behind)}"] if behind else []
    return Finding(f"{subject}: {DASH} is {' and '.join(parts)}", sentence)


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _interval(score: Mapping[str, Any], digits: int) -> str:
    if score["low"] is None:
        return "one prompt"
    ends = [fixed(score[end], digits, sign=True) for end in ("low", "high")]
    return f"95% interval {ends[0]} to {ends[1]}"


def _verdict(low: float | None, high: float | None) -> int:
    """1 or -1 where the whole interval of a difference has one sign; 0: no difference is shown."""
    if low is None or high is None:
        return 0
    return int(low > 0) - int(high < 0)


def _words(verdict: int) -> str:
    return {1: f", {DASH} is higher", -1: f", {DASH} is lower", 0: ", no difference is shown"}[verdict]


# -- VTAB


def _of_vtab(runs: Sequence[VtabRun]) -> Iterator[Finding]:
    tested = rows_of(by_row(runs, tested=True), "test_accuracy")
    rows, where = (tested, "test") if tested else (rows_of(by_row(runs, tested=False), "val_accuracy"), "val200")
    by_name = {row.name: row for row in rows}
    if LORA in by_name and DASH in by_name:
        found = _difference(by_name[DASH], by_name[LORA], where)
        if found:
            yield found
            return
    for row in rows:
        tasks = ", ".join(TASKS.get(task, task) for task in row.cells)
        values = [statistics.fmean(seeds.values()) for seeds in row.cells.values()]
        mean = in_percent(statistics.fmean(values)) + (" on average" if len(values) > 1 else "")
        yield Finding(f"{row.name} on {tasks}: {mean}", f"{row.name} reaches {mean} on {tasks} ({where}).")


def _difference(dash: Row, lora: Row, where: str) -> Finding | None:
    """Paired by task and seed; None where nothing is shared."""
    gaps = {task: gaps_of(dash.cells[task], lora.cells[task]) for task in dash.cells if task in lora.cells}
    gaps = {task: of_task for task, of_task in gaps.items() if of_task}
    if not gaps:
        return None
    means = [statistics.fmean(of_task) for of_task in gaps.values()]
    unit = means if len(means) > 1 else next(iter(gaps.values()))  # what the interval is over: tasks, else seeds
    mean, over = statistics.fmean(means), "tasks" if len(means) > 1 else "seeds"
    enough = len(unit) >= ENOUGH
    low, high = student(unit) if enough else (None, None)
    verdict = _verdict(low, high)
    tasks = ", ".join(TASKS.get(task, task) for task in gaps) if len(gaps) <= 3 else f"{len(gaps)} tasks"
    points = f"{fixed(abs(mean), 2)} points"
    if fixed(mean, 2) == fixed(0, 2):
        gap = f"{DASH} and {LORA} are equal on average"
    else:
        gap = f"{DASH} is {points} {'above' if mean > 0 else 'below'} {LORA} on average"
    pairs = sum(map(len, gaps.values()))
    doubt = f"; fewer than {ENOUGH} {over} are too few to tell a difference from chance"
    if low is not None and high is not None:
        ends = f"{fixed(low, 2, sign=True)} to {fixed(high, 2, sign=True)}"
        doubt = f", 95% interval over {over} {ends}: {'a difference' if verdict else 'no difference is shown'}"
    sentence = f"On {tasks} ({where}) {gap}, {_plural(pairs, 'pair')} of one task and seed{doubt}."
    if verdict:
        return Finding(f"{DASH} is {points} {'above' if verdict > 0 else 'below'} {LORA} on {tasks}", sentence)
    return Finding(f"No difference between {DASH} and {LORA} is shown on {tasks}", sentence)


# -- DreamBooth


def _of_dreambooth(runs: Sequence[DreamBoothRun]) -> Iterator[Finding]:
    """One for each set of pictures and prompt."""
    groups: dict[tuple[str, str], list[DreamBoothRun]] = {}
    for run in runs:
        groups.setdefault((run.record.instance_digest, run.prompt), []).append(run)
    for of_subject in groups.values():
        subject = of_subject[0].subject
        methods = list(dict.fromkeys(run.method for run in of_subject))
        title = f"{subject}, learned by {' and '.join(methods)}"
        yield Finding(title, f"{_learned(subject, of_subject)}{_losses(of_subject)}")


def _learned(subject: str, runs: Sequence[DreamBoothRun]) -> str:
    steps: dict[int, list[str]] = {}
    for run in runs:
        steps.setdefault(run.record.steps, []).append(run.method)
    parts = [f"{_counted(methods)} in {count:,} steps" for count, methods in steps.items()]
    return f"{subject} was learned by {'; '.join(parts)}."


def _counted(methods: Sequence[str]) -> str:
    counts = {method: methods.count(method) for method in methods}
    return " and ".join(method + (f" ({count} runs)" if count > 1 else "") for method, count in counts.items())


def _losses(runs: Sequence[DreamBoothRun]) -> str:
    """The losses of a LoRA and a LoRA-Dash run that saw the same noise and differ in nothing else; "" where there are
    no two such runs."""
    for dash in (run for run in runs if run.method == DASH):
        for lora in (run for run in runs if run.method == LORA):
            same = lora.record.seed == dash.record.seed and not differences([lora, dash])
            losses = last_loss(lora), last_loss(dash)
            if same and losses[0] is not None and losses[1] is not None:
                return (
                    f" Over the last tenth of the steps the mean loss was {fixed(losses[1], 4)} with {DASH} and "
                    f"{fixed(losses[0], 4)} with {LORA} (seed {dash.record.seed}). A loss says little about pictures: "
                    "compare these below, or measure them with eval subject."
                )
    return ""


# -- figures


def _of_figures(figures: Sequence[Figure]) -> Iterator[Finding]:
    for figure in figures:
        methods = list(dict.fromkeys(name for block in figure.story["blocks"] for name in block["adapters"]))
        prompts = [prompt for block in figure.story["blocks"] for prompt in block["prompts"]]
        yield Finding(
            f"Pictures by {' and '.join(methods)}",
            f"The figure shows {_plural(len(prompts), 'prompt')} as drawn by {', '.join(methods)} "
            "and by the base, from the same noise.",
        )
