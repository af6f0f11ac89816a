"""The schedule of the learning rate, one trainer, its launch and its divergence."""

import csv
import io
import math

import pytest
import torch

from dash_vision.classification.loop import NonFiniteLoss, Plan, mixed_seed
from dash_vision.classification.run import execute
from dash_vision.classification.sweep import line_of
from dash_vision.files.errors import InputError
from dash_vision.files.native import read_native
from eval.vtab import table
from tests.support.vtab import CPU, one_run, trainer_of


def test_the_rate_climbs_over_the_warm_up_and_falls_along_half_a_cosine():
    plan = Plan(images=800, batch_size=64, epochs=100, warmup_epochs=10, learning_rate=1e-3)
    assert (plan.steps_per_epoch, plan.steps) == (13, 1300)
    assert plan.rate(0) == pytest.approx(1e-3 / 130)
    assert plan.rate(129) == plan.rate(130) == pytest.approx(1e-3)
    assert plan.rate(130 + 585) == pytest.approx(0.5e-3)
    assert plan.rate(1299) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 1169 / 1170)))


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert Plan(10, 4, 3, 0, 0.1).rate(0) == pytest.approx(0.1)
    assert Plan(10, 4, 3, 3, 0.1).rate(8) == pytest.approx(0.1)


def test_defaults_are_the_published_recipe(tmp_path):
    run = one_run(tmp_path, epochs=None, batch_size=64)
    assert (run.epochs, run.warmup_epochs, run.learning_rate, run.drop_path) == (100, 10, 1e-3, 0.1)
    assert run.settings.weight_decay == 1e-4
    embedded = one_run(tmp_path, task=["mini_location"], epochs=None, model=None, random_weights=False)
    assert (embedded.epochs, embedded.warmup_epochs, embedded.model) == (16, 1, "miniature")
    assert embedded.learning_rate == 1e-2
    assert one_run(tmp_path, methods=["full"]).learning_rate == 1e-4
    assert one_run(tmp_path, model=None).model == "vit_base_patch16_224.augreg_in21k"


def test_seeds_mixed_from_neighbouring_numbers_differ():
    parts = [(s, g, t) for s in range(4) for g in range(3) for t in range(-40, 40)]
    assert len({mixed_seed(*p) for p in parts}) == len(parts)


def test_an_epoch_shows_every_image_once_in_a_new_order(data):
    trainer = trainer_of(data, batch_size=7)
    orders = []
    for epoch in range(2):
        seen = []
        for place in range(4):
            trainer.step = epoch * 4 + place
            seen.append(trainer._batch())
        assert [len(b) for b in seen] == [7, 7, 7, 3]
        orders.append(torch.cat(seen).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]


def test_the_curve_s_training_loss_is_the_mean_over_images(data):
    trainer = trainer_of(data, learning_rate=1e-30, weight_decay=0.0, drop_path=0.0, batch_size=7, methods=["linear"])
    trainer.fit(1)
    logits = trainer.logits(trainer.train.images)
    expected = torch.nn.functional.cross_entropy(logits, trainer.train.labels).item()
    assert trainer.curve[0].train_loss == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_depend_on_the_evaluation_batch(data):
    scores = []
    for size in (1, 5, 100):
        trainer = trainer_of(data, eval_batch_size=size)
        trainer.fit(1)
        scores.append((trainer.curve[0].val_accuracy, trainer.curve[0].val_loss))
    assert scores[0][0] == scores[1][0] == scores[2][0]
    assert scores[0][1] == pytest.approx(scores[1][1], rel=1e-5) == pytest.approx(scores[2][1], rel=1e-5)


def test_the_dash_is_launched_after_the_optimizer_steps_asked_for(data):
    trainer = trainer_of(data, prelaunch_steps=5)
    trainer.fit(1)
    assert not trainer.tuned.launched
    trainer.fit(2)
    assert trainer.tuned.launched
    assert trainer.launch["step"] == 5
    assert [s.launched for s in trainer.curve] == [False, True]


def test_an_epoch_chosen_before_the_launch_is_tested_without_it(data, monkeypatch):
    # Epoch 3 ends after 9 steps on train800 and after 15 in the retraining; the launch is after step 11.
    monkeypatch.setattr("dash_vision.classification.protocol.choose", lambda rule, curves: (0, 3))
    run, lora = one_run(data, prelaunch_steps=11), one_run(data, methods=["lora"])
    result, other = execute(run, CPU), execute(lora, CPU)
    assert [s["launched"] for s in result["selection"]["curves"][0]] == [False, False, False, True]
    assert result["launch"] is None
    assert result["test_accuracy"] == other["test_accuracy"]
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
    trainer = trainer_of(data, dash_selection=selection)
    trainer.fit(2)
    chosen = [w.indices.tolist() for _, w in trainer.tuned.adapter.weights()]
    expected = {"top": [0, 1, 2], "bottom": [29, 30, 31]}  # every layer of the model has 32 directions
    if selection == "random":
        assert len({tuple(c) for c in chosen}) > len(chosen) // 2
    else:
        assert all(c == expected[selection] for c in chosen)


def test_a_diverging_run_stops_with_what_to_do_about_it(data):
    trainer = trainer_of(data, methods=["full"])
    with torch.no_grad():
        trainer.tuned.model.head.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteLoss, match=r"became NaN or infinite, in epoch 1 .*Lower --learning_rate"):
        trainer.fit(4)


def test_a_launch_on_an_update_that_is_not_finite_is_a_divergence_too(data):
    trainer = trainer_of(data, prelaunch_steps=1)
    with torch.no_grad():
        next(w for _, w in trainer.tuned.adapter.weights()).A.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match=r"cannot choose directions in blocks\.0\.attn\.qkv"):
        trainer.fit(1)


def test_a_dash_that_would_never_start_is_refused_before_training(data):
    with pytest.raises(
        InputError, match="--prelaunch_steps 12 leaves no step for the dash: 4 epochs of 24 images make 12"
    ):
        execute(one_run(data, prelaunch_steps=12), CPU)
    with pytest.raises(InputError, match="--prelaunch_steps 50"):
        execute(one_run(data, search=["prelaunch_steps=5,50"]), CPU)
