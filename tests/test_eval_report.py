"""Curves and the page: that charts show the numbers, that the page holds everything, and that a browser can use it."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers import save_base, save_pictures
from PIL import Image
from safetensors import safe_open
from test_dreambooth import settings, train
from vtab_helpers import trained_run

from dash_vision.core.analysis import Overlap
from dash_vision.drawing.plot import MOST_LINES, Panel, Series, _parts, draw, running_mean, svg, thinned, ticks
from dash_vision.drawing.sheet import Row, draw_sheet
from eval.__main__ import main
from eval.curves import all_panels
from eval.directions import Layer, _over_steps
from eval.figure import save
from eval.report import Sheet
from eval.runs import DreamBoothRun, find_runs, labels, short_names


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """dream/lora, dream/dash (the same noise) and vtab/ with two methods."""
    root = tmp_path_factory.mktemp("runs")
    save_base(root / "sd")
    save_pictures(root / "cat")
    few = {"max_train_steps": 6, "prelaunch_steps": 2, "num_inference_steps": 2}
    train(settings(root, root / "dream" / "dash", **few))
    train(settings(root, root / "dream" / "lora", dash_k=0, **few))
    for method in ("dash", "lora"):
        trained_run(root, methods=[method], output_dir=str(root / "vtab"))
    return root


# -- charts


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


# -- curves


def test_curves_are_what_the_runs_recorded(runs):
    found, problems = find_runs([runs / "dream", runs / "vtab"])
    assert (problems, labels(found)[:2]) == ([], ["LoRA-Dash", "LoRA"])
    panels, _ = all_panels(found)
    loss = panels[0]
    assert loss.marks == [(2, "dash launched after step 2")]
    recorded = json.loads((runs / "dream/dash/run.json").read_text())["losses"]
    assert list(loss.series[0].points) == [(i + 1, v) for i, v in enumerate(recorded)]
    val = next(p for p in panels if p.title == "Accuracy on val200")
    curve = json.loads(next((runs / "vtab").rglob("dash/*/result.json")).read_text())["selection"]["curves"][0]
    # 24 training images in batches of 8 are 3 steps an epoch.
    assert list(val.series[0].points) == [(3 * s["epoch"], s["val_accuracy"]) for s in curve]
    with safe_open(runs / "dream/dash/dash_adapter.safetensors", "pt") as file:
        shifts = {k: file.get_tensor(k) for k in file.keys() if k.endswith(".dsigma")}  # noqa: SIM118
        indices = [file.get_tensor(k) for k in file.keys() if k.endswith(".indices")]  # noqa: SIM118
    learned = next(p for p in panels if p.title == "Learned shifts of singular values: LoRA-Dash")
    drawn = sorted(v for s in learned.series for _, v in s.points)
    assert drawn == pytest.approx(sorted(v for t in shifts.values() for v in t.tolist()))
    assert {s.name for s in learned.series} == {"to_q", "to_k", "to_v", "to_out"}
    places = next(p for p in panels if p.title.startswith("Where the chosen") and p.title.endswith(": LoRA-Dash"))
    heights = [v for s in places.series for _, v in s.points]
    assert len(heights) == sum(map(len, indices))
    assert min(heights) >= 0
    assert max(heights) <= 1


def test_curves_of_good_runs_are_drawn_beside_broken_ones(runs, tmp_path, capsys):
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/run.json").write_text('{"kind": "dreamb')
    assert main(["curves", str(runs / "dream"), str(tmp_path / "cut"), str(tmp_path / "c.png")]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "cut" in said.err
    assert "3 charts of 2 runs" in said.out
    with Image.open(tmp_path / "c.png") as page:
        assert page.width > 1500
    assert main(["curves", str(tmp_path / "cut"), str(tmp_path / "d.png")]) == 2
    assert main(["curves", str(runs / "dream"), str(tmp_path / "d.gif")]) == 2
    assert not (tmp_path / "d.png").exists()
    assert main(["curves", str(runs / "vtab"), str(tmp_path / "v.pdf")]) == 0
    assert (tmp_path / "v.pdf").read_bytes().startswith(b"%PDF")


def test_too_many_runs_for_a_picture_are_one_sentence_and_several_charts_of_a_page(runs, tmp_path, capsys):
    source = next((runs / "vtab").rglob("lora/*/result.json")).parent
    for i in range(MOST_LINES + 3):
        (tmp_path / "many" / f"run-{i:02d}").mkdir(parents=True)
        shutil.copy(source / "result.json", tmp_path / "many" / f"run-{i:02d}")
    assert main(["curves", str(tmp_path / "many"), str(tmp_path / "c.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "35 runs; one picture takes up to 32: name fewer" in said
    assert not (tmp_path / "c.png").exists()
    panels, _ = all_panels(find_runs([tmp_path / "many"])[0])
    assert [len(p.series) for p in panels] == [32, 32, 3, 3]


# -- which run is which


def record_of(folder, kind="dream", method="lora", task="cifar", seed=0, curve=(), **changes):
    """A folder with the record of a run, and no more than it takes to be one."""
    folder.mkdir(parents=True)
    if kind == "dream":
        numbers = {"rank": 1, "dash_k": 0, "learning_rate": 1e-3, "resolution": 64}
        content = {
            "kind": "dreambooth",
            "method": method,
            "base": {"name": "sd", "fingerprints": {"unet": "1"}},
            "instance_prompt": "a photo of sks cat",
            "class_prompt": None,
            "arguments": {**numbers, "num_inference_steps": 2, "guidance_scale": 2.0},
            "phases": [],
            "losses": [1.0],
            "versions": {},
        }
        (folder / "pytorch_lora_weights.safetensors").touch()
    else:
        curve = list(curve) or [{"epoch": 1, "train_loss": 1.0, "val_accuracy": 50.0}]
        content = {
            "task": task,
            "method": method,
            "seed": seed,
            "arguments": {"batch_size": 8, "prelaunch_steps": 5},
            "sizes": {"images": {"train800": 24}},
            "selection": {"candidate": 0, "curves": [curve]},
            "versions": {},
        }
    (folder / ("run.json" if kind == "dream" else "val_result.json")).write_text(json.dumps({**content, **changes}))


def test_only_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for place in ("1/r4/seed-0", "2/r4/seed-1"):
        record_of(tmp_path / "dream" / place)
    record_of(tmp_path / "dream/3/r4/seed-0", method="lora-dash")
    record_of(tmp_path / "vtab/cifar/dash/seed-7", "vtab", method="dash", seed=7)
    record_of(tmp_path / "vtab/svhn/lora/seed-0", "vtab", task="svhn")
    record_of(tmp_path / "again/svhn/lora/seed-0", "vtab", task="svhn")
    found, problems = find_runs([tmp_path / "dream", tmp_path / "vtab", tmp_path / "again"])
    assert problems == []
    assert labels(found) == [
        "LoRA (1/r4/seed-0)",
        "LoRA (2/r4/seed-1)",
        "LoRA-Dash",
        "cifar, LoRA-Dash, seed 7",
        "svhn, LoRA, seed 0 (vtab/svhn/lora/seed-0)",
        "svhn, LoRA, seed 0 (again/svhn/lora/seed-0)",
    ]


def test_short_names_are_the_ends_of_paths_from_where_they_part(tmp_path):
    assert short_names([tmp_path / "a/x/seed-0", tmp_path / "b/x/seed-1"]) == ["a/x/seed-0", "b/x/seed-1"]
    assert short_names([tmp_path / "a/x/seed-0", tmp_path / "a/x/../x/seed-1"]) == ["seed-0", "seed-1"]
    assert short_names([tmp_path / "a", tmp_path / "a/b"]) == ["a", "a/b"]  # one run inside another's folder
    assert short_names([tmp_path / "a/b"]) == ["b"]


def test_a_run_given_by_several_paths_is_there_once(tmp_path, monkeypatch):
    record_of(tmp_path / "all/one")
    record_of(tmp_path / "all/two")
    (tmp_path / "link").symlink_to(tmp_path / "all/one")
    monkeypatch.chdir(tmp_path)
    given = ["all/one", "all", "all/", "all/../all/one", "link", tmp_path / "all"]
    found, problems = find_runs(Path(p) for p in given)
    assert ([str(run.folder) for run in found], problems) == (["all/one", "all/two"], [])
    _, problems = find_runs([Path("none"), Path("none/"), tmp_path / "none"])
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("launched", "changes", "launch"),
    [
        ((False, True), {}, 5),
        ((False, False), {}, None),
        ((False, True), {"selected_settings": {"prelaunch_steps": 4}}, 4),
        ((False, True), {"launch": {"step": 6}}, 6),
        ((False, True), {"launch": None}, 5),
    ],
)
def test_the_launch_of_a_val_only_run(tmp_path, launched, changes, launch):
    curve = [{"epoch": i, "train_loss": 1.0, "val_accuracy": 1.0, "launched": on} for i, on in enumerate(launched, 1)]
    record_of(tmp_path / "run", "vtab", method="dash", curve=curve, **changes)
    (run,), _ = find_runs([tmp_path])
    assert run.launch == launch
    assert {mark for p in all_panels([run])[0] for mark in p.marks} == (
        {(launch, f"dash launched after step {launch}")} if launch else set()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"batch_size": 0}},
        {"arguments": {}},
        {"versions": ["torch"]},
        {"test_accuracy": "90"},
        {"selection": {"candidate": 1, "curves": []}},
    ],
)
def test_a_result_of_another_version_costs_itself_only(tmp_path, capsys, changes):
    record_of(tmp_path / "good", "vtab")
    record_of(tmp_path / "other", "vtab", **changes)
    for words in (["curves", str(tmp_path), str(tmp_path / "c.png")], ["report", str(tmp_path), "-o", "r.html"]):
        assert main([str(tmp_path / w) if w == "r.html" else w for w in words]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "other" in said
        assert "this version" in said


# -- the page


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page(runs):
    assert main(["report", str(runs / "dream"), str(runs / "vtab"), "-o", str(runs / "report.html")]) == 0
    return runs / "report.html"


def test_the_page_is_one_file_with_everything_in_it(runs, page):
    text = page.read_text()
    elements = Elements(text)
    sources = [a["src"] for a in elements.all("img") if "src" in a]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    pictures = [base64.b64decode(source.partition(",")[2]) for source in sources]
    files = [(runs / "dream" / name / "samples.png").read_bytes() for name in ("dash", "lora")]
    assert sorted(pictures) == sorted(files)  # each once, though the slider and the sheet show it
    assert not [a for tag in ("link", "iframe", "object") for a in elements.all(tag)]
    assert not [a for a in elements.all("script") if "src" in a]
    assert all(a["href"].startswith("#") for a in elements.all("a"))
    assert not re.search(r"url\(\"?https?:|@import|fetch\(", text)
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for a in elements.all("a")} <= set(ids)
    assert {a["data-of"] for a in elements.all("img") if "data-of" in a} <= set(ids)


def test_pictures_and_controls_have_words(page):
    elements = Elements(page.read_text())
    assert all(len(a["alt"]) > 20 for a in elements.all("img"))
    assert all(a.get("role") == "img" and a["aria-label"] for a in elements.all("svg"))
    assert [a["aria-label"] for a in elements.all("input") if a["type"] == "range"]


def painted_sheet(colour, columns=1, inputs=2):
    """A sheet whose trained pictures are of one colour, everything else of others."""

    def pictures(paint, count):
        return [Image.new("RGB", (64, 64), paint)] * count

    rows = [Row("base", "b", pictures("#777777", columns)), Row("LoRA", "n", pictures(colour, columns))]
    prompts = [f"a photo of sks cat, number {i}" for i in range(columns)]
    foot = "25 steps, guidance 7.5, seed 123456; same starting noise within a column."
    return draw_sheet(Row("input", "i", pictures("#00ff00", inputs)), prompts, rows, "cat", foot)


@pytest.mark.parametrize(("columns", "inputs"), [(1, 1), (1, 5), (3, 2), (4, 4), (5, 3), (9, 9)])
def test_the_trained_pictures_are_found_on_a_sheet(columns, inputs):
    page = painted_sheet("#ff0000", columns, inputs)
    content = {"arguments": {"validation_prompt": [str(i) for i in range(columns)], "num_validation_images": 1}}
    sheet = Sheet("LoRA", DreamBoothRun(Path(), content), page.size, "")
    assert len(sheet.tiles) == columns
    reds = np.all(np.asarray(page) == (255, 0, 0), axis=-1)
    for left, top, side in sheet.tiles:
        assert reds[top : top + side, left : left + side].all()
        reds[top : top + side, left : left + side] = False
    assert not reds.any()  # nothing of them is missed
    assert sheet._replace(size=(page.width + 1, page.height)).tiles == []


def copied_runs(runs, root, **changes):
    """lora/ and dash/ below `root`, with entries of dash's run.json changed."""
    for name in ("lora", "dash"):
        shutil.copytree(runs / "dream" / name, root / name)
    record = json.loads((root / "dash/run.json").read_text())
    record["arguments"] |= changes.pop("arguments", {})
    record |= changes
    (root / "dash/run.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    assert main(["report", str(root / "lora"), str(root / "dash"), "-o", str(root / "r.html")]) == 0
    return root / "r.html"


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        ({}, True),
        ({"instance_digest": "0" * 16}, False),
        ({"arguments": {"instance_data_dir": "moved/cat"}}, True),  # the same pictures elsewhere
        ({"instance_digest": None}, True),  # an older record: the folder decides
        ({"instance_digest": None, "arguments": {"instance_data_dir": "dog"}}, False),
        ({"seed": 7}, False),
    ],
)
def test_only_runs_on_the_same_pictures_from_the_same_noise_share_a_slider(runs, tmp_path, changes, compared):
    elements = Elements(copied_runs(runs, tmp_path, **changes).read_text())
    assert bool([a for a in elements.all("figure") if a.get("class") == "compare"]) == compared
    assert sum("inputs above" in a["alt"] for a in elements.all("img")) == 2  # the sheets in any case


