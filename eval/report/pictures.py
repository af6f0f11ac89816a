"""The pictures on the page: figures, and the samples of runs with sliders between what is comparable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from dash_vision.drawing.sheet import sheet_tiles
from dash_vision.pictures.decode import Refused, read_picture, read_png_text

from ..bases import compare_bases
from ..colours import method_colours
from ..comparable import differences
from ..runs import DreamBoothRun, Run
from .html import Shown, as_data, compare, enlargeable

BASE = "base"


class Figure(NamedTuple):
    """A PNG of `python -m eval figure`, and what it says of itself."""

    path: Path
    data: str
    story: dict[str, Any]


def read_figures(paths: Sequence[Path]) -> tuple[list[Figure], list[Path], list[str]]:
    """Figures among the paths, the other paths, and a sentence for each picture that is none."""
    figures, rest, problems = [], [], []
    for path in paths:
        if not path.is_file() or path.suffix.lower() not in (".png", ".pdf"):
            rest.append(path)
            continue
        try:
            story = json.loads(read_png_text(path, "dash-vision") or "null")
            figure = Figure(path, as_data(path.read_bytes()), story)
            figure_html(figure)  # whether its story is whole
            figures.append(figure)
        except (Refused, OSError, ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{path} is no figure for the report; give a .png that `python -m eval figure` wrote")
    return figures, rest, problems


def figure_html(figure: Figure) -> str:
    """A figure with its words. Raises KeyError, TypeError or AttributeError for a story that is not whole."""
    blocks, seed = figure.story["blocks"], figure.story["seed"]
    parts = []
    for block in blocks:
        methods, prompts = ", ".join(block["adapters"]), "; ".join(block["prompts"])
        parts.append(f"{prompts}: for each one picture by the base and by {methods}")
    words = ". ".join(parts)
    alt = f"figure of inputs and generated pictures. {words}"
    return enlargeable(figure.data, alt, f"{words}. Same starting noise for all methods of a prompt, seed {seed}.")


class Sheet(NamedTuple):
    """A DreamBooth run's samples.png."""

    name: str
    run: DreamBoothRun
    size: tuple[int, int]
    data: str

    def unlike(self, other: Sheet) -> str | None:
        """In what two sheets differ that makes their tiles no fair pair: the first such thing; None where a tile of one
        may stand beside that of the other."""
        same_pictures = self.run.record.instance_digest == other.run.record.instance_digest
        if not same_pictures or self.run.prompt != other.run.prompt:
            return "subject"
        if self.run.record.steps != other.run.record.steps:
            return "number of training steps"
        if self._prompts != other._prompts:
            return "prompts"
        if self._noise != other._noise or self.size != other.size:
            return "starting noise or sampler"
        if compare_bases(self.run, other.run) is not None:
            return "base"
        settings = list(differences([self.run, other.run]))
        return f"settings ({', '.join(settings)})" if settings else None

    @property
    def _prompts(self) -> tuple[Any, ...]:
        return (*self.run.record.validation_prompts, self.run.record.arguments["num_validation_images"])

    @property
    def _noise(self) -> tuple[Any, ...]:
        names = ("num_inference_steps", "guidance_scale", "resolution")
        return (self.run.record.seed, *(self.run.record.arguments.get(name) for name in names))

    @property
    def columns(self) -> list[str]:
        """The prompt of every column."""
        record = self.run.record
        return [p for p in record.validation_prompts for _ in range(int(record.arguments["num_validation_images"]))]

    def tiles(self, row: int = -1) -> list[tuple[int, int, int]]:
        """(left, top, side) of every column's picture, in pixels of the sheet, of the trained model or, for row -2, of
        the base; none where the sheet has another layout than `draw_sheet` gives."""
        return sheet_tiles(self.size, len(self.columns), row)

    def trained(self, column: int) -> Shown:
        """The trained model's picture in a column."""
        alt = f"{self.name} on the base {self.run.base}: {self.columns[column]}, generated picture"
        colour = method_colours([self.run.method])[self.run.method]
        return Shown(
            self.run.method, f"step {self.run.record.steps:,}", self.data, alt, colour, self.tiles()[column], self.size
        )

    def untrained(self, column: int) -> Shown:
        """The base's picture in a column."""
        alt = f"the base {self.run.base} alone: {self.columns[column]}, generated picture"
        box = self.tiles(-2)[column]
        return Shown(BASE, "without training", self.data, alt, method_colours([BASE])[BASE], box, self.size)

    @property
    def after(self) -> str:
        """How long the run was trained."""
        return f"{self.run.record.steps:,} training steps"

    @property
    def alt(self) -> str:
        """What is on the sheet."""
        base = f"on the base {self.run.base}"
        return f"samples of {self.name} {base}: inputs above, below the base and the trained model per prompt"


