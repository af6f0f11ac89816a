"""One page from what runs left on disk: pictures, tables, curves, settings and versions in a single HTML file.

The page loads nothing: pictures are in it as data, each once, charts as SVG. report.html beside this file has its style
and its few lines of JavaScript.
"""

from __future__ import annotations

import base64
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from dash_vision.drawing.plot import svg
from dash_vision.drawing.sheet import last_row
from dash_vision.files.atomic import write_text
from dash_vision.pictures.decode import Refused, read_picture, read_png_text
from dash_vision.pictures.formats import READABLE, sniff

from .curves import all_panels
from .runs import RECORDS, DreamBoothRun, InputError, Run, VtabRun, distinct, find_runs, labels, same_base
from .scores import RESULT, cells, describe, read_result, rows
from .vtab import BLANK, GROUPS, MEAN_OF_GROUPS, OTHER_SPLIT, TASKS, Columns, Row, best_cells, in_words, values

TEMPLATE = Path(__file__).with_name("report.html")
KINDS = ((DreamBoothRun, "DreamBooth"), (VtabRun, "VTAB"))
PLACES = ("output_dir", "cache_dir", "latent_cache_dir")  # where a run wrote is no setting of it
# Least and greatest width of an enlarged picture: a sheet has small print, a tile is to fit in the window.
SHEET, TILE = 'data-least="900px" data-most="1500px"', 'data-least="0px" data-most="78vh"'


class Cell(NamedTuple):
    """A table's cell: its text, and the number it is sorted by where the text is not that number. best: in bold."""

    text: str
    value: float | None = None
    best: bool = False


