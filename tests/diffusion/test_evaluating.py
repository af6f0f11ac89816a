"""Runs that are measured while they are trained: on held-out pictures, and without changing what is learned."""

import dataclasses
import os
import shutil
import signal

import pytest
import torch

from dash_vision.diffusion import evaluating
from dash_vision.diffusion.evaluating import TIMES, Evaluator
from dash_vision.diffusion.heldout import split
from dash_vision.diffusion.period import usual_period
from dash_vision.diffusion.run import fit
from dash_vision.files.errors import InputError, Stopped
from dash_vision.pictures.listing import list_folder
from dash_vision.runs.evaluation import Evaluated, read_evaluation
from dash_vision.runs.record import read_record
from dash_vision.runs.seeds import stream
from tests.support.dreambooth import before_each_batch, fitted, measured_settings, prepare, settings, states, train
from tests.support.pictures import save_pictures


def names(listing):
    return [file.name for file in listing.files]


def values(evaluation):
    """All that was measured, without how long it took."""
    return [dataclasses.replace(one, seconds=0.0) for one in evaluation.checkpoints]


# -- which pictures


@pytest.mark.parametrize(("holdout", "count"), [("0.2", 1), ("0.5", 2), ("3", 3), ("0.01", 1)])
def test_a_share_or_a_number_of_the_pictures_is_kept_out(bases, tmp_path, holdout, count):
    listing = list_folder(bases / "cat")
    parts = split(settings(bases, tmp_path, holdout=holdout), listing)
    assert len(parts.heldout.files) == count
    assert sorted(names(parts.listing) + names(parts.heldout)) == names(listing)
    again = split(settings(bases, tmp_path, holdout=holdout), listing)
    assert names(again.heldout) == names(parts.heldout)


def test_another_seed_keeps_out_others(bases, tmp_path):
    listing = list_folder(bases / "cat")
    chosen = {tuple(names(split(settings(bases, tmp_path, holdout="2", seed=n), listing).heldout)) for n in range(6)}
    assert len(chosen) > 1


def test_a_folder_of_others_leaves_all_pictures_to_learn_from(bases, tmp_path):
    listing = list_folder(bases / "cat")
    parts = split(settings(bases, tmp_path, holdout=str(save_pictures(tmp_path / "others", 2))), listing)
    assert (parts.listing, names(parts.heldout)) == (listing, ["0.png", "1.png"])


@pytest.mark.parametrize(
    ("holdout", "said"),
    [
        ("5", "leaves nothing to learn from"),
        ("0.99", "leaves nothing to learn from"),
        ("0", "takes a share such as 0.2"),
        ("2.5", "takes a share such as 0.2"),
        ("nan", "takes a share such as 0.2"),
        ("nowhere", "no number and no folder"),
    ],
)
def test_what_cannot_be_kept_out_is_one_sentence(bases, tmp_path, holdout, said):
    with pytest.raises(InputError, match=said):
        split(settings(bases, tmp_path, holdout=holdout), list_folder(bases / "cat"))


@pytest.mark.parametrize("given", [{"early_stop": True}, {"evaluate_every": 5}, {"prefer": "faithful"}])
def test_settings_of_measurements_that_are_not_made_are_refused(bases, tmp_path, given):
    with pytest.raises(InputError, match="does nothing without --holdout"):
        settings(bases, tmp_path, **given)


@pytest.mark.parametrize(("name", "value"), [("early_stopping_patience", 5), ("preserve_class_weight", 2.0)])
def test_a_setting_of_another_one_that_is_not_given_is_noted(bases, tmp_path, name, value):
    notes = settings(bases, tmp_path, **{name: value}).notes
    assert any(note.startswith(f"--{name} makes no difference, since it is of --") for note in notes)


def test_early_stop_without_a_likeness_is_refused(bases, tmp_path):
    with pytest.raises(InputError, match="--early_stop does nothing with --eval_encoders none"):
        measured_settings(bases, tmp_path, early_stop=True, eval_encoders=["none"])


# -- what a run leaves