def test_a_record_tells_pictures_apart_by_what_is_in_them(runs):
    record = json.loads((runs / "dream/dash/run.json").read_text())
    digest = hashlib.sha256()
    for path in sorted((runs / "cat").iterdir()):
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            digest.update(f"RGB {picture.size}".encode() + picture.tobytes())
    assert record["instance_digest"] == digest.hexdigest()[:16]


def test_a_figure_comes_first(runs, tmp_path, capsys):
    story = {
        "seed": 3,
        "blocks": [{"subject": "d/cat", "adapters": {"lora": "a", "dash": "b"}, "prompts": ["a cat <in> snow"]}],
    }
    save(Image.new("RGB", (300, 200), "red"), tmp_path / "figure.png", story)
    words = ["report", str(tmp_path / "figure.png"), str(runs / "dream/lora"), "-o", str(tmp_path / "r.html")]
    assert main(words) == 0
    elements = Elements((tmp_path / "r.html").read_text())
    first = elements.all("img")[0]
    assert base64.b64decode(first["src"].partition(",")[2]) == (tmp_path / "figure.png").read_bytes()
    for word in ("a cat <in> snow", "lora, dash"):
        assert word in first["alt"]
    assert any("seed 3" in word for word in elements.words)
    Image.new("RGB", (3, 3)).save(tmp_path / "plain.png")
    save(Image.new("RGB", (3, 3)), tmp_path / "directions.png", {"run": "r", "seed": 0})
    (tmp_path / "cut.png").write_bytes((tmp_path / "figure.png").read_bytes()[:200])
    capsys.readouterr()
    others = [str(tmp_path / f"{name}.png") for name in ("plain", "directions", "cut")]
    assert main([words[0], *others, *words[1:]]) == 1
    assert capsys.readouterr().err.count("is no figure for the report") == 3