def make_report(paths: Sequence[Path], output: Path, say: Callable[[str], None] = print) -> list[str]:
    """Write the page of the runs at `paths` to `output`; the problems of what was left out, which the page names too.

    Raises InputError when there is nothing to report.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"the report's name is {output}; it takes a name that ends in .html")
    figures, rest, no_figures = _figures([path.expanduser() for path in paths])
    subjects, rest, failed = _subject_results(rest)
    runs, problems = find_runs(rest)
    problems = no_figures + failed + problems
    if not (runs or subjects or figures):
        raise InputError("; ".join(problems) or "no runs; give output folders of train_dreambooth.py or train_vtab.py")
    names = labels(runs)
    sheets, broken = _sheets(runs, names)
    panels, unread = all_panels(runs)
    drawn = f'<div class="charts">{"".join(f"<div>{svg(p)}</div>" for p in panels)}</div>' if panels else ""
    problems = problems + broken + unread
    sections = [
        ("figure", "Figure", "".join(map(_figure, figures))),
        ("pictures", "Pictures", _pictures(sheets)),
        ("subjects", "Subjects", "".join(_subject(folder, result) for folder, result in subjects)),
        ("accuracy", "Accuracy", _accuracy([run for run in runs if isinstance(run, VtabRun)])),
        ("curves", "Curves", drawn),
        ("runs", "Runs", _dreambooth_table(runs, names)),
        ("settings", "Settings", _settings(runs, names)),
        ("versions", "Versions", _versions(runs, names)),
    ]
    counts = [(sum(isinstance(run, kind) for run in runs), f"{name} run") for kind, name in KINDS]
    counts += [(len(subjects), "measured subject"), (len(figures), "figure")]
    page = once(_page([section for section in sections if section[2]], counts, problems))
    write_text(output, page)
    say(f"{output}: {len(runs) + len(subjects) + len(figures)} results, {len(page.encode()) / 1e6:.1f} MB")
    return problems


def _page(sections: Sequence[tuple[str, str, str]], counts: Sequence[tuple[int, str]], problems: Sequence[str]) -> str:
    """sections: (key, title, content). counts: how many there are of what."""
    *most, last = [f"{n} {name}{'s' if n > 1 else ''}" for n, name in counts if n]
    what = f"{', '.join(most)} and {last}" if most else last
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    left_out = ""
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
        left_out = f'<div class="left-out" role="note"><b>Left out</b><ul>{items}</ul></div>'
    body = "\n".join(f'<section><h2 id="{key}">{title}</h2>{content}</section>' for key, title, content in sections)
    head = f'<header><h1>LoRA-Dash: {what}</h1><p class="soft">Made by <code>python -m eval report</code> from what the'
    page = f"{head} runs left on disk.</p></header><nav>{links}</nav>{left_out}\n{body}"
    return TEMPLATE.read_text(encoding="utf-8").replace("@TITLE@", f"LoRA-Dash: {what}").replace("@BODY@", page)


# -- measured subjects


def _subject_results(
    paths: Sequence[Path],
) -> tuple[list[tuple[Path, dict[str, Any]]], list[Path], list[str]]:
    """Results of `python -m eval subject` at the paths or below them, the paths that may hold runs, and what cannot be
    read."""
    results, rest, problems = [], [], []
    seen: set[str] = set()
    for path in paths:
        folders = [path] if (path / RESULT).is_file() else sorted(file.parent for file in path.rglob(RESULT))
        if not folders or any(record for name in RECORDS for record in path.rglob(name)):
            rest.append(path)
        for folder in distinct(folders, seen):
            try:
                results.append((folder, read_result(folder)))
            except InputError as error:
                problems.append(str(error))
    return results, rest, problems


def _subject(folder: Path, result: dict[str, Any]) -> str:
    """The tables of one subject, and for its first prompts the pictures with sliders between methods."""
    metrics = list(result["backbones"])
    body = [
        [
            Cell(row["name"]),
            *(
                Cell(text, row["scores"].get(m, {}).get("mean"))
                for m, text in zip(metrics, cells(row, metrics), strict=True)
            ),
        ]
        for row in rows(result)
    ]
    parts = [f"<h3>{escape(result['subject'])}</h3>", table(["method", *metrics], body, " ".join(describe(result)))]
    if result["differences"]:
        paired = [
            [
                Cell(d["methods"]),
                *(
                    Cell(text, d["scores"][m]["mean"])
                    for m, text in zip(metrics, cells(d, metrics, "+.3f"), strict=True)
                ),
            ]
            for d in result["differences"]
        ]
        parts.append(table(["paired difference", *metrics], paired, "Differences between methods, paired by prompt."))
    parts.append(f'<div class="tiles">{"".join(_tiles(folder, result))}</div>')
    return "".join(parts)


def _tiles(folder: Path, result: dict[str, Any]) -> list[str]:
    """The first picture of every prompt: LoRA against LoRA-Dash where both are there, else the first method's."""
    methods = [(name, m) for name, m in result["methods"].items() if m["run"] is not None]
    kinds = {m["method"]: (name, m) for name, m in reversed(methods)}
    pair = [kinds[kind] for kind in ("LoRA", "LoRA-Dash") if kind in kinds]
    chosen = pair if len(pair) == 2 else methods[:1]
    tiles = []
    for number, prompt in enumerate(result["prompts"]):
        shown = []
        for name, method in chosen:
            try:
                data = as_data((folder / method["pictures"] / f"{number:02d}-00.png").read_bytes())
            except (OSError, ValueError):
                break  # the pictures are not kept with the result
            shown.append(Shown(name, data, f"{name}: {prompt}, generated picture"))
        if len(shown) == 2:
            tiles.append(compare(shown[0], shown[1], prompt))
        elif len(shown) == len(chosen) == 1:
            tiles.append(enlargeable(shown[0].data, shown[0].alt, prompt, room=TILE))
    return tiles


# -- pictures


class Shown(NamedTuple):
    """A picture on the page: its name, data: address and alternative text. box: the square of it that is shown, (left,
    top, side) in pixels of its `size`; None: all of it."""

    name: str
    data: str
    alt: str
    box: tuple[int, int, int] | None = None
    size: tuple[int, int] = (1, 1)

    def html(self, kind: str = "") -> str:
        """The <img>, within a <span> where a part is shown; kind: its class."""
        image = f'<img src="{self.data}" alt="{escape(self.alt)}"'
        if self.box is None:
            return f'{image} class="{kind}">' if kind else f"{image}>"
        left, top, side = self.box
        parts = {"w": self.size[0], "x": -left, "y": -top}
        place = ";".join(f"--{name}:{100 * value / side:.4f}%" for name, value in parts.items())
        return f'<span class="crop {kind}" style="{place}">{image}></span>'


