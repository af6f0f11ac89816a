"""Charts of what was measured of a run: progress.png, and the same on pages of eval."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..drawing.plot import Panel, Point, Series, draw
from ..runs.evaluation import Evaluated, Evaluation

_SMOOTH = 25  # parts of a run over which the training loss is averaged
LIKENESS, ADHERENCE, DRIFT, LEAK, LOSS, TRAINING = 0, 1, 2, 3, 4, 5  # colours


def progress_panels(evaluation: Evaluation, losses: Sequence[float], launch: int | None) -> list[Panel]:
    """Likeness and agreement, drift and leak, and the losses, against the step. losses: of every training step. launch:
    the step after which the dash was launched."""
    marks: list[tuple[float, str]] = [(launch, f"launch of the dash, step {launch}")] if launch else []
    if evaluation.recommended is not None:
        step = evaluation.recommended.step
        marks.append((step, f"recommended, step {step}"))
    names = evaluation.encoders
    panels = [
        _panel(
            "How like the subject",
            "mean cosine",
            [
                _line(
                    evaluation,
                    "likeness",
                    f"likeness to {evaluation.which} pictures ({names.get('likeness')})",
                    LIKENESS,
                ),
                _line(evaluation, "adherence", f"agreement with the prompt ({names.get('adherence')})", ADHERENCE),
            ],
            marks,
        ),
        _panel(
            "How far from the base",
            "0: as the base",
            [
                _line(evaluation, "drift", "drift: change of unrelated prompts", DRIFT),
                _line(evaluation, "leak", "leak: the class looks like the subject", LEAK),
            ],
            marks,
        ),
        _panel(
            "Denoising loss",
            "mean squared error",
            [
                _line(evaluation, "loss", f"{evaluation.which} pictures, same noise at every step", LOSS),
                _training(losses),
            ],
            marks,
        ),
    ]
    return [panel for panel in panels if panel.series]


def trade_off_panel(evaluation: Evaluation) -> Panel | None:
    """Likeness against drift: the checkpoints as a path by step, those marked that no other one beats in both; None
    where these were not measured."""
    points = _both([one for one in (evaluation.base, *evaluation.trained) if one is not None])
    if len(points) < 2:
        return None
    best = [points[i][1] for i in _unbeaten(points)]
    path, labels = [point for _, point in points], [str(step) for step, _ in points]
    series = [
        Series("checkpoints by step", path, LIKENESS, marker="dot", labels=labels),
        Series("best trade-offs: no other step is better in both", best, LOSS, "dots", marker="square"),
    ]
    chosen = evaluation.recommended
    if chosen is not None:
        mine = [p for step, p in points if step == chosen.step]
        series.append(Series(f"recommended: step {chosen.step}", mine, DRIFT, "dots", marker="diamond"))
    encoder = evaluation.encoders.get("likeness", "")
    return Panel(
        "Likeness against drift",
        f"drift: change of unrelated prompts, 0 as the base ({evaluation.encoders.get('drift', '')})",
        f"likeness to the pictures, mean cosine ({encoder})",
        series,
        note="Step 0 is the base. Up is more like the subject, left is nearer to the base.",
    )


def _both(checkpoints: Sequence[Evaluated]) -> list[tuple[int, Point]]:
    """Step and (drift, likeness) of those that have both."""
    found = [(one.step, one.mean("drift"), one.mean("likeness")) for one in checkpoints]
    return [(step, (max(0.0, drift), like)) for step, drift, like in found if drift is not None and like is not None]


def _unbeaten(points: Sequence[tuple[int, Point]]) -> list[int]:
    """Places of the points that no other one beats: none is as far left and as high, and better in one of both."""
    places = []
    for i, (_, (drift, like)) in enumerate(points):
        others = [p for j, (_, p) in enumerate(points) if j != i]
        if not any(d <= drift and k >= like and (d < drift or k > like) for d, k in others):
            places.append(i)
    return places


def draw_progress(
    evaluation: Evaluation, losses: Sequence[float], launch: int | None, subject: str = ""
) -> Image.Image:
    """The page of progress.png."""
    panels = progress_panels(evaluation, losses, launch)
    held = len(evaluation.heldout)
    pictures = f"{held} {evaluation.which} picture{'' if held == 1 else 's'}"
    footnote = f"{subject}: measured on {pictures}. Step 0 is the base without an adapter."
    if evaluation.recommended is not None:
        footnote = f"{footnote} {evaluation.recommended.sentence}"
    return draw(panels, min(2, len(panels)), footnote)


def _panel(title: str, y: str, lines: Sequence[Series], marks: Sequence[tuple[float, str]]) -> Panel:
    return Panel(title, "optimizer step", y, [line for line in lines if line.points], marks)


def _line(evaluation: Evaluation, measure: str, name: str, colour: int) -> Series:
    values = [(one.step, one.mean(measure)) for one in evaluation.checkpoints]
    points: list[Point] = [(float(step), value) for step, value in values if value is not None]
    return Series(name, points, colour, marker="dot")


def _training(losses: Sequence[float]) -> Series:
    """The training loss, averaged over parts of the run: single steps see other noise each."""
    size = max(1, len(losses) // _SMOOTH)
    points = [
        (first + (size + 1) / 2, sum(losses[first : first + size]) / size)
        for first in range(0, len(losses) - size + 1, size)
    ]
    return Series(f"training, mean of {size} steps" if size > 1 else "training", points, TRAINING)