def test_every_measured_step_has_its_adapter_and_its_values(measured):
    evaluation = read_record(measured / "run.json").evaluation
    assert evaluation == read_evaluation(measured / "evaluation.json")
    assert [one.step for one in evaluation.checkpoints] == [0, 2, 4, 6, 8]
    assert evaluation.base.adapter is None
    for one in evaluation.trained:
        assert (measured / one.adapter / "pytorch_lora_weights.safetensors").is_file()
        assert one.values.keys() == {"likeness", "adherence", "drift", "leak", "loss"}
        assert len(one.values["loss"]) == len(evaluation.heldout) == 2
        assert len(one.values["drift"]) == len(evaluation.prompts["unrelated"]) == 10
    assert set(evaluation.base.values["leak"]) == {0.0}
    assert max(evaluation.base.values["drift"]) < 1e-9 < min(evaluation.trained[-1].values["drift"])
    assert evaluation.recommended.step in (2, 4, 6, 8)
    assert (measured / "progress.png").stat().st_size > 1000
    last, kept = (f / "dash_adapter.safetensors" for f in (measured, measured / evaluation.trained[-1].adapter))
    assert last.read_bytes() == kept.read_bytes()


def test_measuring_changes_nothing_that_is_learned(bases, tmp_path):
    """The held-out pictures are others, so that both runs learn from the same ones."""
    others = save_pictures(tmp_path / "others", 2)
    drops = {"lora_dropout": 0.3, "train_text_encoder": True}
    plain = fitted(settings(bases, tmp_path / "plain" / "out", **drops))
    seen = fitted(measured_settings(bases, tmp_path / "seen" / "out", holdout=str(others), **drops))
    assert len(seen.evaluation.checkpoints) == 5
    expected, found = states(plain), states(seen)
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert seen.training.losses == plain.training.losses


def test_a_resumed_run_has_measured_what_an_uninterrupted_one_has(bases, tmp_path, measured):
    run = prepare(measured_settings(bases, tmp_path / "out"))

    def interrupt(batch):
        if batch == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before_each_batch(run, interrupt)
    with pytest.raises(Stopped):
        fit(run)
    so_far = read_evaluation(tmp_path / "out/evaluation.json")
    assert [one.step for one in so_far.checkpoints] == [0, 2, 4]
    again = fitted(measured_settings(bases, tmp_path / "out"))
    assert values(again.evaluation) == values(read_evaluation(measured / "evaluation.json"))


def test_pictures_that_are_also_learned_from_are_not_called_held_out(bases, tmp_path):
    shutil.copytree(bases / "cat", tmp_path / "again")
    lines = []
    job = prepare(measured_settings(bases, tmp_path / "out", holdout=str(tmp_path / "again")), lines)
    assert any("all pictures that are held out are also among those to learn from" in line for line in lines)
    assert Evaluator(job).evaluation.which == "training"
    assert Evaluator(prepare(measured_settings(bases, tmp_path / "other"))).evaluation.which == "held-out"


def test_values_that_were_measured_otherwise_are_left_out(bases, tmp_path, measured):
    shutil.copytree(measured, tmp_path / "out")
    (tmp_path / "out/run.json").unlink()  # as if it had been interrupted
    lines = []
    job = prepare(measured_settings(bases, tmp_path / "out", eval_encoders=["none"]), lines)
    evaluator = Evaluator(job)
    evaluator.resume()
    assert any("measured otherwise" in line for line in lines)
    assert job.evaluation.checkpoints == []


def test_values_of_other_pictures_of_the_same_names_are_left_out(bases, tmp_path):
    others = save_pictures(tmp_path / "others", 2)
    wanted = measured_settings(bases, tmp_path / "out", holdout=str(others), eval_encoders=["none"])
    fitted(wanted)
    names = sorted(path.name for path in others.glob("*.png"))
    (others / names[0]).rename(others / "other")
    (others / names[1]).rename(others / names[0])
    (others / "other").rename(others / names[1])
    lines = []
    job = prepare(wanted, lines)
    Evaluator(job).resume()
    assert any("measured otherwise" in line for line in lines)
    assert job.evaluation.checkpoints == []


# -- the loss