PAPERS = {  # the columns of VTAB-1k tables
    "natural": ["cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"],
    "specialized": ["patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"],
    "structured": [
        "clevr_count",
        "clevr_dist",
        "dmlab",
        "kitti",
        "dsprites_loc",
        "dsprites_ori",
        "smallnorb_azi",
        "smallnorb_ele",
    ],
}


def accuracy_tables(page):
    """(head, rows of cells, cells in bold) of the tables under Accuracy."""
    part = page.read_text().partition('<h2 id="accuracy">')[2].partition("</section>")[0]
    found = []
    for text in part.split("<table")[1:]:
        above, _, body = text.partition("<tbody>")
        head = re.findall(r"<button>([^<]*)</button>", above)
        spans = [(name, int(n)) for n, name in re.findall(r'colspan="(\d+)">([^<]*)<', above)]
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]
        found.append((spans, head, rows))
    return found


def write_results(runs, root, accuracies, name="result.json"):
    """accuracies: (method, rank, task, seed) -> percent, as result.json or val_result.json."""
    record = json.loads(next((runs / "vtab").rglob("lora/*/result.json")).read_text())
    for i, ((method, rank, task, seed), value) in enumerate(accuracies.items()):
        own = record | {"method": method, "task": task, "seed": seed, "val_accuracy": value}
        own["test_accuracy"] = value if name == "result.json" else None
        own["arguments"] = record["arguments"] | {"rank": rank, "task": task, "seed": seed, "method": method}
        (root / str(i)).mkdir(parents=True)
        (root / str(i) / name).write_text(json.dumps(own))


