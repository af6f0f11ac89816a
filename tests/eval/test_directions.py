"""The charts of directions, on finished runs."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from dash_vision.core.analysis import Overlap
from dash_vision.core.loading import load_adapter, save_adapters
from dash_vision.drawing.plot import svg
from dash_vision.files.native import NATIVE_NAME
from dash_vision.miniature import pipeline_path
from eval.__main__ import main
from eval.directions.charts import over_steps
from eval.directions.measures import Layer
from tests.support.charts import drawn_lines


def directions(*words):
    """The command, with the file to write as the last word."""
    *rest, out = map(str, words)
    return main(["directions", "--draws", "20", *rest, "-o", out])


@pytest.fixture
def drawn(monkeypatch):
    """The panels that a command draws."""
    import eval.directions.analysis as module

    seen = []
    original = module.draw

    def spy(panels, *rest, **options):
        seen.extend(panels)
        return original(panels, *rest, **options)

    monkeypatch.setattr(module, "draw", spy)
    return seen


def test_every_chart_has_its_null(recorded, tmp_path, drawn, capsys):
    assert directions(recorded / "dream/dash", "--truth", recorded / "seed-1/lora", tmp_path / "d.png") == 0
    assert "no checkpoint" not in capsys.readouterr().out
    titles = [panel.title for panel in drawn]
    assert titles[1:4] == [
        "Recall of LoRA of rank 2 against seed-1/lora, step 6",
        "Accuracy of LoRA of rank 2 against seed-1/lora, step 6",
        "Mean over layers",
    ]
    assert len(titles) == 1 + 3 + 2 * 3 + 3 * 3
    grids, others = drawn[4:10], drawn[1:4] + drawn[10:]
    assert all(any(s.name.startswith("random updates") and s.style == "band" for s in panel.series) for panel in others)
    for trained, random in zip(grids[::2], grids[1::2], strict=True):
        assert " are shared" in trained.title
        assert random.note == trained.note
        assert random.title.startswith("Random updates share")
        assert sum(trained.series[0].shades) == int(trained.title.split()[0])
        assert max(random.series[0].shades) == 1
    assert [x for x, _ in drawn[3].series[1].points] == [2, 4, 6]
    with Image.open(tmp_path / "d.png") as page:
        assert json.loads(page.text["dash-vision"])["draws"] == 20


def test_the_summary_comes_first_and_says_what_chance_gives(recorded, tmp_path, drawn, capsys):
    words = (recorded / "dream/dash", "--truth", recorded / "seed-1/lora", tmp_path / "d.png")
    assert directions(*words) == 0
    with Image.open(tmp_path / "d.png") as page:
        headline = json.loads(page.text["dash-vision"])["headline"]
    assert headline in capsys.readouterr().out
    summary, recall = drawn[:2]
    assert summary.wide
    trained, chance = summary.bars
    points = [value for _, value in next(s for s in recall.series if s.name == "recall").points]
    assert trained.value == pytest.approx(sum(points) / len(points))
    assert "what chance gives" in chance.name
    assert chance.low <= chance.value <= chance.high
    verdict = "more" if trained.value > chance.high else "less" if trained.value < chance.low else "no more"
    shares = [f"{round(100 * value)} %" for value in (trained.value, chance.value)]
    assert headline == (
        f"dream/dash finds {shares[0]} of the directions that seed-1/lora changed most, {verdict} than chance: random "
        f"updates find {shares[1]}."
    )
    assert not re.search(
        r"\bnull\b", " ".join([headline, *(p.title for p in drawn), *(s.name for p in drawn for s in p.series)])
    )


def test_the_summary_of_one_run_says_where_its_directions_lie(recorded, tmp_path, drawn):
    """The share of the 8 largest change rates in the last tenth of the spectrum, by NumPy's SVD."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    assert directions(recorded / "seed-1/lora", tmp_path / "d.png") == 0
    modules = list(dict.fromkeys(panel.note for panel in drawn[1:]))
    assert len(modules) == 3
    unet = dict(UNet2DConditionModel.from_pretrained(recorded / "sd/unet").named_modules())
    native = {
        k.removeprefix("unet/"): v.double().numpy()
        for k, v in load_file(recorded / "seed-1/lora" / NATIVE_NAME).items()
    }
    shares = []
    for module in modules:
        U, S, Vh = np.linalg.svd(unet[module].weight.detach().double().numpy(), full_matrices=False)
        rates = np.abs(np.diag(U.T @ native[f"{module}.B"] @ native[f"{module}.A"] @ Vh.T)) / (S + 1e-6)
        largest = np.argsort(-rates)[:8]
        shares.append(np.mean(largest >= len(rates) - max(1, round(len(rates) / 10))))
    assert drawn[0].bars[0].value == pytest.approx(np.mean(shares))