def read_sheets(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Sheet], list[str]]:
    """The samples of DreamBooth runs, and a sentence for each run whose samples cannot be shown."""
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


def pairs(sheets: Sequence[Sheet]) -> list[tuple[Sheet, Sheet]]:
    """For every LoRA-Dash sheet a LoRA sheet that it may be compared with, of the same rank where there is one."""
    found = []
    for dash in sheets:
        if dash.run.method != "LoRA-Dash" or not dash.tiles():
            continue
        rivals = [s for s in sheets if s.run.method == "LoRA" and s.unlike(dash) is None]
        same_rank = [s for s in rivals if s.run.argument("rank") == dash.run.argument("rank")]
        found += [(lora, dash) for lora in (same_rank or rivals)[:1]]
    return found


def pictures(sheets: Sequence[Sheet]) -> str:
    """Sliders, tile by tile, between LoRA and LoRA-Dash where they are comparable, else between the base and the
    trained model; then every sheet."""
    compared = pairs(sheets)
    parts = [_pair(lora, dash) for lora, dash in compared]
    of_pairs = [sheet for pair in compared for sheet in pair]
    parts += [_before_and_after(sheet) for sheet in sheets if sheet not in of_pairs and sheet.tiles(-2)]
    parts += [f'<p class="caption">{escape(words)}</p>' for words in _not_compared(sheets, of_pairs)]
    if parts:
        parts.append("<h3>All pictures of every run</h3>")
    every = [enlargeable(sheet.data, sheet.alt, f"{sheet.name}: {sheet.run.prompt}") for sheet in sheets]
    return "\n".join([*parts, f'<div class="sheets">{"".join(every)}</div>' if every else ""]).strip()


def _pair(lora: Sheet, dash: Sheet) -> str:
    words = f"{lora.name} (left) and {dash.name} (right), each after {dash.after}"
    tiles = [compare(lora.trained(i), dash.trained(i), prompt) for i, prompt in enumerate(dash.columns)]
    return _sliders(words, tiles)


def _before_and_after(sheet: Sheet) -> str:
    words = f"The base (left) and {sheet.name} (right) after {sheet.after}"
    tiles = [compare(sheet.untrained(i), sheet.trained(i), prompt) for i, prompt in enumerate(sheet.columns)]
    return _sliders(words, tiles)


def _sliders(words: str, tiles: Sequence[str]) -> str:
    caption = f"{words}, from the same noise. Drag a line, or move it with the arrow keys."
    return f'<p class="caption">{escape(caption)}</p><div class="tiles pairs">{"".join(tiles)}</div>'


def _not_compared(sheets: Sequence[Sheet], of_pairs: Sequence[Sheet]) -> list[str]:
    """Why there is no slider between LoRA and LoRA-Dash of one subject."""
    reasons: dict[str, list[str]] = {}
    for dash in (s for s in sheets if s.run.method == "LoRA-Dash" and s not in of_pairs):
        for lora in (s for s in sheets if s.run.method == "LoRA"):
            reason = lora.unlike(dash)
            if reason is not None and reason != "subject":
                both = f"{lora.name} ({lora.after}) and {dash.name} ({dash.after})"
                reasons.setdefault(reason, []).append(both)
    return [
        f"There is no slider between {'; '.join(both[:3])}{' and others' if len(both) > 3 else ''}: they differ in "
        f"their {reason}."
        for reason, both in reasons.items()
    ]