class Figure(NamedTuple):
    """A PNG of `python -m eval figure`, and what it says of itself."""

    path: Path
    data: str
    story: dict[str, Any]


def _figures(paths: Sequence[Path]) -> tuple[list[Figure], list[Path], list[str]]:
    """Figures among the paths, the other paths, and a sentence for each picture that is none."""
    figures, rest, problems = [], [], []
    for path in paths:
        if not path.is_file() or path.suffix.lower() not in (".png", ".pdf"):
            rest.append(path)
            continue
        try:
            story = json.loads(read_png_text(path, "dash-vision") or "null")
            figure = Figure(path, as_data(path.read_bytes()), story)
            _figure(figure)  # whether its story is whole
            figures.append(figure)
        except (Refused, OSError, ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{path} is no figure for the report; give a .png that `python -m eval figure` wrote")
    return figures, rest, problems


def _figure(figure: Figure) -> str:
    blocks, seed = figure.story["blocks"], figure.story["seed"]
    parts = []
    for block in blocks:
        methods, prompts = ", ".join(block["adapters"]), "; ".join(block["prompts"])
        parts.append(f"{prompts}: for each one picture by {methods}")
    words = ". ".join(parts)
    alt = f"figure of inputs and generated pictures. {words}"
    return enlargeable(figure.data, alt, f"{words}. Same starting noise for all methods of a prompt, seed {seed}.")


def same_pictures(first: DreamBoothRun, second: DreamBoothRun) -> bool:
    """Whether two runs were trained on the same pictures."""
    return first.record.instance_digest == second.record.instance_digest


class Sheet(NamedTuple):
    """A DreamBooth run's samples.png."""

    name: str
    run: DreamBoothRun
    size: tuple[int, int]
    data: str

    def starts_like(self, other: Sheet) -> bool:
        """Whether two sheets' tiles start from the same noise, under the same prompts, for the same pictures."""
        if self._noise != other._noise or not same_pictures(self.run, other.run):
            return False
        try:
            return same_base(self.run, other.run) is True
        except InputError:  # of a native file, which the curves name
            return False

    @property
    def _noise(self) -> tuple[Any, ...]:
        names = ("validation_prompt", "num_inference_steps", "guidance_scale", "resolution", "num_validation_images")
        run = self.run
        asked = tuple(str(run.record.arguments.get(name)) for name in names)
        return (run.prompt, run.record.seed, self.size, *asked)

    @property
    def columns(self) -> list[str]:
        """The prompt of every column."""
        record = self.run.record
        return [p for p in record.validation_prompts for _ in range(int(record.arguments["num_validation_images"]))]

    @property
    def tiles(self) -> list[tuple[int, int, int]]:
        """(left, top, side) of the trained model's picture in every column, in pixels of the sheet; none where the
        sheet has another layout than `draw_sheet` gives."""
        return last_row(self.size, len(self.columns))

    def tile(self, column: int) -> Shown:
        """The trained model's picture in a column."""
        alt = f"{self.name} on the base {self.run.base}: {self.columns[column]}, generated picture"
        return Shown(self.run.method, self.data, alt, self.tiles[column], self.size)

    @property
    def alt(self) -> str:
        base = f"on the base {self.run.base}"
        return f"samples of {self.name} {base}: inputs above, below the base and the trained model per prompt"


def _sheets(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Sheet], list[str]]:
    sheets, problems = [], []
    for name, run in zip(names, runs, strict=True):
        if not isinstance(run, DreamBoothRun):
            continue
        path = run.folder / "samples.png"
        try:
            height, width = read_picture(path).original_size
            sheets.append(Sheet(name, run, (width, height), as_data(path.read_bytes())))
        except (Refused, OSError, ValueError) as reason:
            if not path.exists():
                problems.append(f"{run.folder} has no samples.png; its run was stopped while it drew its pictures")
            else:
                problems.append(f"{path} is no readable picture ({reason}); make the run again")
    return sheets, problems


