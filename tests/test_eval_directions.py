"""The analysis of change rates: its formulas written out, its nulls, and the charts that show both."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import save_base, save_pictures
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from test_dreambooth import settings, train
from vtab_helpers import trained_run

from dash_vision.core.analysis import (
    LowRank,
    matches,
    norm,
    null_pairs,
    null_rates,
    overlap,
    random_update,
    update_rates,
)
from dash_vision.core.directions import singular_directions
from dash_vision.core.loading import load_adapter, save_adapters
from dash_vision.files.native import NATIVE_NAME
from dash_vision.miniature import pipeline_path
from eval.__main__ import main


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- formulas


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_rates_are_the_paper_s_formula_for_low_rank_and_dense_updates(shape):
    W, A, B = matrix(*shape), matrix(3, shape[1], seed=1), matrix(shape[0], 3, seed=2)
    directions = singular_directions(W)
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    expected = [abs(U[:, i] @ (B @ A).numpy() @ Vh[i]) / (S[i] + 1e-6) for i in range(min(shape))]
    assert update_rates(directions, LowRank(A, B)).tolist() == pytest.approx(expected, rel=1e-6)
    assert update_rates(directions, B @ A).tolist() == pytest.approx(expected, rel=1e-6)
    assert norm(LowRank(A, B)) == pytest.approx(np.linalg.norm((B @ A).numpy()))


def test_updates_of_another_layer_are_refused():
    directions = singular_directions(matrix(6, 8))
    for wrong in (matrix(8, 6), LowRank(matrix(2, 6), matrix(8, 2)), LowRank(matrix(2, 8), matrix(6, 3))):
        with pytest.raises(ValueError, match="does not fit a weight of 6 x 8"):
            update_rates(directions, wrong)


def test_overlap_counts_as_the_paper_does():
    true = torch.arange(40.0).flip(0)  # direction 0 is the truest
    predicted = torch.zeros(40)
    predicted[[0, 3, 7, 8, 15, 16, 30, 31]] = torch.arange(8.0) + 1
    # Of the true four {0..3} two are predicted; of the predicted eight five are among the true sixteen {0..15}.
    assert overlap(predicted, true) == (2 / 4, 5 / 8)
    assert overlap(true, true) == (1, 1)
    assert overlap(true, true.flip(0)) == (0, 0)
    assert overlap(torch.tensor([1.0, 2]), torch.tensor([2.0, 1])) == (1, 1)  # both of two directions
    with pytest.raises(ValueError, match="one length"):
        overlap(torch.ones(4), torch.ones(5))


def test_the_null_of_equal_singular_values_is_that_of_drawing_blindly():
    """With equal singular values nothing is favoured: the chance is that of 8 (or 16) of p."""
    p, draws = 64, 1000
    directions = singular_directions(torch.eye(p, dtype=torch.float64) * 2)
    found = [overlap(*pair) for pair in null_pairs(directions, (None, None), draws, seed=0)]
    # A hypergeometric count has mean 8 * 4 / p of 4 and 8 * 16 / p of 8; of 1000 draws it deviates by 0.006 at most.
    assert np.mean([o.recall for o in found]) == pytest.approx(8 / p, abs=0.02)
    assert np.mean([o.accuracy for o in found]) == pytest.approx(16 / p, abs=0.02)


def test_the_null_of_a_square_random_weight_is_far_above_chance():
    """Why every overlap needs its null: independent updates agree, because small singular values are favoured."""
    square = [overlap(*pair) for pair in null_pairs(singular_directions(matrix(256, 256)), (8, 8), 50, seed=1)]
    wide = [overlap(*pair) for pair in null_pairs(singular_directions(matrix(256, 1024)), (8, 8), 50, seed=1)]
    assert np.mean([o.recall for o in square]) > 0.5 > 0.3 > np.mean([o.recall for o in wide])


def test_ranks_match_where_the_directions_are_the_same():
    first = torch.tensor([9.0, 8, 7, 6, 5])  # directions in the order 0 1 2 3 4
    second = torch.tensor([1.0, 5, 0, 4, 3])  # 1 3 4 0 2
    found = matches(first, second, 3)
    assert [tuple(cell) for cell in found.nonzero().tolist()] == [(1, 0)]  # direction 1: second there, first here
    assert matches(first, second).int().tolist() == [
        [0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
    ]
    assert torch.equal(matches(first, first), torch.eye(5, dtype=torch.bool))


def test_the_null_of_rank_matches_is_blind_drawing_for_equal_singular_values():
    p = 32
    pairs = null_pairs(singular_directions(torch.eye(p, dtype=torch.float64)), (None, None), 2000, seed=0)
    null = torch.stack([matches(*pair) for pair in pairs])
    assert null.shape == (2000, 8, 8)
    assert null.double().mean().item() == pytest.approx(1 / p, abs=0.002)  # every cell alike: one of p


def test_null_rates_have_the_update_s_rank_and_norm():
    directions = singular_directions(matrix(20, 30))
    update = LowRank(matrix(2, 30, seed=3), matrix(20, 2, seed=4) * 7)
    drawn = null_rates(directions, update, 400, seed=5)
    assert drawn.shape == (400, 20)
    # E (u^T dW v)^2 = |dW|^2 / (out in) for a random dW: Gaussian factors have no preferred direction.
    projected = drawn * (directions.sigma + 1e-6)
    assert projected.square().mean().item() == pytest.approx(norm(update) ** 2 / 600, rel=0.1)
    random = random_update(directions, 2, torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_rank(random.B @ random.A) == 2


@pytest.mark.parametrize(("rank", "extra"), [(4, 0), (1, 3)])
def test_the_null_of_updates_that_began_with_one_a_shares_it(rank, extra):
    """Against NumPy: B A and C A, where the second may have `extra` rows more, as LoRA-Dash has."""
    W = matrix(48, 48)
    U, S, Vh = np.linalg.svd(W.numpy())
    rng = np.random.default_rng(1)

    def top(B, A, count):
        return set(np.argsort(-np.abs(np.einsum("oi,or,rj,ij->i", U, B, A, Vh, optimize=True)) / S)[:count])

    def simulated(shared):
        found = []
        for _ in range(600):
            A, C = rng.normal(size=(rank, 48)), rng.normal(size=(rank + extra, 48))
            C[:shared] = A[:shared]
            B, D = rng.normal(size=(48, rank)), rng.normal(size=(48, rank + extra))
            chosen = top(B, A, 8)
            found.append((len(chosen & top(D, C, 4)) / 4, len(chosen & top(D, C, 16)) / 8))
        return np.mean(found, axis=0)

    def drawn(shared):
        pairs = null_pairs(singular_directions(W), (rank, rank + extra), 600, 0, shared=shared)
        return np.mean([overlap(first, second) for first, second in pairs], axis=0)

    # The deviation of one overlap is below 0.25, of a difference of two means of 600 below 0.015.
    assert drawn(rank) == pytest.approx(simulated(rank), abs=0.045)
    assert drawn(0) == pytest.approx(simulated(0), abs=0.045)
    if not extra:
        assert drawn(rank).min() > 0.02 + drawn(0).min()


# -- charts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """dash/ with checkpoints and lora/ on a tiny base of Stable Diffusion; vtab/ with a dash run and a full one."""
    root = tmp_path_factory.mktemp("runs")
    save_base(root / "sd")
    save_base(root / "sd2", seed=5)
    save_pictures(root / "cat")
    few = {"max_train_steps": 6, "prelaunch_steps": 2, "num_inference_steps": 2, "checkpointing_steps": 2}
    train(settings(root, root / "dash", checkpoints_total_limit=9, **few))
    train(settings(root, root / "lora", dash_k=0, seed=1, **few))
    train(settings(root, root / "same", dash_k=0, **few | {"checkpointing_steps": 0}))
    train(settings(root, root / "other", base="sd2", **few))
    for method, kept in (("dash", 1), ("full", 0)):
        trained_run(root, methods=[method], output_dir=str(root / "vtab"), keep_every=kept, selection="last")
    return root


def directions(*words):
    return main(["directions", "--draws", "20", *map(str, words)])


@pytest.fixture
def drawn(monkeypatch):
    """The panels that a command draws."""
    import eval.directions as module

    seen = []
    original = module.draw
    monkeypatch.setattr(module, "draw", lambda panels, *rest: seen.extend(panels) or original(panels, *rest))
    return seen


def test_every_chart_has_its_null(runs, tmp_path, drawn, capsys):
    assert directions(runs / "dash", "--truth", runs / "lora", tmp_path / "d.png") == 0
    assert "no checkpoint" not in capsys.readouterr().out
    titles = [panel.title for panel in drawn]
    assert titles[:3] == [
        "Recall of LoRA of rank 2 against lora, step 6",
        "Accuracy of LoRA of rank 2 against lora, step 6",
        "Mean over layers",
    ]
    assert len(titles) == 3 + 2 * 3 + 3 * 3
    grids, others = drawn[3:9], drawn[:3] + drawn[9:]
    assert all(any(s.name.startswith("null") and s.style == "band" for s in panel.series) for panel in others)
    for trained, null in zip(grids[::2], grids[1::2], strict=True):
        assert " are shared" in trained.title
        assert null.title.split(":")[0] == trained.title.split(":")[0]
        assert ": null, " in null.title
        shared = int(trained.title.split(": ")[1].split()[0])
        assert sum(trained.series[0].shades) == shared
        assert max(null.series[0].shades) == 1
    assert [x for x, _ in drawn[2].series[1].points] == [2, 4, 6]
    with Image.open(tmp_path / "d.png") as page:
        assert json.loads(page.text["dash-vision"])["draws"] == 20


def test_overlaps_are_those_of_the_files(runs, tmp_path, drawn):
    """Recomputed from the LoRA files by NumPy's SVD."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    assert directions(runs / "lora", "--truth", runs / "dash", tmp_path / "d.png") == 0
    unet = dict(UNet2DConditionModel.from_pretrained(runs / "sd/unet").named_modules())
    files = {name: load_file(runs / name / "pytorch_lora_weights.safetensors") for name in ("lora", "dash")}
    expected = []
    native = load_file(runs / "lora/dash_adapter.safetensors")
    for key in [k for k in native if k.endswith(".A")]:
        module = key.removeprefix("unet/").removesuffix(".A")
        U, S, Vh = np.linalg.svd(unet[module].weight.detach().double().numpy(), full_matrices=False)

        def top(name, count, module=module, U=U, S=S, Vh=Vh):
            A, B = (files[name][f"unet.{module}.lora_{x}.weight"].double().numpy() for x in "AB")
            return set(np.argsort(-np.abs(np.diag(U.T @ (B @ A) @ Vh.T)) / (S + 1e-6))[:count])

        expected.append(len(top("lora", 8) & top("dash", 4)) / 4)
    found = [value for _, value in next(s for s in drawn[0].series if s.name == "recall").points]
    assert sorted(found) == pytest.approx(sorted(expected))


