"""The page holds what runs recorded, and nothing of what users write becomes markup."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dash_vision.runs.record import read_record
from eval.__main__ import main
from eval.report.pictures import Sheet
from eval.runs import DreamBoothRun
from eval.saving import save
from tests.support.eval import copied_runs, painted_sheet
from tests.support.records import dreambooth_record, write_record


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


def test_the_page_is_one_file_with_everything_in_it(recorded, page):
    text = page.read_text()
    elements = Elements(text)
    sources = [a["src"] for a in elements.all("img") if "src" in a]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    pictures = [base64.b64decode(source.partition(",")[2]) for source in sources]
    files = [(recorded / "dream" / name / "samples.png").read_bytes() for name in ("dash", "lora")]
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


@pytest.mark.parametrize(("columns", "inputs"), [(1, 1), (1, 5), (3, 2), (4, 4), (5, 3), (9, 9)])
def test_the_trained_pictures_are_found_on_a_sheet(tmp_path, columns, inputs):
    page = painted_sheet("#ff0000", columns, inputs)
    write_record(tmp_path / "run.json", dreambooth_record(validation_prompts=[str(i) for i in range(columns)]))
    sheet = Sheet("LoRA", DreamBoothRun(tmp_path, read_record(tmp_path / "run.json")), page.size, "")
    for row, colour in ((-1, (255, 0, 0)), (-2, (0x77, 0x77, 0x77))):  # the trained model and the base
        assert len(sheet.tiles(row)) == columns
        of_colour = np.all(np.asarray(page) == colour, axis=-1)
        for left, top, side in sheet.tiles(row):
            assert of_colour[top : top + side, left : left + side].all()
            of_colour[top : top + side, left : left + side] = False
        assert of_colour.sum() < 100  # nothing of them is missed; letters have such a grey here and there
    assert sheet._replace(size=(page.width + 1, page.height)).tiles() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"instance_digest": "0" * 16}, ""),  # of another subject nobody expects a slider
        ({"arguments": {"instance_data_dir": "moved/cat"}}, None),  # the same pictures elsewhere
        ({"seed": 7}, "starting noise or sampler"),
        ({"arguments": {"guidance_scale": 3.0}}, "starting noise or sampler"),
        ({"steps": 5}, "number of training steps"),
        ({"validation_prompts": ["another"]}, "prompts"),
    ],
)
def test_a_slider_stands_between_runs_that_differ_in_their_method_alone(recorded, tmp_path, changes, reason):
    elements = Elements(copied_runs(recorded, tmp_path, **changes).read_text())
    labels = sliders(elements)
    if reason is None:
        assert labels == ["how much of LoRA is shown over LoRA-Dash"]
    else:  # each of them against the base
        assert labels == ["how much of base is shown over LoRA", "how much of base is shown over LoRA-Dash"]
    said = " ".join(elements.words)
    if reason:
        assert (
            f"There is no slider between LoRA (6 training steps) and LoRA-Dash ({changes.get('steps', 6)} trai" in said
        )
        assert f"they differ in their {reason}." in said
    assert sum("inputs above" in a["alt"] for a in elements.all("img")) == 2  # the sheets in any case


def sliders(elements):
    """What each slider is between."""
    labels = [a["aria-label"] for a in elements.all("input") if a["type"] == "range"]
    return sorted({label.rpartition(": ")[2].removesuffix(", in percent") for label in labels})


def test_a_single_run_has_a_slider_between_the_base_and_the_trained_model(recorded, tmp_path):
    assert main(["report", str(recorded / "dream/dash"), "-o", str(tmp_path / "r.html")]) == 0
    elements = Elements((tmp_path / "r.html").read_text())
    assert sliders(elements) == ["how much of base is shown over LoRA-Dash"]
    assert {"without training", "step 6"} <= set(elements.words)


def test_a_method_has_one_colour_in_sliders_charts_and_tables(page):
    text = page.read_text()
    tint = {name: re.findall(rf'<span class="method (c\d)">{name}</span>', text) for name in ("LoRA", "LoRA-Dash")}
    assert {name: set(found) for name, found in tint.items()} == {"LoRA": {"c1"}, "LoRA-Dash": {"c0"}}
    assert all(len(found) >= 3 for found in tint.values())  # a slider, the runs, the accuracies
    for chart in re.findall(r"<svg.*?</svg>", text):
        for x, y, name in re.findall(
            r'x="([\d.]+)" y="([\d.]+)" font-size="12"[^>]*>(?:cifar, )?(LoRA(?:-Dash)?)\b', chart
        ):
            sample = f'd="M{float(x) - 24:.1f} {float(y) - 4:.1f}L'
            (colour,) = re.findall(rf'class="l (c\d)" {re.escape(sample)}', chart)
            assert colour == {"LoRA": "c1", "LoRA-Dash": "c0"}[name]


def test_a_record_tells_pictures_apart_by_what_is_in_them(recorded):
    record = json.loads((recorded / "dream/dash/run.json").read_text())
    digest = hashlib.sha256()
    for path in sorted((recorded / "cat").iterdir()):
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            digest.update(f"RGB {picture.size}".encode() + picture.tobytes())
    assert record["instance_digest"] == digest.hexdigest()[:16]


def test_a_figure_comes_first(recorded, tmp_path, capsys):
    story = {
        "seed": 3,
        "blocks": [{"subject": "d/cat", "adapters": {"lora": "a", "dash": "b"}, "prompts": ["a cat <in> snow"]}],
    }
    save(Image.new("RGB", (300, 200), "red"), tmp_path / "figure.png", story)
    words = ["report", str(tmp_path / "figure.png"), str(recorded / "dream/lora"), "-o", str(tmp_path / "r.html")]
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
        cells = re.sub(r'<span class="method c\d">(.*?)</span>', r"\1", body)
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in cells.split("</tr>")[:-1]]
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


def test_accuracies_stand_in_the_order_groups_and_means_of_papers(recorded, tmp_path):
    order = [task for tasks in PAPERS.values() for task in tasks]
    values = np.random.default_rng(0).uniform(20, 90, size=(2, 19, 2)).round(3)
    found = {
        (method, 4, task, seed): values[m, t, seed]
        for t, task in sorted(enumerate(order), key=lambda pair: pair[1])
        for m, method in enumerate(("lora", "dash"))
        for seed in (0, 1)
    }
    write_results(recorded, tmp_path / "all", found)
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


def test_means_pair_seeds(recorded, tmp_path):
    found = {("lora", 4, "cifar", 1): 70.0, ("lora", 4, "cifar", 0): 50.0}
    found |= {("lora", 4, "dtd", 0): 40.0, ("lora", 4, "dtd", 1): 60.0}
    write_results(recorded, tmp_path / "all", found)
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    _, head, rows = accuracy_tables(tmp_path / "r.html")[0]
    assert head[-1] == "mean of 2"
    assert rows[0][-1].startswith("55.0 ± 14.1")  # seeds 0 and 1: 45 and 65


def test_settings_are_not_averaged_and_untested_runs_have_their_table(recorded, tmp_path):
    found = {("lora", 1, "cifar", 0): 30.0, ("lora", 8, "cifar", 0): 50.0, ("dash", 8, "mine", 1000): 40.0}
    write_results(recorded, tmp_path / "all", found, "val_result.json")
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    (spans, head, rows), (_, _, every) = accuracy_tables(tmp_path / "r.html")
    assert (spans, head) == ([("", 1), ("natural", 1), ("other", 1)], ["method", "Cifar100", "mine"])
    nothing = "–"  # noqa: RUF001
    assert rows == [
        ["LoRA, rank 1", "30.0 (1)‡", nothing],
        ["LoRA, rank 8", "50.0 (1)‡", nothing],  # a single seed is not bold
        ["LoRA-Dash", nothing, "40.0 (1)‡"],
    ]
    assert {row[2] for row in every} == {"0", "1000"}
    assert "val200" in (tmp_path / "r.html").read_text().partition('<h2 id="accuracy">')[2][:200]


def test_one_processor_is_no_difference(recorded, tmp_path):
    for name, folder in (
        ("a", recorded / "dream/lora"),
        ("b", next((recorded / "vtab").rglob("lora/*/result.json")).parent),
    ):
        shutil.copytree(folder, tmp_path / "all" / name)
    record = json.loads((tmp_path / "all/a/run.json").read_text())
    record["device"] = "cpu, 3 threads"
    (tmp_path / "all/a/run.json").write_text(json.dumps(record))
    for threads, differs in ((3, False), (4, True)):
        result = json.loads((tmp_path / "all/b/result.json").read_text()) | {"device": f"cpu, {threads} threads"}
        (tmp_path / "all/b/result.json").write_text(json.dumps(result))
        assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
        said = next(w for w in Elements((tmp_path / "r.html").read_text()).words if w.startswith(("They", "The same")))
        assert ("device" in said) == differs


def test_measured_subjects_are_found_below_a_folder(recorded, tmp_path, capsys):
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "per_prompt": [0.5]}
    result = {
        "kind": "subject", "subject": "sks cat", "prompts": ["p"], "prompt_list": "own",
        "backbones": {"DINO": "vit"}, "differences": [],
        "ceiling": {"DINO": score}, "images_per_prompt": 1, "token_in_clip_t": False, "seed": 0, "stand_in": False,
        "num_inference_steps": 2, "guidance_scale": 1.0, "intervals": "Student's t",
        "methods": {"LoRA": {"method": "LoRA", "run": "l", "steps": 2, "pictures": "LoRA", "scores": {"DINO": score}}},
    }  # fmt: skip
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "subject.json").write_text(json.dumps(result | {"subject": f"subject {name}"}))
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    words = Elements((tmp_path / "r.html").read_text()).words
    assert {"subject a", "subject b"} <= set(words)
    shutil.copytree(recorded / "dream/lora", tmp_path / "all/run")
    assert main(["report", str(tmp_path / "all"), "-o", str(tmp_path / "r.html")]) == 0
    words = Elements((tmp_path / "r.html").read_text()).words
    assert "Made by eval report from 1 DreamBooth run and 2 measured subjects." in words


def test_tables_hold_the_recorded_numbers(recorded, page):
    words = Elements(page.read_text()).words
    result = json.loads(next((recorded / "vtab").rglob("dash/*/result.json")).read_text())
    assert f"{result['test_accuracy']:.2f}" in words
    record = json.loads((recorded / "dream/dash/run.json").read_text())
    assert f"{record['trainable_parameters']:,}" in words
    assert record["versions"]["torch"] in words
    assert "cifar is not the official split" in "".join(words)


def test_what_users_write_stays_text(recorded, tmp_path):
    shutil.copytree(recorded / "dream/lora", tmp_path / "lora")
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
        (lambda f: (f / "run.json").write_text('["dreambooth"]'), "no record of a run"),
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
def test_a_broken_run_is_one_sentence_and_the_others_are_reported(recorded, tmp_path, capsys, damage, sentence):
    shutil.copytree(recorded / "dream/dash", tmp_path / "broken")
    damage(tmp_path / "broken")
    words = ["report", str(tmp_path / "broken"), str(recorded / "dream/lora"), "-o", str(tmp_path / "r.html")]
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