def _pictures(sheets: Sequence[Sheet]) -> str:
    """Sliders, tile by tile, for every LoRA-Dash sheet that has a LoRA sheet from the same noise, of the same rank
    where there is one; then every sheet."""
    parts = []
    for dash in sheets:
        rivals = [s for s in sheets if s.run.method == "LoRA" and s.tiles and s.starts_like(dash)]
        if dash.run.method != "LoRA-Dash" or not rivals:
            continue
        same_rank = [s for s in rivals if s.run.argument("rank") == dash.run.argument("rank")]
        lora = (same_rank or rivals)[0]
        caption = (
            f"{lora.run.prompt}. Left of the line {lora.name}, right of it {dash.name}, from the same noise. Drag it."
        )
        pairs = [compare(lora.tile(i), dash.tile(i), prompt) for i, prompt in enumerate(dash.columns)]
        parts.append(f'<p class="caption">{escape(caption)}</p><div class="tiles pairs">{"".join(pairs)}</div>')
    if parts:
        parts.append("<h3>All pictures of every run</h3>")
    every = [enlargeable(sheet.data, sheet.alt, f"{sheet.name}: {sheet.run.prompt}") for sheet in sheets]
    return "\n".join([*parts, f'<div class="sheets">{"".join(every)}</div>' if every else ""]).strip()


def compare(left: Shown, right: Shown, caption: str) -> str:
    """Two pictures of one size over each other with a slider between them."""
    names = f"<b>{escape(left.name)}</b>"
    label = escape(f"{caption}: how much of {left.name} is shown over {right.name}, in percent")
    return (
        f'<figure class="compare" {TILE}><div class="bar">{names}'
        f'<button class="plain enlarge" aria-label="enlarge: {escape(caption)}">Enlarge</button>'
        f'<b>{escape(right.name)}</b></div><div class="frame">{right.html()}{left.html("over")}'
        f'<input type="range" min="0" max="100" value="50" aria-label="{label}"><span class="line"></span></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def enlargeable(data: str, alt: str, caption: str, room: str = SHEET) -> str:
    """A picture that a click enlarges; room: see `compare`."""
    return (
        f'<figure {room}><button class="frame zoom" aria-label="enlarge: {escape(alt)}">'
        f'<img src="{data}" alt="{escape(alt)}"></button><figcaption>{escape(caption)}</figcaption></figure>'
    )


def once(page: str) -> str:
    """The page with the data of every picture in it once: a later <img> of it names the first, and a line of the page's
    script gives it the data."""
    numbers: dict[str, int] = {}

    def place(match: re.Match[str]) -> str:
        known = match[1] in numbers
        number = numbers.setdefault(match[1], len(numbers))
        return f'<img data-of="picture-{number}"' if known else f'<img id="picture-{number}" src="{match[1]}"'

    return re.sub(r'<img src="(data:[^"]*)"', place, page)


def as_data(content: bytes) -> str:
    """A data: address of a picture's file. Raises ValueError for a file of another kind."""
    kind = sniff(content[:64])
    if kind not in READABLE:
        raise ValueError("no picture")
    kind = kind.lower()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# -- tables


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str, groups: Sequence[tuple[str, int]] = ()
) -> str:
    """A table that its reader can sort by any column. groups: (name, how many columns it spans) above the head."""
    heads = "".join(f'<th scope="col"><button>{escape(name)}</button></th>' for name in head)
    spans = "".join(f'<th scope="colgroup" colspan="{count}">{escape(name)}</th>' for name, count in groups)
    above = f'<tr class="groups">{spans}</tr>' if groups else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<p class="caption">{escape(caption)}</p><div class="scroll"><table class="sortable" '
        f'aria-label="{escape(caption)}"><thead>{above}<tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-v="{cell.value!r}"'
    text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    return f"<td{value}>{text}</td>"


