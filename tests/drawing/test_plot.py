"""Charts show their numbers, as SVG and as pictures."""

import re

import numpy as np
import pytest

from dash_vision.core.analysis import Overlap
from dash_vision.drawing.plot import MOST_LINES, Panel, Series, _parts, draw, running_mean, svg, thinned, ticks
from eval.directions import Layer, _over_steps


@pytest.mark.parametrize("window", [1, 4, 30])
def test_a_running_mean_is_the_mean_of_the_last_values(window):
    values = np.random.default_rng(0).normal(size=20)
    means = running_mean(values.tolist(), window)
    assert means == pytest.approx([values[max(0, i + 1 - window) : i + 1].mean() for i in range(20)])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 0.7), (3, 4000), (1e-7, 3e-7), (99.9, 100.1)])
def test_ticks_are_few_round_numbers_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-9 * abs(low) <= t <= high + 1e-9 * abs(high) for t in found)
    step = found[1] - found[0]
    assert np.diff(found) == pytest.approx(step)
    assert step / 10 ** np.floor(np.log10(step) + 1e-9) == pytest.approx(round(step / 10 ** np.floor(np.log10(step))))


def test_thinning_keeps_the_ends_and_the_order():
    points = [(float(i), float(i * i)) for i in range(1234)]
    few = thinned(points, 100)
    assert len(few) <= 102
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert few == sorted(few)


def numbers(path):
    return [tuple(map(float, pair.split())) for pair in path.removeprefix("M").rstrip("Z").split("L")]


def test_a_chart_shows_its_numbers_at_its_ticks():
    points = [(0.0, 0.0), (25.0, 1.0), (100.0, 4.0)]
    drawing = svg(Panel("t", "x", "y", [Series("s", points)], marks=[(50.0, "half")]))
    (line,) = [
        numbers(d) for d in re.findall(r'class="l c0" d="([^"]+)" stroke-width="2', drawing) if d.count("L") == 2
    ]
    labels_at = {
        text: (float(x), float(y)) for x, y, text in re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)<', drawing)
    }
    # Ticks are labelled 4 px below the middle of their line; x labels stand centred under their place.
    assert line[-1][1] == pytest.approx(labels_at["4"][1] - 4, abs=0.2)
    assert line[-1][0] == pytest.approx(labels_at["100"][0], abs=0.2)
    (x0, y0), (x1, y1), (x2, y2) = line
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=0.01)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.25, abs=0.01)
    sample, mark = (numbers(d) for d in re.findall(r'class="l soft" d="([^"]+)"', drawing))
    assert [x for x, _ in mark] == pytest.approx([(x0 + x2) / 2] * 2, abs=0.2)
    assert max(y for _, y in sample) < y2 < y0 <= max(y for _, y in mark)  # the legend's is above the chart


def drawn_lines(drawing):
    """(class, style, points) of every series' line, the legend's samples first."""
    found = re.findall(r'<path class="l (c\d)" d="([^"]+)" stroke-width="[^"]+" opacity="[^"]+"([^/]*)/>', drawing)
    return [(colour, style, numbers(d)) for colour, d, style in found]


@pytest.mark.parametrize("count", [1, 8, 22, 114])
def test_a_long_legend_leaves_the_chart_its_size(count):
    series = [Series(f"a task of many, method {i}, seed 0", [(0.0, 0.0), (7.0, 1.0)], i) for i in range(count)]
    panel = Panel("t", "x", "y", series, marks=[(3.0, "launched")], bounds=(0.0, 1.0))
    drawing = svg(panel)
    lines = drawn_lines(drawing)
    assert len(lines) == 2 * count
    height = float(re.search(r'viewBox="0 0 460 (\d+)"', drawing)[1])
    legend = [
        float(y) for y, words in re.findall(r'y="([\d.]+)" font-size="12"[^>]*>([^<]*)<', drawing) if words != "x"
    ]
    assert len(legend) == count + 1
    for _, _, ((_, low), (_, high)) in lines[count:]:  # pixels grow downwards: bounds 0 and 1 are the area's ends
        assert max(legend) < high
        assert low - high >= 120
        assert low < height - 20
    assert draw([panel]).height == 2 * (height + 2 * 28)
    assert draw([panel, Panel("t", "x", "y", []), panel], columns=2).height == 2 * (2 * height + 36 + 2 * 28)


def test_lines_of_one_colour_have_other_dashes_in_legend_and_chart_alike():
    series = [Series(str(i), [(0.0, float(i)), (1.0, float(i))], i) for i in range(MOST_LINES)]
    looks = [(colour, style) for colour, style, _ in drawn_lines(svg(Panel("", "x", "y", series)))]
    assert len(set(looks)) == MOST_LINES
    assert looks[:MOST_LINES] == looks[MOST_LINES:]


def test_points_of_one_colour_have_other_shapes():
    """Runs of one epoch are single points."""
    looks = []
    for i in range(MOST_LINES):
        drawing = svg(Panel("", "x", "y", [Series("", [(3.0, 0.5)], i)]))
        ((kind, colour, d),) = re.findall(r'<(circle|path) class="[lf] (c\d)"(?: d="([^"]+)")?', drawing)[:1]
        outline = np.array(numbers(d)) if d else np.zeros((1, 2))
        looks.append((kind, colour, str(outline - outline[0])))
    assert len(set(looks)) == MOST_LINES
    assert {kind for kind, _, _ in looks[:8]} == {"circle"}