def test_accuracies_stand_in_the_order_groups_and_means_of_papers(runs, tmp_path):
    order = [task for tasks in PAPERS.values() for task in tasks]
    values = np.random.default_rng(0).uniform(20, 90, size=(2, 19, 2)).round(3)
    found = {
        (method, 4, task, seed): values[m, t, seed]
        for t, task in sorted(enumerate(order), key=lambda pair: pair[1])
        for m, method in enumerate(("lora", "dash"))
        for seed in (0, 1)
    }
    write_results(runs, tmp_path / "all", found)
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    spans, head, rows = accuracy_tables(tmp_path / "r.html")[0]
    assert spans == [("", 1), ("natural", 7), ("specialized", 4), ("structured", 8), ("means", 5)]
    assert head[1:3] + head[18:20] == ["Cifar100", "Caltech101", "sNORB-Azim", "sNORB-Ele"]
    assert head[20:] == ["natural", "specialized", "structured", "mean of groups", "mean of 19"]
    expected = values.mean(axis=2)
    groups = np.stack([expected[:, :7].mean(1), expected[:, 7:11].mean(1), expected[:, 11:].mean(1)], axis=1)
    expected = np.concatenate([expected, groups, groups.mean(1)[:, None], expected.mean(1)[:, None]], axis=1)
    by_method = {row[0]: row[1:] for row in rows}
    shown = [by_method["LoRA"], by_method["LoRA-Dash"]]
    for m, column in np.ndindex(expected.shape):
        text = shown[m][column]
        assert float(re.sub("</?b>", "", text).split()[0]) == pytest.approx(expected[m, column], abs=0.051)
        rounded = expected[:, column].round(1)
        assert text.startswith("<b>") == (rounded[m] == rounded.max())
    assert f"± {values[0, 0].std(ddof=1):.1f} (2)" in shown[0][0]