def test_shifts_are_compared_with_singular_values_and_with_the_low_rank_update(runs, tmp_path, capsys):
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    base = UNet2DConditionModel.from_pretrained(runs / "sd/unet")
    unet = dict(base.named_modules())
    native = {k.removeprefix("unet/"): v.double().numpy() for k, v in load_file(runs / "dash" / NATIVE_NAME).items()}
    relative, shares = [], []
    for module in [k.removesuffix(".A") for k in native if k.endswith(".A")]:
        A, B, shift, U, V = (native[f"{module}.{key}"] for key in ("A", "B", "dsigma", "U", "V"))
        W = unet[module].weight.detach().double().numpy()
        chosen = native[f"{module}.indices"].astype(int)
        relative += np.abs(shift / np.linalg.svd(W, compute_uv=False)[chosen]).tolist()
        shares.append(np.linalg.norm(U @ np.diag(shift) @ V) / np.linalg.norm(B @ A))
    compact = tmp_path / "compact"
    shutil.copytree(runs / "dash", compact)
    save_adapters({"unet": load_adapter(base, runs / "dash" / NATIVE_NAME)}, compact / NATIVE_NAME, compact=True)
    # Of all layers, however few are drawn, and from a compact file too.
    for words in ((runs / "dash", "--truth", runs / "lora"), (runs / "dash",), (compact,)):
        assert directions(*words, tmp_path / "d.png") == 0
        said = capsys.readouterr().out
        assert f"shifts of {len(shares)} layers: in the median {100 * np.median(relative):.1f} % of their sing" in said
        assert f"together {100 * np.median(shares):.1f} % of its low-rank update" in said