def number(value: float | int | None, form: str = "{:,}") -> Cell:
    """A number in a table; BLANK where there is none."""
    return Cell(BLANK) if value is None else Cell(form.format(value), float(value))


def _accuracy(runs: Sequence[VtabRun]) -> str:
    """The table of VTAB-1k papers of what was tested, one of val200 for what was not, then every run."""
    if not runs:
        return ""
    names = _methods(runs)
    tested: dict[str, list[VtabRun]] = {}
    untested: dict[str, list[VtabRun]] = {}
    for name, run in zip(names, runs, strict=True):
        into = untested if run.record.test_accuracy is None else tested
        into.setdefault(name, []).append(run)
    notes = [
        f"{run.record.task} is {'synthetic' if run.record.synthetic else 'not the official split'}"
        for run in runs
        if _unofficial(run)
    ]
    seeds = "in percent: mean and sample standard deviation over seeds (number of seeds); the best of a column is bold."
    seeds += "".join(f" Note {OTHER_SPLIT}: {note}." for note in dict.fromkeys(notes))
    summary = _by_task(_rows(tested, "test_accuracy"), f"Test accuracy {seeds}")
    closed = f"Accuracy on val200 of runs that kept their test images closed, {seeds}"
    summary += _by_task(_rows(untested, "val_accuracy"), closed)
    head = ["task", "method", "seed", "epoch", "val200", "test", "parameters", "seconds"]
    every = []
    for name, run in zip(names, runs, strict=True):
        c = run.record
        parameters = (c.parameters or {}).get("trained_without_head")
        every.append(
            [
                Cell(c.task),
                Cell(name),
                number(c.seed, "{}"),
                number(c.selected_epoch),
                number(c.val_accuracy, "{:.1f}"),
                number(c.test_accuracy, "{:.2f}"),
                number(parameters),
                number(c.seconds.get("total"), "{:.1f}"),
            ]
        )
    note = "Every run. epoch: chosen on val200; accuracies in percent; parameters: trained, without the head."
    return summary + table(head, every, note)


def _methods(runs: Sequence[VtabRun]) -> list[str]:
    """Each run's method with the settings in which runs of this method differ: only seeds are averaged."""
    unlike = {*PLACES, "task", "method", "seed"}
    settings = [{k: _plain(v) for k, v in run.record.arguments.items() if k not in unlike} for run in runs]
    differing = {
        method: _differing([s for r, s in zip(runs, settings, strict=True) if r.method == method])
        for method in {run.method for run in runs}
    }
    return [
        ", ".join([run.method, *(f"{key} {own.get(key, BLANK)}" for key in differing[run.method])])
        for run, own in zip(runs, settings, strict=True)
    ]


def _unofficial(run: VtabRun) -> bool:
    return bool(run.record.synthetic or not run.record.official_split)


def _rows(found: Mapping[str, Sequence[VtabRun]], measure: str) -> list[Row]:
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


def _by_task(rows: Sequence[Row], caption: str) -> str:
    """Methods down, tasks across in the papers' order and groups, then means: of whole groups, of these, and of all
    tasks of the 19 that are there."""
    there = dict.fromkeys(task for row in rows for task in row.cells)
    if not there:
        return ""
    groups = {name: {task: TASKS[task] for task in tasks if task in there} for name, tasks in GROUPS.items()}
    whole = {name: [list(tasks)] for name, tasks in groups.items() if len(tasks) == len(GROUPS[name])}
    of_vtab = [task for tasks in groups.values() for task in tasks]
    means: dict[str, list[list[str]]] = dict(whole)
    if len(whole) == len(GROUPS):
        means[MEAN_OF_GROUPS] = [list(tasks) for tasks in groups.values()]
    if len(of_vtab) > 1:
        means[f"mean of {len(of_vtab)}"] = [of_vtab]
    groups["other"] = {task: task for task in there if task not in TASKS}
    columns = Columns({name: tasks for name, tasks in groups.items() if tasks}, means)
    body = [
        [
            Cell(row.name),
            *(
                Cell("".join(in_words(cell, True)), None if cell is None else cell.value, column in best)
                for column, cell in enumerate(values(row, columns))
            ),
        ]
        for row, best in zip(rows, best_cells(rows, columns), strict=True)
    ]
    spans = [("", 1), *((name, len(tasks)) for name, tasks in columns.groups.items())]
    head = ["method", *columns.tasks.values(), *columns.means]
    return table(head, body, caption, [*spans, ("means", len(means))] if means else spans)


