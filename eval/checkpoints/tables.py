"""The table of a run's checkpoints."""

from __future__ import annotations

from dash_vision.drawing.numbers import fixed
from dash_vision.runs.evaluation import Evaluated, Evaluation, measures_of

RESULT = "checkpoints.json"


def markdown(evaluation: Evaluation, launch: int | None) -> str:
    """Every checkpoint's values, what measured them, and the recommendation."""
    measures = measures_of(evaluation.checkpoints)
    lines = [f"| step | {' | '.join(measures)} | |", f"| ---: |{' ---: |' * len(measures)} --- |"]
    for one in sorted(evaluation.checkpoints, key=lambda one: one.step):
        cells = [fixed(mean, 4) if (mean := one.mean(name)) is not None else "" for name in measures]
        lines.append(f"| {one.step} | {' | '.join(cells)} | {', '.join(marks(one, evaluation, launch))} |")
    held = len(evaluation.heldout)
    how = ", from which the run learned" if evaluation.learned else ""
    about = "; ".join(_about(name, evaluation) for name in measures)
    lines += ["", f"Measured on {held} picture{'' if held == 1 else 's'} in {evaluation.folder}{how}"]
    lines[-1] += f": {about}." if about else "."
    if evaluation.recommended is not None:
        chosen = evaluation.recommended
        lines += ["", chosen.sentence, "", f"The rule (--prefer {chosen.prefer}): {chosen.rule}."]
    return "\n".join(lines) + "\n"


def _about(measure: str, evaluation: Evaluation) -> str:
    encoder = evaluation.encoders.get(measure)
    return f"{measure} is the {evaluation.meaning(measure)}" + (f" ({encoder})" if encoder else "")


def marks(one: Evaluated, evaluation: Evaluation, launch: int | None) -> list[str]:
    """What there is to say of a checkpoint beside its values. launch: the step after which the dash was launched."""
    marks = ["the base"] if one.step == 0 else []
    if evaluation.recommended is not None:
        marks += ["recommended"] if one.step == evaluation.recommended.step else []
        marks += ["cannot be told from the recommended one"] if one.step in evaluation.recommended.alike else []
    marks += ["before the launch"] if launch is not None and 0 < one.step < launch else []
    marks += ["applied"] if one.step == evaluation.applied else []
    return marks
