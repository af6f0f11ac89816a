"""Charts show their numbers, as SVG and as pictures."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageDraw

from dash_vision.drawing.numbers import running_mean, thinned, ticks
from dash_vision.drawing.paint import parts
from dash_vision.drawing.plot import MOST_LINES, Bar, Panel, Series, draw, svg
from tests.support.charts import drawn_lines, numbers


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


@pytest.mark.parametrize("count", [1, 8, 22, 114])
def test_a_long_legend_leaves_the_chart_its_size(count):
    # Not two of them begin in one place: equal lines have more words in the legend.
    series = [Series(f"a task of many, method {i}, seed 0", [(0.05 * i, 0.0), (7.0, 1.0)], i) for i in range(count)]
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
    short = Panel("t", "x", "y", [])
    assert draw([panel, short, panel, short], columns=2).height == 2 * (2 * height + 36 + 2 * 28)


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
    drawn = [[round(x + y, 6) for x, y in part] for part in parts([(0, 0), (30, 0), (30, 40)], (10, 5))]
    assert [(part[0], part[-1]) for part in drawn if part[0] < part[-1]] == [(15 * i, 15 * i + 10) for i in range(5)]
    assert next(parts([(0, 0), (12, 0), (12, 40)], (20, 5))) == [(0, 0), (12, 0), (12, 8)]


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


def pieces(drawing, colour, thickness="2.2"):
    """The places and dashes of the pieces of a line."""
    look = rf'stroke-width="{thickness}" opacity="[^"]+"(?: style="stroke-dasharray:([\d.,]+);[^"]*")?'
    found = re.findall(rf'<path class="l {colour}" d="([^"]+)" {look}/>', drawing)
    return [(numbers(d), tuple(map(float, dashes.split(","))) if dashes else ()) for d, dashes in found]


def test_a_line_on_another_one_is_dashed_where_they_are_equal_and_nowhere_else():
    first = [(0.0, 1.0), (1.0, 2.0), (2.0, 0.0), (3.0, 3.0), (4.0, 3.5)]
    second = [*first[:3], (3.0, 1.0), (4.0, 0.5)]
    drawing = svg(Panel("", "x", "y", [Series("one", first, 0), Series("two", second, 1)]))
    ((whole, solid),) = pieces(drawing, "c0")
    assert (len(whole), solid) == (5, ())
    (equal, dashes), (apart, none) = pieces(drawing, "c1")
    assert equal == whole[:3]
    assert dashes == (8, 8)
    assert (apart[0], len(apart), none) == (whole[2], 3, ())
    assert "these lines lie on each other" in drawing
    assert "same as" not in drawing


def test_equal_lines_are_named_and_each_shows():
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, 0.5)]
    page = draw([Panel("", "x", "y", [Series(name, points, colour) for colour, name in enumerate("abc")])])
    pixels = np.asarray(page).astype(int)
    shares = []
    for code in ("2f6fde", "d9730d", "16855b"):
        colour = [int(code[i : i + 2], 16) for i in (0, 2, 4)]
        shares.append(int((np.abs(pixels - colour).sum(axis=2) < 30).sum()))
    drawing = svg(Panel("", "x", "y", [Series(name, points, colour) for colour, name in enumerate("abc")]))
    assert "b (same as a)" in drawing
    assert "c (same as a)" in drawing
    legend = 18 * 2.5 * 4  # pixels of a sample in the legend
    assert all(share > 1.5 * legend for share in shares)
    apart = svg(Panel("", "x", "y", [Series("a", points), Series("b", [(x, y + 1) for x, y in points], 1)]))
    assert "same as" not in apart
    assert "lie on each other" not in apart


def test_the_panels_of_a_row_that_is_not_full_fill_the_page():
    panels = [Panel("", "x", "y", [Series("", [(0.0, 0.0), (1.0, 1.0)], i)]) for i in range(3)]
    page = np.asarray(draw(panels, columns=2)).astype(int)
    green = np.argwhere((page[..., 1] - page[..., 0] > 60) & (page[..., 1] - page[..., 2] > 20))
    assert green[:, 1].min() < 0.15 * page.shape[1]
    assert green[:, 1].max() > 0.9 * page.shape[1]
    alone = np.asarray(draw([replace(panels[0], wide=True), *panels[1:]], columns=2)).astype(int)
    blue = np.argwhere(alone[..., 2] - alone[..., 0] > 90)
    assert blue[:, 1].max() > 0.9 * alone.shape[1]


def test_bars_are_as_long_as_their_values_and_say_them():
    bars = [Bar("trained", 0.6, "60 %", 0), Bar("by chance", 0.3, "30 %", 7, 0.2, 0.4)]
    drawing = svg(Panel("How many", "", "", [], bars=bars))
    boxes = [numbers(d) for d in re.findall(r'class="f c\d" d="([^"]+)"', drawing)]
    long, short = (max(x for x, _ in box) - min(x for x, _ in box) for box in boxes)
    assert short / long == pytest.approx(0.5, abs=0.01)
    ends = next(numbers(d) for d in re.findall(r'class="l ink" d="([^"]+)"', drawing))
    assert [x / long * 0.6 for x, _ in ends] == pytest.approx([0.2, 0.4], abs=0.01)
    for words in ("trained", "60 %", "by chance", "30 %"):
        assert f">{words}<" in drawing
    assert 'aria-label="How many: trained: 60 %; by chance: 30 %"' in drawing


def test_no_words_of_a_page_are_cut_at_its_edge(monkeypatch):
    """Every text that Pillow draws lies inside the page."""
    outside = []
    original = ImageDraw.ImageDraw.text

    def spy(canvas, place, text, *rest, **options):
        box = canvas.textbbox(place, text, *rest[1:3], **{k: v for k, v in options.items() if k in ("font", "anchor")})
        if box[0] < 0 or box[1] < 0 or box[2] > canvas.im.size[0] or box[3] > canvas.im.size[1]:
            outside.append(text)
        return original(canvas, place, text, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    long = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q " * 3
    panel = Panel(long, long[:60], "y", [Series(long, [(0.0, 0.0), (1.0, 1.0)])], note=long)
    bars = [Bar(long[:50], 1.0, "100 % (90 of 100 draws: 64 % to 100 %)", 0, 0.9, 1.0)]
    draw([Panel("t", "", "", [], bars=bars, wide=True), panel, panel], 2, long * 3, headline=long * 2)
    assert not outside
