"""The sheet, the curves and the table of an adapter at several strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from dash_vision.drawing.numbers import fixed
from dash_vision.drawing.plot import Panel, Point, Series, draw
from dash_vision.drawing.sheet import Row, draw_sheet
from dash_vision.measures.yardstick import Measured

from ..intervals import Interval, interval_method, intervals

# Measure -> its column, what a chart says of it, and its colour.
MEASURES = {
    "likeness": ("likeness", "Likeness to the subject", "mean cosine", 0),
    "adherence": ("CLIP-T", "Agreement with the prompt", "CLIP-T", 1),
    "drift": ("drift", "Change of unrelated prompts", "drift; 0: as the base", 2),
    "leak": ("leak", "Likeness of the class to the subject, above the base's", "leak; 0: as the base", 3),
}
_SPECIAL = {0.0: ": the base", 1.0: ": as trained"}


def named(scale: float) -> str:
    """A strength in words."""
    return f"{scale:g}{_SPECIAL.get(scale, '')}"


def sheet(
    about: str,
    inputs: Sequence[Image.Image],
    columns: Sequence[str],
    rows: Sequence[tuple[float, Sequence[Image.Image]]],
    how: str,
) -> Image.Image:
    """A row for each strength."""
    lines = [Row(f"strength {scale:g}", _SPECIAL.get(scale, "")[2:], pictures) for scale, pictures in rows]
    first = Row("the subject", f"{len(inputs)} picture{'' if len(inputs) == 1 else 's'}", inputs)
    return draw_sheet(first, columns, lines, f"{about}, at several strengths", f"{how}.")


def means(rows: Sequence[tuple[float, Measured]]) -> dict[str, dict[float, Interval]]:
    """Measure -> scale -> mean and interval over what was drawn; measures without values are left out."""
    found = {}
    for name in MEASURES:
        values = {f"{scale:g}": getattr(measured, name) for scale, measured in rows}
        if all(values.values()):
            spread = intervals(values)
            found[name] = {scale: spread[f"{scale:g}"] for scale, _ in rows}
    return found


def curves(rows: Sequence[tuple[float, Measured]], encoders: Mapping[str, str], about: str) -> Image.Image:
    """Each measure against the strength with its interval, and likeness against drift."""
    found = means(rows)
    panels = [_panel(name, by_scale, encoders) for name, by_scale in found.items()]
    if {"likeness", "drift"} <= found.keys():
        path: list[Point] = [(found["drift"][s].mean, found["likeness"][s].mean) for s, _ in rows]
        dots = [
            Series(named(s), [point], colour, "dots")
            for colour, ((s, _), point) in enumerate(zip(rows, path, strict=True))
        ]
        panels.append(
            Panel("Likeness against drift", "drift; 0: as the base", "likeness", [Series("", path, 7, "faint"), *dots])
        )
    return draw(panels, 2, f"{about}. {_intervals(rows)}")


def _panel(name: str, by_scale: Mapping[float, Interval], encoders: Mapping[str, str]) -> Panel:
    _, title, unit, colour = MEASURES[name]
    line: list[Point] = [(scale, one.mean) for scale, one in by_scale.items()]
    series = [Series(f"mean ({encoders[name]})", line, colour, marker="dot")]
    ends = [(scale, one.low, one.high) for scale, one in by_scale.items()]
    low: list[Point] = [(s, low) for s, low, _ in ends if low is not None]
    high: list[Point] = [(s, high) for s, _, high in ends if high is not None]
    if low:
        series.insert(0, Series("95% interval", low, colour, "band", high))
    return Panel(title, "strength of the adapter", unit, series)


def _intervals(rows: Sequence[tuple[float, Measured]]) -> str:
    """What the intervals are of."""
    first = rows[0][1]
    methods = [interval_method(len(getattr(first, name))) for name in MEASURES]
    named_ = next((method for method in methods if method), None)
    return (
        f"95% intervals over what was drawn ({named_})."
        if named_
        else "One picture each, so that none has an interval."
    )


def markdown(
    about: str, rows: Sequence[tuple[float, Measured]], encoders: Mapping[str, str], compared_with: str
) -> str:
    """The table."""
    found = means(rows)
    lines = [f"# {about}, at several strengths", ""]
    if not found:
        return "\n".join([*lines, "Nothing was measured, since no encoder could be used.", ""])
    by: dict[str, list[str]] = {}
    for name in found:
        by.setdefault(encoders[name], []).append(MEASURES[name][0])
    said = "; ".join(f"{', '.join(names)} by {encoder}" for encoder, names in by.items())
    lines += [f"Compared with {compared_with}. {said}. {_intervals(rows)}", ""]
    lines += [f"| strength | {' | '.join(MEASURES[name][0] for name in found)} |", f"| --- |{' ---: |' * len(found)}"]
    for scale, _ in rows:
        lines.append(f"| {named(scale)} | {' | '.join(_cell(found[name][scale]) for name in found)} |")
    return "\n".join([*lines, ""])


def _cell(found: Interval) -> str:
    if found.low is None or found.high is None:
        return fixed(found.mean, 3)
    return f"{fixed(found.mean, 3)} ({fixed(found.low, 3)} to {fixed(found.high, 3)})"
