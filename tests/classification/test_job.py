"""The schedule of the learning rate, one job, its launch and its divergence."""

import csv
import io
import math

import pytest
import torch

from dash_vision.classification.job import Plan
from dash_vision.classification.run import execute
from dash_vision.classification.sweep import line_of
from dash_vision.files.errors import InputError, RunError
from dash_vision.files.native import read_native
from eval.vtab.table import table
from tests.support.vtab import cpu, fit, job_of, one_run


def test_the_rate_climbs_over_the_warm_up_and_falls_along_half_a_cosine():
    plan = Plan(images=800, batch_size=64, epochs=100, warmup_epochs=10)
    assert (plan.steps_per_epoch, plan.steps) == (13, 1300)
    assert plan.rate(1e-3, 0) == pytest.approx(1e-3 / 130)
    assert plan.rate(1e-3, 129) == plan.rate(1e-3, 130) == pytest.approx(1e-3)
    assert plan.rate(1e-3, 130 + 585) == pytest.approx(0.5e-3)
    assert plan.rate(1e-3, 1299) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 1169 / 1170)))


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert Plan(10, 4, 3, 0).rate(0.1, 0) == pytest.approx(0.1)
    assert Plan(10, 4, 3, 3).rate(0.1, 8) == pytest.approx(0.1)


def test_defaults_are_the_published_recipe(tmp_path):
    run = one_run(tmp_path, epochs=None, train_batch_size=64, rank=None)
    assert (run.epochs, run.warmup_epochs, run.learning_rate, run.drop_path, run.rank) == (100, 10, 1e-3, 0.1, 8)
    assert (run.settings.adam_weight_decay, run.settings.max_grad_norm) == (1e-4, None)
    embedded = one_run(tmp_path, task=["mini_location"], epochs=None, model=None, random_weights=False)
    assert (embedded.epochs, embedded.warmup_epochs, embedded.model) == (16, 1, "miniature")
    assert embedded.learning_rate == 1e-2
    assert one_run(tmp_path, methods=["full"]).learning_rate == 1e-4
    assert one_run(tmp_path, optimizer="prodigy").learning_rate == 1.0
    assert one_run(tmp_path, model=None).model == "vit_base_patch16_224.augreg_in21k"


def test_an_epoch_shows_every_image_once_in_a_new_order(data):
    job = job_of(data, train_batch_size=7)
    orders = []
    for epoch in range(2):
        seen = [job._numbers(epoch * 4 + place) for place in range(4)]
        assert [len(b) for b in seen] == [7, 7, 7, 3]
        orders.append(torch.cat(seen).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]


def test_the_curve_s_training_loss_is_the_mean_over_images(data):
    settings = {"learning_rate": 1e-30, "adam_weight_decay": 0.0, "drop_path": 0.0, "train_batch_size": 7}
    job = job_of(data, methods=["linear"], **settings)
    fit(job, 1)
    logits = job.logits(job.images.images)
    expected = torch.nn.functional.cross_entropy(logits, job.images.labels).item()
    assert job.curve[0].train_loss == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_depend_on_the_evaluation_batch(data):
    scores = []
    for size in (1, 5, 100):
        job = job_of(data, eval_batch_size=size)
        fit(job, 1)
        scores.append((job.curve[0].val_accuracy, job.curve[0].val_loss))
    assert scores[0][0] == scores[1][0] == scores[2][0]
    assert scores[0][1] == pytest.approx(scores[1][1], rel=1e-5) == pytest.approx(scores[2][1], rel=1e-5)


def test_the_dash_is_launched_after_the_optimizer_steps_asked_for(data):
    job = job_of(data, prelaunch_steps=5)
    fit(job, 1)
    assert not job.tuned.launched
    fit(job, 2)
    assert job.tuned.launched
    assert job.launch.step == 5
    assert [s.launched for s in job.curve] == [False, True]


def test_an_epoch_chosen_before_the_launch_is_tested_without_it(data, monkeypatch):
    # Epoch 3 ends after 9 steps on train800 and after 15 in the retraining; the launch is after step 11.
    monkeypatch.setattr("dash_vision.classification.protocol.choose", lambda rule, curves: (0, 3))
    run, lora = one_run(data, prelaunch_steps=11), one_run(data, methods=["lora"])
    result, other = execute(run, cpu()), execute(lora, cpu())
    assert [s["launched"] for s in result.selection["curves"][0]] == [False, False, False, True]
    assert result.launch is None
    assert result.test_accuracy == other.test_accuracy
    assert "at epoch 3, before the launch: plain LoRA;" in line_of(result)
    assert "launch" not in line_of(other)
    mine, theirs = (read_native(r.folder / "dash_adapter.safetensors")["model"] for r in (run, lora))
    assert not mine.launched
    factors = [key for key in theirs.tensors if key.endswith((".A", ".B"))]
    assert len(factors) == 2 * len(theirs.kinds)
    for key in factors:  # to rounding: the products have k columns more, all zero
        torch.testing.assert_close(mine.tensors[key], theirs.tensors[key], rtol=1e-4, atol=1e-6)
    text = table([run.folder, lora.folder], "markdown", published=False)[0]
    said = "runs whose chosen epoch lies before the launch, and whose model is plain LoRA"
    assert f"- dash: {said}: 1 of 1 on cifar" in text
    rows = csv.DictReader(io.StringIO(table([run.folder, lora.folder], "csv", published=False)[0]))
    assert [(r["method"], r["before_launch"]) for r in rows if r["column"] == "cifar"] == [("dash", "1"), ("lora", "")]


@pytest.mark.parametrize("selection", ["random", "top", "bottom"])
def test_controls_choose_the_directions_they_are_named_after(data, selection):
    job = job_of(data, dash_selection=selection)
    fit(job, 2)
    chosen = [w.indices.tolist() for _, w in job.tuned.adapter.weights()]
    expected = {"top": [0, 1, 2], "bottom": [29, 30, 31]}  # every layer of the model has 32 directions
    if selection == "random":
        assert len({tuple(c) for c in chosen}) > len(chosen) // 2
    else:
        assert all(c == expected[selection] for c in chosen)


def test_a_diverging_run_stops_with_what_to_do_about_it(data):
    job = job_of(data, methods=["full"])
    with torch.no_grad():
        job.tuned.model.head.weight.fill_(float("inf"))
    with pytest.raises(RunError, match=r"the loss is nan at step 1, .*lower --learning_rate"):
        fit(job, 4)


def test_a_launch_on_an_update_that_is_not_finite_is_a_divergence_too(data):
    job = job_of(data, prelaunch_steps=1)
    with torch.no_grad():
        next(w for _, w in job.tuned.adapter.weights()).A.fill_(float("nan"))
    with pytest.raises(RunError, match=r"cannot choose directions in blocks\.0\.attn\.qkv"):
        fit(job, 1)


def test_a_dash_that_would_never_start_is_refused_before_training(data):
    with pytest.raises(
        InputError, match="--prelaunch_steps 12 leaves no step for the dash: 4 epochs of 24 images make 12"
    ):
        execute(one_run(data, prelaunch_steps=12), cpu())
    with pytest.raises(InputError, match="--prelaunch_steps 50"):
        execute(one_run(data, search=["prelaunch_steps=5,50"]), cpu())
