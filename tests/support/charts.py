"""The places of what a chart draws as SVG."""

import re


def numbers(path):
    return [tuple(map(float, pair.split())) for pair in path.removeprefix("M").rstrip("Z").split("L")]


def drawn_lines(drawing):
    """(class, style, points) of every series' line, the legend's samples first."""
    found = re.findall(r'<path class="l (c\d)" d="([^"]+)" stroke-width="[^"]+" opacity="[^"]+"([^/]*)/>', drawing)
    return [(colour, style, numbers(d)) for colour, d, style in found]