def test_overlaps_are_those_of_the_files(recorded, tmp_path, drawn):
    """Recomputed from the LoRA files by NumPy's SVD."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    assert directions(recorded / "seed-1/lora", "--truth", recorded / "dream/dash", tmp_path / "d.png") == 0
    unet = dict(UNet2DConditionModel.from_pretrained(recorded / "sd/unet").named_modules())
    names = ("seed-1/lora", "dream/dash")
    files = {name: load_file(recorded / name / "pytorch_lora_weights.safetensors") for name in names}
    expected = []
    native = load_file(recorded / "seed-1/lora/dash_adapter.safetensors")
    for key in [k for k in native if k.endswith(".A")]:
        module = key.removeprefix("unet/").removesuffix(".A")
        U, S, Vh = np.linalg.svd(unet[module].weight.detach().double().numpy(), full_matrices=False)

        def top(name, count, module=module, U=U, S=S, Vh=Vh):
            A, B = (files[name][f"unet.{module}.lora_{x}.weight"].double().numpy() for x in "AB")
            return set(np.argsort(-np.abs(np.diag(U.T @ (B @ A) @ Vh.T)) / (S + 1e-6))[:count])

        expected.append(len(top("seed-1/lora", 8) & top("dream/dash", 4)) / 4)
    found = [value for _, value in next(s for s in drawn[1].series if s.name == "recall").points]
    assert sorted(found) == pytest.approx(sorted(expected))


def test_shifts_are_compared_with_singular_values_and_with_the_low_rank_update(recorded, tmp_path, capsys):
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    base = UNet2DConditionModel.from_pretrained(recorded / "sd/unet")
    unet = dict(base.named_modules())
    saved = load_file(recorded / "dream/dash" / NATIVE_NAME)
    native = {k.removeprefix("unet/"): v.double().numpy() for k, v in saved.items()}
    relative, shares = [], []
    for module in [k.removesuffix(".A") for k in native if k.endswith(".A")]:
        A, B, shift, U, V = (native[f"{module}.{key}"] for key in ("A", "B", "dsigma", "U", "V"))
        W = unet[module].weight.detach().double().numpy()
        chosen = native[f"{module}.indices"].astype(int)
        relative += np.abs(shift / np.linalg.svd(W, compute_uv=False)[chosen]).tolist()
        shares.append(np.linalg.norm(U @ np.diag(shift) @ V) / np.linalg.norm(B @ A))
    compact = tmp_path / "compact"
    shutil.copytree(recorded / "dream/dash", compact)
    adapter = load_adapter(base, recorded / "dream/dash" / NATIVE_NAME)
    save_adapters({"unet": adapter}, compact / NATIVE_NAME, compact=True)
    # Of all layers, however few are drawn, and from a compact file too.
    dash, truth = recorded / "dream/dash", recorded / "seed-1/lora"
    for words in ((dash, "--truth", truth), (dash,), (compact,)):
        assert directions(*words, tmp_path / "d.png") == 0
        said = capsys.readouterr().out
        assert f"shifts of {len(shares)} layers: in the median {100 * np.median(relative):.1f} % of their sing" in said
        assert f"together {100 * np.median(shares):.1f} % of its low-rank update" in said


def test_a_vision_transformer_against_full_fine_tuning(recorded, tmp_path, drawn, capsys):
    run = next((recorded / "vtab").rglob("dash/*/result.json")).parent
    full = next((recorded / "full").rglob("full/*/result.json")).parent
    for truth in (full, full / "trained.safetensors"):
        drawn.clear()
        assert directions(run, "--truth", truth, "--layer", "blocks.1.attn", tmp_path / "v.png") == 0
        assert [(p.note, p.title) for p in drawn if p.log] == [
            (f"blocks.1.attn.{name}", f"Change rates, {part}")
            for name in ("qkv", "proj")
            for part in ("whole spectrum", "last 24", "largest 32, sorted")
        ]
        assert "chosen at launch" in [s.name for s in drawn[-3].series]
        over_steps = next(panel for panel in drawn if panel.title == "Mean over layers")
        assert [x for x, _ in over_steps.series[1].points] == [5, 10, 15, 20]
    shutil.copytree(run, tmp_path / "cut")
    (tmp_path / "cut/adapters/step-000010.safetensors").write_bytes(b"123")
    assert directions(tmp_path / "cut", "--truth", full, "--layer", "blocks.1.attn", tmp_path / "cut.png") == 2
    assert "step-000010.safetensors cannot be read" in capsys.readouterr().err


def test_overlaps_over_steps_are_those_of_the_kept_files(recorded, tmp_path, drawn):
    """The chart of a run's last file, for a file that was kept before it."""
    run = next((recorded / "vtab").rglob("dash/*/result.json")).parent
    full = next((recorded / "full").rglob("full/*/result.json")).parent
    words = ("--truth", full, "--layer", "blocks.1.attn", tmp_path / "v.png")
    assert directions(run, *words) == 0
    means = [dict(s.points) for s in drawn[3].series if s.name in ("recall", "accuracy")]
    shutil.copytree(run, tmp_path / "early")
    shutil.copy(run / "adapters/step-000010.safetensors", tmp_path / "early" / NATIVE_NAME)
    shutil.rmtree(tmp_path / "early/adapters")
    drawn.clear()
    assert directions(tmp_path / "early", *words) == 0
    for panel, name, mean in zip(drawn[1:], ("recall", "accuracy"), means, strict=False):
        values = [value for _, value in next(s for s in panel.series if s.name == name).points]
        assert mean[10] == pytest.approx(sum(values) / len(values))


