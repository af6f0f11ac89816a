"""What a run's page shows: words, charts, pictures and files, all read from its folder."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..diffusion.prompts import class_name
from ..drawing.numbers import fixed, running_mean, thinned
from ..drawing.plot import Panel, Series, svg
from ..drawing.sheet import sheet_tiles
from ..files.errors import InputError
from ..measures.charts import progress_panels, trade_off_panel
from ..pictures.captions import shown
from ..pictures.decode import Refused, read_picture
from ..runs.evaluation import EVALUATION, Evaluation, compared, measures_of, read_evaluation
from ..runs.record import METHODS, DreamBoothRecord
from .found import FoundRun

SAMPLES = "samples.png"
DRAWN = "drawn"  # where pictures of the prompt box go, in the run's folder
KEPT = "adapters"  # of earlier steps
SHEET = "checkpoints/checkpoints.png"  # what `eval checkpoints` leaves
_ROWS = {"trained": -1, "base": -2}  # of samples.png
STATES = {
    "running": "running",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "stopped by an error",
    "empty": "not started",
}


def duration(seconds: float) -> str:
    """A time as people say it: "40 s", "3 min 20 s", "2 h 5 min"."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def loss_chart(run: FoundRun) -> str:
    """The loss by step with the launch marked, as <svg>; "" before there is one."""
    points = [(float(step), loss) for step, loss in sorted(run.losses.items())]
    if len(points) < 2:
        return ""
    window = max(1, len(points) // 20)
    means = running_mean([loss for _, loss in points], window)
    smooth = [(step, mean) for (step, _), mean in zip(points, means, strict=True)][window - 1 :]
    series = [Series("", thinned(points), 0, "faint"), Series("", thinned(smooth), 0)]
    title = f"Loss, mean of {window} steps (pale: each step)" if window > 1 else "Loss of each step"
    marks = [(float(run.launch), f"dash launched after step {run.launch}")] if run.launch else []
    return svg(Panel(title, "step", "loss", series, marks), 460, 240)


# -- what the run measured of itself


@dataclass(frozen=True)
class Measured:
    """What was measured of a run's checkpoints. charts: <svg> elements. head, rows: of a table, a row a checkpoint with
    its step, its values and whether it is recommended. sentence: the recommendation. steps: of kept adapters. applied:
    the step whose adapter is the run's now, where that is not the last one. sheet: time of change of the contact sheet;
    0 without one."""

    charts: list[str]
    head: list[str]
    rows: list[tuple[int, list[str], bool]]
    sentence: str
    steps: list[int]
    applied: int | None
    sheet: int


def measured_of(run: FoundRun) -> Measured:
    """All of it, as far as it is there; a run that kept nothing out of the training has measured nothing."""
    found = evaluation_of(run)
    sheet = run.folder / SHEET
    ends = {path.name.rpartition("-")[2] for path in (run.folder / KEPT).glob("*-[0-9]*")}
    steps = sorted(int(digits) for digits in ends if digits.isdecimal())  # a user's own folders may be there too
    changed = _changed(sheet) if is_inside(run.folder, SHEET) else 0
    if found is None or not found.checkpoints:
        return Measured([], [], [], "", steps, None, changed)
    losses = [loss for _, loss in sorted(run.losses.items())]
    panels = [panel for panel in progress_panels(found, losses, run.launch) if "loss" not in panel.title.lower()]
    trade_off = trade_off_panel(found)
    charts = [svg(panel, 380, 240) for panel in [*panels, *([trade_off] if trade_off else [])]]
    charts = charts if len(found.checkpoints) > 1 else []  # one point is no course
    names = measures_of(found.checkpoints)
    chosen = found.recommended.step if found.recommended else None
    rows = []
    for one in found.checkpoints:
        means = [one.mean(name) for name in names]
        rows.append((one.step, ["" if mean is None else fixed(mean, 3) for mean in means], one.step == chosen))
    sentence = found.recommended.sentence if found.recommended else ""
    return Measured(charts, names, rows, sentence, steps, found.applied, changed)


def evaluation_of(run: FoundRun) -> Evaluation | None:
    """The latest: of `eval checkpoints`, of the record, or of the run at work."""
    recorded = run.record.evaluation if run.record else None
    later = compared(run.folder, recorded, run.record.steps) if run.record and run.state == "finished" else None
    return later or recorded or read_evaluation(run.folder / EVALUATION)


def state_of(run: FoundRun) -> dict[str, Any]:
    """What the page of a run asks for again and again, ready for JSON."""
    left, each = run.seconds_left(), run.told.seconds_a_step()
    share = 1.0 if run.state == "finished" else run.step / run.total if run.total else 0.0
    losses = [loss for _, loss in sorted(run.losses.items())][-10:]
    numbers = []
    if run.total:
        numbers.append(f"step {run.step:,} of {run.total:,}")
    if run.state == "running" and left is not None:
        numbers.append(f"about {duration(left)} left")
    if run.state == "running" and each is not None:
        numbers.append(f"{each:.2g} s a step")
    if losses:
        numbers.append(f"loss {sum(losses) / len(losses):.3f}")
    return {
        "state": run.state,
        "words": STATES[run.state],
        "phase": run.phase if run.state == "running" else STATES[run.state],
        "known": run.total > 0 and run.told.phase == "train",
        "share": round(share, 4),
        "numbers": " · ".join(numbers),
        "latest": latest_of(run),
        "chart": loss_chart(run),
        "problem": run.problem,
        "saved": run.saved,
        "launch": run.launch,
    }


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


# -- samples


@dataclass(frozen=True)
class Samples:
    """A sheet of samples. prompts: of its columns. rows: "base" and "trained", those that it has."""

    prompts: list[str]
    rows: list[str]
    changed: int


def samples_of(run: FoundRun) -> Samples | None:
    """A run's samples.png; None where there is none, or one of another layout."""
    return _sheet(run, SAMPLES)


def _sheet(run: FoundRun, name: str) -> Samples | None:
    path, columns = run.folder / name, prompts_of(run)
    if not columns or not is_inside(run.folder, name):
        return None
    try:
        size = _size(str(path), _changed(path))
    except Refused:
        return None
    wanted = _ROWS if name == SAMPLES else {"trained": -1}
    rows = [row for row, place in wanted.items() if sheet_tiles(size, len(columns), place)]
    return Samples(columns, rows, _changed(path)) if rows else None


def latest_of(run: FoundRun) -> dict[str, Any] | None:
    """The latest sheet of a run: after how many steps it was drawn, and the addresses and prompts of its pictures."""
    sheet = None if run.sheet is None else _sheet(run, run.sheet)
    if sheet is None or run.sheet is None:
        return None
    query = f"sheet={quote(run.sheet, safe='')}&v={sheet.changed}"
    place = f"/runs/{quote(run.name, safe='')}/tile/trained"
    step = re.search(r"step-0*(\d+)\.png", run.sheet)
    return {
        "words": f"What it draws after step {step[1]}" if step else "What it draws now",
        "pictures": [{"address": f"{place}/{i}?{query}", "prompt": prompt} for i, prompt in enumerate(sheet.prompts)],
    }


def prompts_of(run: FoundRun) -> list[str]:
    """The prompt of every column of a run's sheets."""
    return columns_of(run.record) if run.record else run.told.prompts


def is_inside(folder: Path, name: str) -> bool:
    """Whether a file is there and no link leads out of the folder."""
    path = folder / name
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def columns_of(record: DreamBoothRecord) -> list[str]:
    """The prompt of every column of samples.png."""
    count = record.arguments.get("num_validation_images")
    return [p for p in record.validation_prompts for _ in range(count if isinstance(count, int) else 1)]


@lru_cache(maxsize=64)
def _size(path: str, changed: int) -> tuple[int, int]:
    height, width = read_picture(Path(path)).original_size
    return width, height


@lru_cache(maxsize=512)
def _tile(path: str, changed: int, columns: int, row: int, column: int) -> bytes | None:
    image = read_picture(Path(path)).image
    tiles = sheet_tiles(image.size, columns, row)
    if not 0 <= column < len(tiles):
        return None
    left, top, side = tiles[column]
    buffer = io.BytesIO()
    image.crop((left, top, left + side, top + side)).save(buffer, "PNG")
    return buffer.getvalue()


def tile(run: FoundRun, sheet: str, row: str, column: int) -> bytes:
    """One picture of a sheet, samples.png or one drawn on the way, as PNG. Raises InputError."""
    path = run.folder / sheet
    if sheet in (SAMPLES, *run.told.pictures) and row in _ROWS and is_inside(run.folder, sheet):
        try:
            found = _tile(str(path), _changed(path), len(prompts_of(run)), _ROWS[row], column)
        except Refused as reason:
            raise InputError(f"{shown(sheet)} of {run.name} cannot be read ({reason})") from None
        if found is not None:
            return found
    raise InputError(f"{run.name} has no such picture; load its page again")


def unlike(a: DreamBoothRecord, b: DreamBoothRecord) -> str | None:
    """In what two runs differ that makes their samples no fair pair; None where one may stand beside the other."""
    if a.instance_digest != b.instance_digest or a.instance_prompt != b.instance_prompt:
        return "they were trained on other pictures or prompts"
    if columns_of(a) != columns_of(b):
        return "they have drawn other prompts"
    names = ("num_inference_steps", "guidance_scale", "resolution")
    if a.seed != b.seed or any(a.arguments.get(n) != b.arguments.get(n) for n in names):
        return "they have drawn from other noise, or with other settings of the sampler"
    return None if a.base.fingerprints == b.base.fingerprints else "they were trained on other bases"


def same_with_lora(run: FoundRun, others: Sequence[FoundRun]) -> FoundRun | None:
    """The run that shows what plain LoRA makes of the same: same pictures, noise, base and number of steps."""
    if run.record is None or run.record.method != "dash":
        return None
    for other in others:
        record = other.record
        fits = record is not None and other.state == "finished" and record.method == "lora"
        if fits and record is not None and record.steps == run.record.steps and unlike(run.record, record) is None:
            return other
    return None


def differences(a: DreamBoothRecord, b: DreamBoothRecord) -> list[tuple[str, str, str]]:
    """(setting, value of a, value of b) wherever they differ, folders apart."""
    left_out = {"output_dir", "instance_data_dir", "logging_dir", "class_data_dir"}
    rows = [("base", a.base.name, b.base.name), ("steps made", str(a.steps), str(b.steps))]
    rows += [("instance prompt", a.instance_prompt, b.instance_prompt), ("device", a.device, b.device)]
    for name in sorted(a.arguments.keys() | b.arguments.keys()):
        if name not in left_out | {"max_train_steps", "instance_prompt", "pretrained_model_name_or_path"}:
            rows.append((name, _said(a.arguments.get(name)), _said(b.arguments.get(name))))
    rows.append(("trained numbers", f"{a.trainable_parameters:,}", f"{b.trainable_parameters:,}"))
    rows.append(("time", duration(a.seconds), duration(b.seconds)))
    return [row for row in rows if row[1] != row[2]]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else "on" if value is True else "off" if value is False else str(value)


# -- files


@dataclass(frozen=True)
class Download:
    """A file to take away. key: in its address. what: whom it is for."""

    key: str
    path: Path
    name: str
    what: str
    size: str


def downloads(run: FoundRun) -> list[Download]:
    """The files of a finished run that other programs read."""
    wanted = [
        ("diffusers", Path("pytorch_lora_weights.safetensors"), "for diffusers"),
        *(("others", p.relative_to(run.folder), "for ComfyUI, A1111 and Forge") for p in _kohya(run.folder)),
        ("native", Path("dash_adapter.safetensors"), "for dash-vision"),
        ("card", Path("README.md"), "the model card"),
        ("samples", Path("samples.png"), "the sheet of samples"),
    ]
    found = []
    for key, relative, what in wanted:
        path = run.folder / relative
        if path.is_file() and path.resolve().is_relative_to(run.folder.resolve()):
            name = relative.name if key == "others" else f"{run.name}-{relative.name}"
            found.append(Download(key, path, name, what, file_size(path.stat().st_size)))
    return found


def _kohya(folder: Path) -> list[Path]:
    return sorted((folder / "kohya").glob("*.safetensors"))[:1]


def file_size(count: int) -> str:
    """Bytes as people say them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


@dataclass(frozen=True)
class Drawn:
    """A picture of the prompt box."""

    batch: str
    name: str
    prompt: str
    how: str


def drawn_of(run: FoundRun, most: int = 24) -> list[Drawn]:
    """The latest pictures of the prompt box, the newest first."""
    try:
        batches = sorted((p for p in (run.folder / DRAWN).iterdir() if p.is_dir()), reverse=True)
    except OSError:
        return []
    found: list[Drawn] = []
    for batch in batches:
        told = _told(batch)
        found += [
            Drawn(batch.name, p.name, told.get("prompt", ""), told.get("how", "")) for p in sorted(batch.glob("*.png"))
        ]
        if len(found) >= most:
            break
    return found[:most]


def _told(batch: Path) -> Mapping[str, str]:
    import json

    try:
        told = json.loads((batch / "drawn.json").read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in told.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def drawn_file(run: FoundRun, batch: str, name: str) -> Path:
    """A picture of the prompt box by its names. Raises InputError."""
    for drawn in drawn_of(run, most=10_000):
        if (drawn.batch, drawn.name) == (batch, name):
            return run.folder / DRAWN / batch / name
    raise InputError(f"there is no picture {shown(name)} in {run.name}; load the page again")


def summary(run: FoundRun) -> list[tuple[str, str]]:
    """What a run was, in a few rows."""
    record = run.record
    if record is None:
        return []
    arguments = record.arguments
    k = f", k = {arguments.get('dash_k')}" if arguments.get("dash_k") else ""
    launch = f", dash launched after step {record.launch.step}" if record.launch else ""
    return [
        ("prompt", record.instance_prompt),
        ("base", record.base.name),
        ("method", f"{METHODS.get(record.method, record.method)}, rank {arguments.get('rank')}{k}"),
        ("steps", f"{record.steps:,}{launch}"),
        ("rate", f"{arguments.get('learning_rate'):g}" if isinstance(arguments.get("learning_rate"), float) else ""),
        ("time", f"{duration(record.seconds)} on {record.device}"),
    ]


def title_of(run: FoundRun) -> str:
    """Its subject, where that is known; else its name."""
    return run.record.subject if run.record else class_name(run.name) or run.name