def test_a_vision_transformer_against_full_fine_tuning(runs, tmp_path, drawn, capsys):
    run = next((runs / "vtab").rglob("dash/*/result.json")).parent
    full = next((runs / "vtab").rglob("full/*/result.json")).parent
    for truth in (full, full / "trained.safetensors"):
        drawn.clear()
        assert directions(run, "--truth", truth, "--layer", "blocks.1.attn", tmp_path / "v.png") == 0
        assert [p.title for p in drawn if p.log] == [
            f"blocks.1.attn.{name}: {part}"
            for name in ("qkv", "proj")
            for part in ("whole spectrum", "last 24", "sorted, largest 32")
        ]
        assert "chosen at launch" in [s.name for s in drawn[-3].series]
        over_steps = next(panel for panel in drawn if panel.title == "Mean over layers")
        assert [x for x, _ in over_steps.series[1].points] == [5, 10, 15, 20]
    shutil.copytree(run, tmp_path / "cut")
    (tmp_path / "cut/adapters/step-000010.safetensors").write_bytes(b"123")
    assert directions(tmp_path / "cut", "--truth", full, "--layer", "blocks.1.attn", tmp_path / "cut.png") == 2
    assert "step-000010.safetensors cannot be read" in capsys.readouterr().err


def test_overlaps_over_steps_are_those_of_the_kept_files(runs, tmp_path, drawn):
    """The chart of a run's last file, for a file that was kept before it."""
    run = next((runs / "vtab").rglob("dash/*/result.json")).parent
    full = next((runs / "vtab").rglob("full/*/result.json")).parent
    words = ("--truth", full, "--layer", "blocks.1.attn", tmp_path / "v.png")
    assert directions(run, *words) == 0
    means = [dict(s.points) for s in drawn[2].series if s.name in ("recall", "accuracy")]
    shutil.copytree(run, tmp_path / "early")
    shutil.copy(run / "adapters/step-000010.safetensors", tmp_path / "early" / NATIVE_NAME)
    shutil.rmtree(tmp_path / "early/adapters")
    drawn.clear()
    assert directions(tmp_path / "early", *words) == 0
    for panel, name, mean in zip(drawn, ("recall", "accuracy"), means, strict=False):
        values = [value for _, value in next(s for s in panel.series if s.name == name).points]
        assert mean[10] == pytest.approx(sum(values) / len(values))