def test_one_run_needs_no_truth(recorded, tmp_path, drawn):
    assert directions(recorded / "seed-1/lora", "--layer", "mid_block", tmp_path / "one.pdf") == 0
    assert {panel.note.split(".")[0] for panel in drawn[1:]} == {"mid_block"}
    assert all(panel.log for panel in drawn[1:])


def test_runs_are_named_by_all_that_tells_their_folders_apart(recorded, tmp_path, drawn):
    shutil.copytree(recorded / "dream/dash", tmp_path / "1/dash/seed-0")
    shutil.copytree(recorded / "seed-1/lora", tmp_path / "2/lora/seed-1")
    words = (tmp_path / "1/dash/seed-0", "--truth", tmp_path / "2/lora/seed-1")
    assert directions(*words, tmp_path / "d.png") == 0
    assert drawn[1].title == "Recall of LoRA of rank 2 against 2/lora/seed-1, step 6"
    assert (drawn[4].x, drawn[4].y) == ("rank in 2/lora/seed-1", "rank in 1/dash/seed-0")


@pytest.fixture
def footnotes(monkeypatch):
    import eval.directions.analysis as module

    seen = []
    original = module.draw
    monkeypatch.setattr(module, "draw", lambda *all, **options: seen.append(all[2]) or original(*all, **options))
    return seen


def test_runs_of_one_seed_are_compared_with_updates_that_share_one_a(recorded, tmp_path, footnotes):
    def rows(name):
        with safe_open(recorded / name / NATIVE_NAME, "pt") as file:
            return torch.cat([file.get_tensor(k).flatten() for k in sorted(file.keys()) if k.endswith(".A")])

    def alike(first, second):
        return torch.corrcoef(torch.stack([rows(first), rows(second)]))[0, 1]

    assert alike("dream/dash", "dream/lora") > 0.5 > 0.1 > alike("dream/dash", "seed-1/lora").abs()
    run, one = recorded / "dream/dash", "which share one A, since both runs began with one A"
    for truth, word in (("dream/lora", one), ("seed-1/lora", "independent")):
        assert directions(run, "--truth", recorded / truth, "--layer", "mid", tmp_path / "d.png") == 0
        assert word in footnotes[-1]
    assert "on trust" not in "".join(footnotes)