def _dreambooth_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    body = []
    for name, run in zip(names, runs, strict=True):
        if not isinstance(run, DreamBoothRun):
            continue
        c = run.record
        last = run.losses[-max(1, len(run.losses) // 10) :]
        body.append(
            [
                Cell(name),
                number(run.argument("rank")),
                number(run.argument("dash_k")),
                number(c.trainable_parameters),
                number(c.steps),
                number(run.launch),
                number(run.argument("learning_rate"), "{:g}"),
                number(c.seed, "{}"),
                number(statistics.fmean(last) if last else None, "{:.4f}"),
                number(c.timings.get("train"), "{:.1f}"),
            ]
        )
    if not body:
        return ""
    head = ["run", "rank", "k", "parameters", "steps", "launch", "rate", "seed", "last loss", "seconds"]
    note = "DreamBooth runs. last loss: mean of the last tenth of the steps; seconds: of training alone."
    return table(head, body, note)


def _settings(runs: Sequence[Run], names: Sequence[str]) -> str:
    """One table for each kind of run, at first of the settings in which its runs differ."""
    parts = []
    for kind, title in KINDS:
        chosen = [(name, run) for name, run in zip(names, runs, strict=True) if isinstance(run, kind)]
        columns = [
            {key: _plain(v) for key, v in run.record.arguments.items() if key not in PLACES} for _, run in chosen
        ]
        if not columns:
            continue
        identity = f"settings-{title.lower()}"
        box, only = "", bool(_differing(columns))
        if only:
            label = f'<input type="checkbox" class="differences" data-table="{identity}" checked> only what differs'
            box = f"<label>{label}</label>"
        heading = f"<h3>{title}</h3>" if len({type(run) for run in runs}) > 1 else ""
        parts.append(heading + box + _side_by_side(columns, [name for name, _ in chosen], identity, only))
    return "".join(parts)


def _versions(runs: Sequence[Run], names: Sequence[str]) -> str:
    if not runs:
        return ""
    columns = [{**run.record.versions, "device": run.record.device} for run in runs]
    differing = _differing(columns)
    said = f"They differ in {', '.join(differing)}." if differing else "The same for every run."
    if len(runs) == 1:
        said = "What the run was made with."
    every = _side_by_side(columns, names, "all-versions")
    return f"<p>{escape(said)}</p><details><summary>All versions</summary>{every}</details>"


def _differing(columns: Sequence[dict[str, str]]) -> list[str]:
    """The names whose values differ among the columns that have them."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [key for key in keys if len({column[key] for column in columns if key in column}) > 1]


def _side_by_side(
    columns: Sequence[dict[str, str]], names: Sequence[str], identity: str, only_differing: bool = False
) -> str:
    """Names down, runs across; the rows in which runs differ are marked, those without any value left out."""
    keys = list(dict.fromkeys(key for column in columns for key, value in column.items() if value != BLANK))
    differing = set(_differing(columns))
    head = "".join(f'<th scope="col" class="words">{escape(name)}</th>' for name in ("", *names))
    shown = ' class="only-differences"' if only_differing else ""
    lines = []
    for key in keys:
        values = "".join(f'<td class="words">{escape(column.get(key, BLANK))}</td>' for column in columns)
        kind = "differs" if key in differing else "same"
        lines.append(f'<tr class="{kind}"><th scope="row">{escape(key)}</th>{values}</tr>')
    return (
        f'<div class="scroll"><table id="{identity}"{shown}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _plain(value: Any) -> str:
    if value is None or value == "" or value == []:
        return BLANK
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(v)}" for key, v in value.items())
    if isinstance(value, list):
        return "; ".join(_plain(v) for v in value)
    return str(value)