def test_means_pair_seeds(runs, tmp_path):
    found = {("lora", 4, "cifar", 1): 70.0, ("lora", 4, "cifar", 0): 50.0}
    found |= {("lora", 4, "dtd", 0): 40.0, ("lora", 4, "dtd", 1): 60.0}
    write_results(runs, tmp_path / "all", found)
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    _, head, rows = accuracy_tables(tmp_path / "r.html")[0]
    assert head[-1] == "mean of 2"
    assert rows[0][-1].startswith("55.0 ± 14.1")  # seeds 0 and 1: 45 and 65


def test_settings_are_not_averaged_and_untested_runs_have_their_table(runs, tmp_path):
    found = {("lora", 1, "cifar", 0): 30.0, ("lora", 8, "cifar", 0): 50.0, ("dash", 8, "mine", 1000): 40.0}
    write_results(runs, tmp_path / "all", found, "val_result.json")
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    (spans, head, rows), (_, _, every) = accuracy_tables(tmp_path / "r.html")
    assert (spans, head) == ([("", 1), ("natural", 1), ("other", 1)], ["method", "Cifar100", "mine"])
    nothing = "–"  # noqa: RUF001
    assert rows == [
        ["LoRA, rank 1", "30.0 (1)‡", nothing],
        ["LoRA, rank 8", "<b>50.0 (1)‡</b>", nothing],
        ["LoRA-Dash", nothing, "40.0 (1)‡"],
    ]
    assert {row[2] for row in every} == {"0", "1000"}
    assert "val200" in (tmp_path / "r.html").read_text().partition('<h2 id="accuracy">')[2][:200]