def test_one_run_needs_no_truth(runs, tmp_path, drawn):
    assert directions(runs / "lora", "--layer", "mid_block", tmp_path / "one.pdf") == 0
    assert {panel.title.split(".")[0] for panel in drawn} == {"mid_block"}
    assert all(panel.log for panel in drawn)


def test_runs_are_named_by_all_that_tells_their_folders_apart(runs, tmp_path, drawn):
    shutil.copytree(runs / "dash", tmp_path / "1/dash/seed-0")
    shutil.copytree(runs / "lora", tmp_path / "2/lora/seed-1")
    words = (tmp_path / "1/dash/seed-0", "--truth", tmp_path / "2/lora/seed-1")
    assert directions(*words, tmp_path / "d.png") == 0
    assert drawn[0].title == "Recall of LoRA of rank 2 against 2/lora/seed-1, step 6"
    assert (drawn[3].x, drawn[3].y) == ("rank in 2/lora/seed-1", "rank in 1/dash/seed-0")


@pytest.fixture
def footnotes(monkeypatch):
    import eval.directions as module

    seen = []
    original = module.draw
    monkeypatch.setattr(module, "draw", lambda *all: seen.append(all[2]) or original(*all))
    return seen


def test_runs_of_one_seed_are_compared_with_updates_that_share_one_a(runs, tmp_path, footnotes):
    def rows(name):
        with safe_open(runs / name / NATIVE_NAME, "pt") as file:
            return torch.cat([file.get_tensor(k).flatten() for k in sorted(file.keys()) if k.endswith(".A")])

    def alike(first, second):
        return torch.corrcoef(torch.stack([rows(first), rows(second)]))[0, 1]

    assert alike("dash", "same") > 0.5 > 0.1 > alike("dash", "lora").abs()
    for truth, word in (("same", "which share one A, since both runs began with one A"), ("lora", "independent")):
        assert directions(runs / "dash", "--truth", runs / truth, "--layer", "mid", tmp_path / "d.png") == 0
        assert word in footnotes[-1]
    assert "on trust" not in "".join(footnotes)