def test_without_checkpoints_there_is_no_chartover_steps(recorded, tmp_path, drawn, capsys):
    shutil.copytree(recorded / "dream/lora", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    truth = recorded / "seed-1/lora"
    assert directions(tmp_path / "run", "--truth", truth, "--layer", "mid", tmp_path / "d.png") == 0
    assert "--checkpoints_total_limit" in capsys.readouterr().out
    assert "Mean over layers" not in [panel.title for panel in drawn]


def test_a_tuned_model_of_another_base_is_refused_and_a_bare_file_taken_on_trust(recorded, tmp_path, capsys, footnotes):
    run = next((recorded / "vtab").rglob("dash/*/result.json")).parent
    full = tmp_path / "full"
    shutil.copytree(next((recorded / "full").rglob("full/*/result.json")).parent, full)
    for place, value in ((("normalization",), {"mean": [0.4] * 3}), (("arguments", "checkpoint"), "x.safetensors")):
        record = json.loads((full / "result.json").read_text())
        kept, inner = json.dumps(record), record
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        (full / "result.json").write_text(json.dumps(record))
        assert directions(run, "--truth", full, tmp_path / "v.png") == 2
        said = capsys.readouterr().err
        assert "another base" in said
        assert place[-1] in said
        assert said.count("\n") == 1
        (full / "result.json").write_text(kept)
    for truth, trusted in ((full, False), (full / "trained.safetensors", True)):
        assert directions(run, "--truth", truth, "--layer", "blocks.1", tmp_path / "v.png") == 0
        assert ("on trust" in footnotes[-1]) == trusted


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["RUNS/dream/dash", "--truth", "RUNS/other", "x.png"], "another base"),
        (["RUNS/dream/dash", "--base", "RUNS/sd2", "x.png"], "another base"),
        (["RUNS/dream/dash", "--base", "MINIATURE", "x.png"], "another base"),
        (["RUNS/dream/dash", "--layer", "nothing", "x.png"], "no adapted layer has 'nothing'"),
        (["RUNS/dream/dash", "--truth", "RUNS/cat", "x.png"], "holds no run.json"),
        (["RUNS/dream/dash", "--truth", "HERE/cut.safetensors", "x.png"], "no complete .safetensors file"),
        (["RUNS/dream/dash", "--truth", "HERE/small.safetensors", "x.png"], "has none of the run's layers"),
        (["RUNS/vtab", "x.png"], "holds 2 runs; give the folder of one"),
        (["RUNS/nowhere", "x.png"], "there is no folder"),
        (["RUNS/dream/dash", "--draws", "19", "x.png"], "--draws is 19; bands of 5 to 95 percent need 20 or more"),
        (["RUNS/dream/dash", "x.jpg"], "ends in .png or .pdf"),
    ],
)
def test_bad_input_is_one_sentence(recorded, tmp_path, capsys, words, sentence):
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "small.safetensors")
    places = {"RUNS": str(recorded), "HERE": str(tmp_path), "MINIATURE": str(pipeline_path())}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert main(["directions", *words[:-1], "-o", str(tmp_path / words[-1])]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / words[-1]).exists()


def test_equal_curves_with_markers_both_show():
    points = [(20.0, 0.3), (60.0, 0.5)]
    for shown in (points, points[:1]):  # a run that kept no checkpoint has one step
        at = {step: Overlap(value, value) for step, value in shown}
        panel = over_steps([Layer("m", at, [Overlap(0.1, 0.1), Overlap(0.2, 0.2)])], [int(step) for step, _ in shown])
        drawing = svg(panel)
        assert [list(s.points) for s in panel.series if s.name in ("recall", "accuracy")] == [shown, shown]
        squares = [points for colour, _, points in drawn_lines(drawing) if colour == "c0" and len(points) == 5]
        dots = re.findall(r'class="f c2" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', drawing)
        assert len(squares) == len(dots) == 1 + len(shown)  # one in the legend
        for square, dot in zip(squares[1:], dots[1:], strict=True):
            x, y, radius = map(float, dot)
            assert (min(a for a, _ in square) + max(a for a, _ in square)) / 2 == pytest.approx(x, abs=0.1)
            assert min(a for a, _ in square) < x - radius - 1
            assert min(b for _, b in square) < y - radius - 1
