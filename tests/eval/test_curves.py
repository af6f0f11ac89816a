"""Curves are what the runs recorded."""

import json
import shutil

import pytest
from PIL import Image
from safetensors import safe_open

from dash_vision.drawing.plot import MOST_LINES
from eval.__main__ import main
from eval.curves.charts import all_panels
from eval.runs import find_runs, labels


def test_curves_are_what_the_runs_recorded(recorded):
    found, problems = find_runs([recorded / "dream", recorded / "vtab"])
    assert (problems, labels(found)[:2]) == ([], ["LoRA-Dash", "LoRA"])
    panels, _ = all_panels(found)
    loss = panels[0]
    assert loss.marks == [(2, "dash launched after step 2")]
    losses = json.loads((recorded / "dream/dash/run.json").read_text())["losses"]
    assert list(loss.series[0].points) == [(i + 1, v) for i, v in enumerate(losses)]
    val = next(p for p in panels if p.title == "Accuracy on val200")
    curve = json.loads(next((recorded / "vtab").rglob("dash/*/result.json")).read_text())["selection"]["curves"][0]
    # 24 training images in batches of 8 are 3 steps an epoch.
    assert list(val.series[0].points) == [(3 * s["epoch"], s["val_accuracy"]) for s in curve]
    with safe_open(recorded / "dream/dash/dash_adapter.safetensors", "pt") as file:
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


def test_curves_of_good_runs_are_drawn_beside_broken_ones(recorded, tmp_path, capsys):
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/run.json").write_text('{"kind": "dreamb')
    assert main(["curves", str(recorded / "dream"), str(tmp_path / "cut"), "-o", str(tmp_path / "c.png")]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "cut" in said.err
    assert "3 charts of 2 runs" in said.out
    with Image.open(tmp_path / "c.png") as page:
        assert page.width > 1500
    assert main(["curves", str(tmp_path / "cut"), "-o", str(tmp_path / "d.png")]) == 2
    assert main(["curves", str(recorded / "dream"), "-o", str(tmp_path / "d.gif")]) == 2
    assert not (tmp_path / "d.png").exists()
    assert main(["curves", str(recorded / "vtab"), "-o", str(tmp_path / "v.pdf")]) == 0
    assert (tmp_path / "v.pdf").read_bytes().startswith(b"%PDF")


def test_too_many_runs_for_a_picture_are_one_sentence_and_several_charts_of_a_page(recorded, tmp_path, capsys):
    source = next((recorded / "vtab").rglob("lora/*/result.json")).parent
    for i in range(MOST_LINES + 3):
        (tmp_path / "many" / f"run-{i:02d}").mkdir(parents=True)
        shutil.copy(source / "result.json", tmp_path / "many" / f"run-{i:02d}")
    assert main(["curves", str(tmp_path / "many"), "-o", str(tmp_path / "c.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "35 runs; one picture takes up to 32: name fewer" in said
    assert not (tmp_path / "c.png").exists()
    panels, _ = all_panels(find_runs([tmp_path / "many"])[0])
    assert [len(p.series) for p in panels] == [32, 32, 3, 3]