def test_without_checkpoints_there_is_no_chart_over_steps(runs, tmp_path, drawn, capsys):
    assert directions(runs / "same", "--truth", runs / "lora", "--layer", "mid", tmp_path / "d.png") == 0
    assert "--checkpoints_total_limit" in capsys.readouterr().out
    assert "Mean over layers" not in [panel.title for panel in drawn]


def test_a_tuned_model_of_another_base_is_refused_and_a_bare_file_taken_on_trust(runs, tmp_path, capsys, footnotes):
    run = next((runs / "vtab").rglob("dash/*/result.json")).parent
    full = tmp_path / "full"
    shutil.copytree(next((runs / "vtab").rglob("full/*/result.json")).parent, full)
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
        (["RUNS/dash", "--truth", "RUNS/other", "x.png"], "another base"),
        (["RUNS/dash", "--base", "RUNS/sd2", "x.png"], "another base"),
        (["RUNS/dash", "--base", "MINIATURE", "x.png"], "another base"),
        (["RUNS/dash", "--layer", "nothing", "x.png"], "no adapted layer has 'nothing'"),
        (["RUNS/dash", "--truth", "RUNS/cat", "x.png"], "holds no run.json"),
        (["RUNS/dash", "--truth", "RUNS/cut.safetensors", "x.png"], "no complete .safetensors file"),
        (["RUNS/dash", "--truth", "RUNS/small.safetensors", "x.png"], "has none of the run's layers"),
        (["RUNS/vtab", "x.png"], "holds 2 runs; give the folder of one"),
        (["RUNS/nowhere", "x.png"], "there is no folder"),
        (["RUNS/dash", "--draws", "19", "x.png"], "--draws is 19; bands of 5 to 95 percent need 20 or more"),
        (["RUNS/dash", "x.jpg"], "ends in .png or .pdf"),
    ],
)
def test_bad_input_is_one_sentence(runs, tmp_path, capsys, words, sentence):
    (runs / "cut.safetensors").write_bytes(b"123")
    save_file({"a.weight": torch.zeros(2, 2)}, runs / "small.safetensors")
    places = {"RUNS": str(runs), "MINIATURE": str(pipeline_path())}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert main(["directions", *words[:-1], str(tmp_path / words[-1])]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / words[-1]).exists()
