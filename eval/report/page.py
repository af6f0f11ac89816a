"""One page from what runs left on disk: pictures, tables, curves, settings and versions in a single HTML file.

The page loads nothing: pictures are in it as data, each once, charts as SVG. template.html beside this file has its
style and its few lines of JavaScript.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dash_vision.drawing.plot import Panel, svg
from dash_vision.files.atomic import write_text
from dash_vision.files.errors import InputError

from ..comparable import not_comparable
from ..curves.charts import all_panels
from ..runs import Run, VtabRun, find_runs, labels
from ..saving import check_output
from .accuracy import accuracy
from .checkpoints import checkpoints
from .findings import findings
from .html import once
from .pictures import Figure, figure_html, pictures, read_figures, read_sheets
from .settings import KINDS, dreambooth_table, settings, versions
from .subjects import subject_html, subject_results

TEMPLATE = Path(__file__).with_name("template.html")
_CHART = 400  # pixels: a chart's letters are then readable on a phone too


@dataclass(frozen=True)
class _Given:
    """What the paths hold."""

    figures: list[Figure]
    subjects: list[tuple[Path, dict[str, Any]]]
    runs: list[Run]


def make_report(paths: Sequence[Path], output: Path, say: Callable[[str], None] = print) -> list[str]:
    """Write the page of the runs at `paths` to `output`; the problems of what was left out, which the page names too.

    Raises InputError when there is nothing to report.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"the report's name is {output}; it takes a name that ends in .html")
    check_output(output)
    given, problems = _read(paths)
    sections, unread = _sections(given)
    problems += unread
    page = once(_page(sections, given, problems))
    write_text(output, page)
    count = len(given.runs) + len(given.subjects) + len(given.figures)
    say(f"{output}: {count} results, {len(page.encode()) / 1e6:.1f} MB")
    return problems


def _read(paths: Sequence[Path]) -> tuple[_Given, list[str]]:
    """Raises InputError where there is nothing."""
    figures, rest, no_figures = read_figures([path.expanduser() for path in paths])
    subjects, rest, failed = subject_results(rest)
    runs, problems = find_runs(rest)
    problems = no_figures + failed + problems
    if not (runs or subjects or figures):
        raise InputError("; ".join(problems) or "no runs; give output folders of train_dreambooth.py or train_vtab.py")
    return _Given(figures, subjects, runs), problems


def _sections(given: _Given) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(key, title, content) of what there is, and a sentence for each file that cannot be read."""
    runs, names = given.runs, labels(given.runs)
    sheets, broken = read_sheets(runs, names)
    panels, unread = all_panels(runs)
    caveats = "".join(f'<p class="caption">{escape(words)}</p>' for words in not_comparable(runs, names))
    sections = [
        ("figure", "Figure", "".join(map(figure_html, given.figures))),
        ("pictures", "Pictures", caveats * bool(sheets) + pictures(sheets)),
        ("subjects", "Subjects", "".join(subject_html(folder, result) for folder, result in given.subjects)),
        ("accuracy", "Accuracy", accuracy([run for run in runs if isinstance(run, VtabRun)])),
        ("checkpoints", "Checkpoints", checkpoints(runs, names)),
        ("curves", "Curves", caveats * bool(panels) + _charts(panels)),
        ("runs", "Runs", dreambooth_table(runs, names)),
        ("settings", "Settings", settings(runs, names)),
        ("versions", "Versions", versions(runs, names)),
    ]
    return [section for section in sections if section[2]], broken + unread


def _charts(panels: Sequence[Panel]) -> str:
    drawn = "".join(f"<div>{svg(panel, _CHART)}</div>" for panel in panels)
    return f'<div class="charts">{drawn}</div>' if panels else ""


def _page(sections: Sequence[tuple[str, str, str]], given: _Given, problems: Sequence[str]) -> str:
    """sections: (key, title, content)."""
    title, sentences = findings(given.runs, [result for _, result in given.subjects], given.figures)
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections)
    left_out = ""
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
        left_out = f'<div class="left-out" role="note"><b>Left out</b><ul>{items}</ul></div>'
    body = "\n".join(f'<section><h2 id="{key}">{name}</h2>{content}</section>' for key, name, content in sections)
    found = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    head = f'<header><h1>{escape(title)}</h1>{found}<p class="soft">{escape(_source(given))}</p></header>'
    page = f'{head}<nav class="wide"><div class="scroll links">{links}</div></nav>{left_out}\n{body}'
    above, below = TEMPLATE.read_text(encoding="utf-8").split("@BODY@")
    return above.replace("@TITLE@", escape(title)) + page + below


def _source(given: _Given) -> str:
    """What the page was made from."""
    counts = [(sum(isinstance(run, kind) for run in given.runs), f"{name} run") for kind, name in KINDS]
    counts += [(len(given.subjects), "measured subject"), (len(given.figures), "figure")]
    *most, last = [f"{n} {name}{'s' if n > 1 else ''}" for n, name in counts if n]
    what = f"{', '.join(most)} and {last}" if most else last
    return f"Made by eval report from {what}."
