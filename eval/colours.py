"""The colours of methods: the same in charts, sliders and tables."""

from __future__ import annotations

from collections.abc import Sequence

from dash_vision.drawing.plot import MOST_LINES
from dash_vision.drawing.shapes import COLOURS

# By the names of runs.Run.method; other methods take the colours that are left, in the order in which they come.
_OF_METHODS = {"LoRA-Dash": 0, "LoRA": 1, "base": len(COLOURS) - 1}


def method_colours(methods: Sequence[str]) -> dict[str, int]:
    """The colour of each method, as an index of COLOURS. With more methods than colours some share one."""
    free = [colour for colour in range(len(COLOURS)) if colour not in _OF_METHODS.values()]
    others = [method for method in dict.fromkeys(methods) if method not in _OF_METHODS]
    chosen = {method: free[place % len(free)] for place, method in enumerate(others)}
    return {method: _OF_METHODS.get(method, chosen.get(method, 0)) for method in dict.fromkeys(methods)}


def line_colours(methods: Sequence[str]) -> list[int]:
    """A colour for each run's line, by its method, as an index of plot.Series: a second run of a method has its colour
    with other dashes. Where these are used up, what no run has yet. Up to MOST_LINES runs."""
    of_method, taken = method_colours(methods), set[int]()
    lines = []
    for method in methods:
        looks = [*range(of_method[method], MOST_LINES, len(COLOURS)), *range(MOST_LINES)]
        look = next(look for look in looks if look not in taken)
        taken.add(look)
        lines.append(look)
    return lines