def test_one_processor_is_no_difference(runs, tmp_path):
    for name, folder in (("a", runs / "dream/lora"), ("b", next((runs / "vtab").rglob("lora/*/result.json")).parent)):
        shutil.copytree(folder, tmp_path / "all" / name)
    record = json.loads((tmp_path / "all/a/run.json").read_text())
    record["device"] = {"type": "cpu", "name": "x86_64", "threads": 3}
    (tmp_path / "all/a/run.json").write_text(json.dumps(record))
    for threads, differs in ((3, False), (4, True)):
        result = json.loads((tmp_path / "all/b/result.json").read_text()) | {"device": f"cpu, {threads} threads"}
        (tmp_path / "all/b/result.json").write_text(json.dumps(result))
        assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
        said = next(w for w in Elements((tmp_path / "r.html").read_text()).words if w.startswith(("They", "The same")))
        assert ("device" in said) == differs


def test_measured_subjects_are_found_below_a_folder(runs, tmp_path, capsys):
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "per_prompt": [0.5]}
    result = {
        "kind": "subject", "subject": "sks cat", "prompts": ["p"], "prompt_list": "own",
        "backbones": {"DINO": "vit"}, "differences": [],
        "ceiling": {"DINO": score}, "images_per_prompt": 1, "token_in_clip_t": False, "seed": 0, "stand_in": False,
        "num_inference_steps": 2, "guidance_scale": 1.0,
        "methods": {"LoRA": {"method": "LoRA", "run": None, "pictures": "LoRA", "scores": {"DINO": score}}},
    }  # fmt: skip
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "subject.json").write_text(json.dumps(result | {"subject": f"subject {name}"}))
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    words = Elements((tmp_path / "r.html").read_text()).words
    assert {"subject a", "subject b"} <= set(words)
    shutil.copytree(runs / "dream/lora", tmp_path / "all/run")
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    assert "LoRA-Dash: 1 DreamBooth run and 2 measured subjects" in Elements((tmp_path / "r.html").read_text()).words


def test_tables_hold_the_recorded_numbers(runs, page):
    words = Elements(page.read_text()).words
    result = json.loads(next((runs / "vtab").rglob("dash/*/result.json")).read_text())
    assert f"{result['test_accuracy']:.2f}" in words
    record = json.loads((runs / "dream/dash/run.json").read_text())
    assert f"{record['trainable_parameters']:,}" in words
    assert record["versions"]["torch"] in words
    assert "cifar is not the official split" in "".join(words)


