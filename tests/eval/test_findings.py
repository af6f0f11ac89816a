"""The title of the page, and the sentences under it."""

import pytest

from dash_vision.runs.record import read_record
from eval.report.findings import findings
from eval.runs import DreamBoothRun, VtabRun
from tests.support.records import dreambooth_record, vtab_record, write_record


def vtab(folder, accuracies):
    """Runs: (method, task, seed) -> percent."""
    runs = []
    for number, ((method, task, seed), value) in enumerate(accuracies.items()):
        changes = {"method": method, "task": task, "seed": seed, "test_accuracy": value}
        path = folder / str(number) / "result.json"
        write_record(path, vtab_record(**changes))
        runs.append(VtabRun(path.parent, read_record(path)))
    return runs


def dreambooth(folder, **changes):
    write_record(folder / "run.json", dreambooth_record(**changes))
    return DreamBoothRun(folder, read_record(folder / "run.json"))


def gains(values):
    """LoRA at 50 and LoRA-Dash at 50 + value, on one task each."""
    return {
        (method, f"mini_{i}", 0): 50 + gain
        for i, value in enumerate(values)
        for method, gain in (("lora", 0.0), ("dash", value))
    }


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ((1.0, 1.1, 0.9), "LoRA-Dash is 1.00 points above LoRA on mini_0, mini_1, mini_2"),
        ((-1.0, -1.1, -0.9, -1.0), "LoRA-Dash is 1.00 points below LoRA on 4 tasks"),
        ((1.0, -1.0, 0.5), "No difference between LoRA-Dash and LoRA is shown on mini_0, mini_1, mini_2"),
        ((5.0, 5.1), "No difference between LoRA-Dash and LoRA is shown on mini_0, mini_1"),  # two tasks are too few
    ],
)
def test_the_title_says_what_the_interval_allows(tmp_path, values, title):
    found, sentences = findings(vtab(tmp_path, gains(values)), [], [])
    assert found == title
    assert len(sentences) == 1


def test_the_interval_is_student_s_over_tasks(tmp_path):
    _, (sentence,) = findings(vtab(tmp_path, gains((1.0, 2.0, 3.0))), [], [])
    # Mean 2, deviation 1, t = 4.303 with two degrees of freedom: 4.303 / sqrt 3 = 2.48.
    assert "LoRA-Dash is 2.00 points above LoRA on average, 3 pairs of one task and seed" in sentence
    assert "95% interval over tasks -0.48 to +4.48: no difference is shown" in sentence


def test_few_seeds_of_one_task_are_said_to_be_too_few(tmp_path):
    accuracies = {(method, "cifar", seed): 50.0 + (method == "dash") for method in ("lora", "dash") for seed in (0, 1)}
    title, (sentence,) = findings(vtab(tmp_path, accuracies), [], [])
    assert title == "No difference between LoRA-Dash and LoRA is shown on Cifar100"
    assert "fewer than 3 seeds are too few to tell" in sentence


def test_runs_without_a_rival_say_what_they_reached(tmp_path):
    title, _ = findings(vtab(tmp_path, {("dash", "cifar", 0): 71.25, ("dash", "dtd", 0): 60.75}), [], [])
    assert title == "LoRA-Dash on Cifar100, DTD: 66.0 % on average"


def test_dreambooth_runs_say_what_was_learned_and_draw_no_conclusion_from_losses(tmp_path):
    losses = {"lora": [9.0] * 18 + [0.5, 0.7], "dash": [9.0] * 18 + [0.25, 0.35]}
    runs = [dreambooth(tmp_path / m, method=m, steps=20, losses=values) for m, values in losses.items()]
    title, (sentence,) = findings(runs, [], [])
    assert title == "sks cat, learned by LoRA and LoRA-Dash"
    assert "sks cat was learned by LoRA and LoRA-Dash in 20 steps." in sentence
    assert "0.3000 with LoRA-Dash and 0.6000 with LoRA (seed 0). A loss says little" in sentence
    longer = dreambooth(tmp_path / "longer", method="dash", steps=30, losses=losses["dash"])
    _, (sentence, caveat) = findings([runs[0], longer], [], [])
    assert "by LoRA in 20 steps; LoRA-Dash in 30 steps." in sentence
    assert "loss" not in sentence
    assert caveat.startswith("LoRA and LoRA-Dash are not comparable, since they differ in steps (20 and 30):")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"seed": 1}, None),
        ({"arguments": {"rank": 9, "dash_k": 3, "prelaunch_steps": 5, "output_dir": "b", "holdout": "1"}}, None),
        ({"arguments": {"preserve_class_weight": 2.0}}, None),  # of a loss that neither has
        ({"arguments": {"learning_rate": 2e-3}}, "in learning_rate (0.001 and 0.002)"),
        ({"arguments": {"train_batch_size": 2}, "steps": 40}, "in steps (20 and 40) and pictures a step (1 and 2)"),
        ({"arguments": {"train_batch_size": 2}, "processes": 1}, "in pictures a step (1 and 2)"),
        ({"arguments": {"with_prior_preservation": True}}, "in with_prior_preservation (None and True)"),
        ({"instance_digest": "0" * 16}, "in training pictures:"),
    ],
)
def test_two_runs_of_a_method_that_differ_in_more_than_the_adapter_are_said_to_be_incomparable(tmp_path, changes, said):
    usual = dreambooth_record()["arguments"]
    changes = {"steps": 20, **changes, "arguments": usual | changes.get("arguments", {})}
    runs = [dreambooth(tmp_path / "a", method="dash", steps=20), dreambooth(tmp_path / "b", method="dash", **changes)]
    caveats = [words for words in findings(runs, [], [])[1] if "comparable" in words]
    third = dreambooth(tmp_path / "c", method="lora", steps=50)
    assert "steps (20 in LoRA-Dash" in findings([*runs, third], [], [])[1][-1]
    if said is None:
        assert not caveats
    else:
        assert f"LoRA-Dash (a) and LoRA-Dash (b) are not comparable, since they differ {said}" in "".join(caveats)


def measured(prompts, mean, low, high):
    score = {"mean": mean, "low": low, "high": high}
    methods = {
        name: {"method": name, "run": name, "steps": 5, "pictures": name, "scores": {"DINO": score}}
        for name in ("LoRA", "LoRA-Dash")
    }
    difference = {"methods": "LoRA-Dash - LoRA", "scores": {"DINO": score}}
    return {
        "subject": "sks cat",
        "prompts": ["p"] * prompts,
        "methods": methods,
        "differences": [difference],
    }


@pytest.mark.parametrize(
    ("prompts", "interval", "title"),
    [
        (25, (0.012, 0.004, 0.02), "sks cat: LoRA-Dash is ahead of LoRA in DINO by 0.012"),
        (25, (-0.012, -0.02, -0.004), "sks cat: LoRA-Dash is behind LoRA in DINO by 0.012"),
        (25, (0.012, -0.004, 0.03), "sks cat: no difference between LoRA-Dash and LoRA is shown"),
        (3, (0.012, 0.004, 0.02), "sks cat: no difference between LoRA-Dash and LoRA is shown"),
        (1, (0.012, None, None), "sks cat: no difference between LoRA-Dash and LoRA is shown"),
    ],
)
def test_a_measured_subject_comes_before_what_was_only_drawn(tmp_path, prompts, interval, title):
    found, sentences = findings([dreambooth(tmp_path / "run")], [measured(prompts, *interval)], [])
    assert found == title
    assert len(sentences) == 2
    assert "DINO +0.012" in sentences[0] or "DINO -0.012" in sentences[0]
    assert ("too few" in sentences[0]) == (prompts < 10)