def test_dashes_follow_the_path_through_its_corners():
    # A right angle of 30 + 40 pixels: 10 drawn, 5 left out, from 0: [0, 10] [15, 25] [30, 40] [45, 55] [60, 70].
    parts = [[round(x + y, 6) for x, y in part] for part in _parts([(0, 0), (30, 0), (30, 40)], (10, 5))]
    assert [(part[0], part[-1]) for part in parts if part[0] < part[-1]] == [(15 * i, 15 * i + 10) for i in range(5)]
    parts = list(_parts([(0, 0), (12, 0), (12, 40)], (20, 5)))
    assert parts[0] == [(0, 0), (12, 0), (12, 8)]


@pytest.mark.parametrize("steps", [[13], [13, 14], [0, 1, 2], [3, 6, 9]])
def test_steps_are_labelled_with_whole_numbers(steps):
    drawing = svg(Panel("", "step", "y", [Series("", [(s, 0.5) for s in steps])]))
    bottom = re.search(r'y="([\d.]+)"[^>]*text-anchor="middle">[\d.]+<', drawing)[1]
    found = re.findall(rf'y="{bottom}"[^>]*text-anchor="middle">([\d.]+)<', drawing)
    assert found
    assert all("." not in label for label in found)


@pytest.mark.parametrize("steps", [[13], [13, 26]])
def test_a_launch_before_the_first_epoch_s_end_is_inside_the_chart(steps):
    drawing = svg(Panel("", "step", "y", [Series("", [(s, 0.5) for s in steps])], marks=[(5, "launched")]))
    left = min(numbers(d)[0][0] for d in re.findall(r'class="l rule" d="([^"]+)"', drawing))
    _, mark = (numbers(d) for d in re.findall(r'class="l soft" d="([^"]+)"', drawing))
    assert mark[0][0] == pytest.approx(left, abs=0.1)


def test_what_a_mark_means_stands_in_the_legend_once():
    series = [Series("s", [(0.0, 0.0), (10.0, 1.0)])]
    drawing = svg(Panel("t", "x", "y", series, marks=[(3.0, "launched"), (5.0, "launched")]))
    (y,) = re.findall(r'y="([\d.]+)"[^>]*>launched<', drawing)
    assert float(y) < min(y for *_, points in drawn_lines(drawing)[1:] for _, y in points)


@pytest.mark.parametrize("name", ["a/very/long/folder/name" * 8, "down_blocks.0.attentions.0." * 5, "x" * 300])
def test_long_names_are_broken_inside_the_panel(name):
    drawing = svg(Panel(name, "x", "y", [Series(name, [(0.0, 0.0), (1.0, 1.0)])]))
    for size in (12, 15):
        words = [w for w in re.findall(rf'font-size="{size}"[^>]*>([^<]+)<', drawing) if w != "x"]
        assert "".join(words) == name
        assert max(map(len, words)) * size * 0.53 < 460
        if "x" not in name:
            assert all(word[-1] in "/." for word in words[:-1])


def test_equal_curves_with_markers_both_show():
    points = [(20.0, 0.3), (60.0, 0.5)]
    for shown in (points, points[:1]):  # a run that kept no checkpoint has one step
        at = {step: Overlap(value, value) for step, value in shown}
        panel = _over_steps([Layer("m", at, [Overlap(0.1, 0.1), Overlap(0.2, 0.2)])], [int(step) for step, _ in shown])
        drawing = svg(panel)
        assert [list(s.points) for s in panel.series if s.name in ("recall", "accuracy")] == [shown, shown]
        squares = [points for colour, _, points in drawn_lines(drawing) if colour == "c0" and len(points) == 5]
        dots = re.findall(r'class="f c1" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', drawing)
        assert len(squares) == len(dots) == 1 + len(shown)  # one in the legend
        for square, dot in zip(squares[1:], dots[1:], strict=True):
            x, y, radius = map(float, dot)
            assert (min(a for a, _ in square) + max(a for a, _ in square)) / 2 == pytest.approx(x, abs=0.1)
            assert min(a for a, _ in square) < x - radius - 1
            assert min(b for _, b in square) < y - radius - 1


def test_pillow_draws_the_same_places_as_svg():
    panel = Panel("", "x", "y", [Series("", [(0.0, 0.0), (10.0, 10.0)])])
    page = np.asarray(draw([panel])).astype(int)
    line = numbers(re.search(r'class="l c0" d="([^"]+)"', svg(panel))[1])
    blue = np.argwhere(page[..., 2] - page[..., 0] > 90)  # nothing else is blue
    top, bottom = blue[blue[:, 0].argmin()], blue[blue[:, 0].argmax()]
    for found, expected in ((bottom, line[0]), (top, line[1])):
        assert found[1] / 2 - 28 == pytest.approx(expected[0], abs=2)
        assert found[0] / 2 - 28 == pytest.approx(expected[1], abs=2)


def test_logarithmic_axes_leave_out_what_has_no_logarithm():
    drawing = svg(Panel("", "x", "y", [Series("s", [(0, 1.0), (1, 0.0), (2, 10.0), (3, 100.0)])], log=True))
    (line,) = [numbers(d) for d in re.findall(r'class="l c0" d="([^"]+)"', drawing) if d.count("L") == 2]
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)