def test_what_users_write_stays_text(runs, tmp_path):
    shutil.copytree(runs / "dream/lora", tmp_path / "lora")
    record = json.loads((tmp_path / "lora/run.json").read_text())
    record["instance_prompt"] = record["arguments"]["instance_prompt"] = '<script>alert("x")</script>'
    (tmp_path / "lora/run.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path / "lora"), "-o", str(tmp_path / "r.html")]) == 0
    elements = Elements((tmp_path / "r.html").read_text())
    assert len(elements.all("script")) == 1  # the page's own
    assert any('alert("x")' in word for word in elements.words)


def forget(folder, name, value=None):
    """Take an argument out of a record, or write another value for it."""
    record = json.loads((folder / "run.json").read_text())
    del record["arguments"][name]
    record["arguments"] |= {} if value is None else {name: value}
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "run.json").write_text('{"kind": "dre'), "cannot be read"),
        (lambda f: (f / "run.json").write_text('{"kind": "dreambooth"}'), "another version"),
        (lambda f: (f / "run.json").write_text('["dreambooth"]'), "another version"),
        (lambda f: forget(f, "rank"), "another version"),
        (lambda f: forget(f, "resolution"), "another version"),
        (lambda f: forget(f, "learning_rate", "0.1"), "another version"),
        (lambda f: (f / "samples.png").write_bytes((f / "samples.png").read_bytes()[:300]), "no readable picture"),
        (lambda f: (f / "samples.png").unlink(), "no samples.png"),
        (lambda f: (f / "dash_adapter.safetensors").write_bytes(b"1234"), "no complete .safetensors file"),
        (lambda f: shutil.rmtree(f), "there is no folder"),
        (lambda f: [p.unlink() for p in f.glob("*.json")], "holds no run.json"),
    ],
)
def test_a_broken_run_is_one_sentence_and_the_others_are_reported(runs, tmp_path, capsys, damage, sentence):
    shutil.copytree(runs / "dream/dash", tmp_path / "broken")
    damage(tmp_path / "broken")
    words = ["report", str(tmp_path / "broken"), str(runs / "dream/lora"), "-o", str(tmp_path / "r.html")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said
    written = Elements((tmp_path / "r.html").read_text())
    assert any(sentence in word for word in written.words)
    assert any("samples of LoRA on the base" in a["alt"] for a in written.all("img"))


def test_nothing_to_report_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 2
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.pdf")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert not (tmp_path / "r.html").exists()


# -- in a browser


@pytest.fixture(scope="module")
def browser():
    """Debian's headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium with chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


def show(browser, page, width=1200, scheme="light"):
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = {"features": [{"name": name, "value": value} for name, value in wishes.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def test_the_slider_uncovers_the_other_method(browser, page):
    show(browser, page)
    (frame,) = find(browser, ".compare .frame")
    (over,) = find(browser, ".compare .over")

    def shown():  # of LoRA: the part of its picture that is not clipped away
        clip = browser.execute_script("return getComputedStyle(arguments[0]).clipPath", over)
        cut = [float(v) for v in re.findall(r"([\d.]+)(?:%|px)", clip)]
        return 100 - cut[1]

    from selenium.webdriver import ActionChains, Keys

    assert shown() == pytest.approx(50)
    ActionChains(browser).move_to_element_with_offset(frame, frame.size["width"] // 4, 20).click().perform()
    assert shown() == pytest.approx(75, abs=1)
    find(browser, ".compare input")[0].send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert shown() == pytest.approx(73, abs=1)


def colours(browser, element):
    """The colours at a quarter and at three quarters of an element's width, 20 pixels below its top."""
    with Image.open(BytesIO(element.screenshot_as_png)) as picture:
        pixels = picture.convert("RGB")
        return [pixels.getpixel((pixels.width * part // 4, 20)) for part in (1, 3)]


@pytest.mark.parametrize("width", [1200, 390])
def test_the_slider_lies_on_the_generated_picture_and_fits_the_window(browser, runs, tmp_path, width):
    page = copied_runs(runs, tmp_path)
    for name, colour in (("lora", "#ff0000"), ("dash", "#0000ff")):
        painted_sheet(colour).save(tmp_path / name / "samples.png")
    assert main(["report", str(tmp_path / "lora"), str(tmp_path / "dash"), "-o", str(page)]) == 0
    show(browser, page, width=width)
    (frame,) = find(browser, ".compare .frame")
    assert frame.size["width"] > 240
    assert colours(browser, frame) == [(255, 0, 0), (0, 0, 255)]
    find(browser, ".compare .enlarge")[0].click()
    (large,) = find(browser, "dialog .frame")
    line = find(browser, "dialog .line")[0].rect
    assert large.rect["x"] >= 0
    assert large.rect["x"] + large.rect["width"] <= width
    assert line["x"] == pytest.approx(width / 2, abs=12)  # a scroll bar's half
    assert large.size["width"] >= frame.size["width"] - 10
    assert colours(browser, large) == [(255, 0, 0), (0, 0, 255)]


def test_a_click_enlarges_and_escape_closes(browser, page):
    from selenium.webdriver import ActionChains, Keys

    show(browser, page, width=390)
    (dialog,) = find(browser, "dialog")
    assert not dialog.is_displayed()
    sheet = find(browser, "button.zoom")[0]
    small = sheet.size["width"]
    sheet.click()
    assert dialog.is_displayed()
    assert find(browser, "dialog img")[0].size["width"] > 2 * small
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not dialog.is_displayed()


def test_tables_sort_by_a_click(browser, page):
    show(browser, page)
    table = next(t for t in find(browser, "table.sortable") if "val200" in t.text)
    heads = [h.text for h in table.find_elements("css selector", "thead th")]
    column = next(i for i, text in enumerate(heads) if "parameters" in text)

    def values():
        rows = table.find_elements("css selector", "tbody tr")
        return [int(r.find_elements("css selector", "td")[column].text.replace(",", "")) for r in rows]

    before = values()
    assert len(set(before)) == 2
    button = table.find_elements("css selector", "thead button")[column]
    button.click()
    assert values() == sorted(before)
    button.click()
    assert values() == sorted(before, reverse=True)


def test_the_first_column_stays_in_sight(browser, page):
    show(browser, page, width=390)
    scroll = next(s for s in find(browser, ".scroll") if "val200" in s.text)
    for cell in scroll.find_elements("css selector", "tbody td:first-child")[:2]:
        before = cell.rect["x"]
        browser.execute_script("arguments[0].scrollLeft = 120", scroll)
        assert browser.execute_script("return arguments[0].scrollLeft", scroll) == 120
        assert cell.rect["x"] == pytest.approx(before, abs=1.5)
        browser.execute_script("arguments[0].scrollLeft = 0", scroll)


def test_the_settings_that_differ_come_first_and_all_on_request(browser, page):
    show(browser, page)
    box = find(browser, "input.differences")[0]
    seen = {r.find_element("css selector", "th").text for r in find(browser, "#settings-dreambooth tbody tr")}
    assert {name for name in seen if name} == {"dash_k"}
    box.click()
    seen = {r.find_element("css selector", "th").text for r in find(browser, "#settings-dreambooth tbody tr")}
    assert {"rank", "learning_rate", "seed"} <= seen


def test_a_phone_needs_no_sideways_scrolling_and_dark_is_dark(browser, page):
    show(browser, page, width=360)
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= 360
    brightness = {}
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        for part in ("background-color", "color"):
            rgb = find(browser, "body")[0].value_of_css_property(part)
            brightness[scheme, part] = sum(map(int, re.findall(r"\d+", rgb)[:3]))
    assert brightness["light", "background-color"] > 700 > 250 > brightness["light", "color"]
    assert brightness["dark", "background-color"] < 150 < 600 < brightness["dark", "color"]


def test_the_page_asks_for_nothing_and_reports_no_error(browser, page):
    show(browser, page)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