def test_the_held_out_loss_is_the_mean_error_at_fixed_noise_and_times(bases, tmp_path):
    job = prepare(measured_settings(bases, tmp_path / "out", eval_encoders=["none"]))
    evaluator = Evaluator(job)
    evaluator.measure(None)
    found = job.evaluation.base.values["loss"]
    alphas = job.base.pipeline.scheduler.alphas_cumprod
    for number, one in enumerate(job.material.heldout):
        errors = []
        for draw in range(TIMES):
            generator = stream(0, "heldout", number, draw)
            latents = one.example.views[0].mean[None]
            noise = torch.randn(latents.shape[1:], generator=generator)[None]
            time = torch.randint(1000, (1,), generator=generator)
            noisy = alphas[time].sqrt() * latents + (1 - alphas[time]).sqrt() * noise
            (words,) = job.material.conditions[one.example.prompt].values()
            with torch.no_grad():
                said = job.base.pipeline.unet(noisy, time, encoder_hidden_states=words).sample
            errors.append((said - noise).square().mean().item())
        assert found[number] == pytest.approx(sum(errors) / TIMES, rel=1e-5)


def test_what_rounds_to_zero_is_told_without_a_sign(bases, tmp_path):
    lines = []
    job = prepare(measured_settings(bases, tmp_path / "out", eval_encoders=["none"]), lines)
    Evaluator(job)._keep(Evaluated(0, None, {"drift": [-1e-9]}))
    assert any("drift 0.000 " in line for line in lines)


# -- when something is missing or fails


def test_without_an_encoder_the_loss_alone_is_measured_and_the_run_says_why(bases, tmp_path):
    lines, changes = [], {"eval_encoders": [str(tmp_path)], "max_train_steps": 5, "early_stop": True}
    job = fitted(measured_settings(bases, tmp_path / "out", **changes), lines)
    assert any("cannot load the encoder" in line and "loss" in line for line in lines)
    assert any("--early_stop ends nothing early" in line for line in lines)
    assert {name for one in job.evaluation.checkpoints for name in one.values} == {"loss"}
    assert job.evaluation.recommended is None


def test_a_measurement_that_fails_costs_a_sentence_and_not_the_run(bases, tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("no pictures today")

    monkeypatch.setattr(evaluating, "sample", broken)
    job = train(measured_settings(bases, tmp_path / "out", max_train_steps=5))
    assert job.training.step == 5
    notes = read_record(tmp_path / "out/run.json").evaluation.notes
    assert "step 4 could not be measured (no pictures today)" in notes
    assert capsys.readouterr().out.count("the training goes on") == 4


def test_a_run_that_brings_no_better_checkpoint_stops_early(bases, tmp_path):
    """Nothing is learned at a rate of 0: no later checkpoint scores higher than the first, and the last is kept."""
    changes = {"early_stop": True, "early_stopping_patience": 2, "learning_rate": 0.0, "dash_k": 0}
    job = train(measured_settings(bases, tmp_path / "out", max_train_steps=20, **changes))
    assert job.training.step == 6
    record = read_record(tmp_path / "out/run.json")
    assert (record.steps, record.evaluation.stopped, record.evaluation.recommended.step) == (6, 6, 6)


def test_a_base_that_lets_its_text_encoders_go_is_measured_too(bases, tiny, tmp_path):
    """And where the class has no prompt of its own, its leak is left out."""
    base = {"pretrained_model_name_or_path": str(tiny("flux2-klein")), "resolution": 16, "max_sequence_length": 32}
    lines, changes = [], {"max_train_steps": 3, "prelaunch_steps": 1, "evaluate_every": 3, **base}
    job = fitted(measured_settings(bases, tmp_path / "out", instance_prompt="a photo of Tom", **changes), lines)
    assert job.base.text_encoders() == []
    assert job.evaluation.trained[-1].values.keys() == {"likeness", "adherence", "drift", "loss"}
    assert any("--class_prompt" in line for line in lines)


# -- how often


def test_measuring_takes_a_tenth_of_the_training_where_nothing_is_said():
    """A step of 8 pictures is 24 forward passes, 32 with checkpointing; 18 pictures of 10 guided steps are 360."""
    assert usual_period(1000, 8, False, 10, True) == 200  # 2400 passes are 6 measurements and the base's
    assert usual_period(1000, 8, True, 10, True) == 143
    assert usual_period(100, 1, False, 10, True) == 50  # never less than twice
    assert usual_period(10_000, 8, False, 10, True) == 1000  # never more than ten times
