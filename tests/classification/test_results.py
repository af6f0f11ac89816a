"""Tables of finished runs: means, spreads and paired differences."""

import dataclasses
import json
import statistics

import pytest

from dash_vision.classification.results import paired, render, spread, summarize
from dash_vision.classification.sweep import write_summary
from dash_vision.runs.record import VtabRecord
from dash_vision.runs.tasks import TASKS, VTAB
from tests.support.vtab import trained_run


def result(task, method, seed, accuracy, **more):
    """A record that says no more than a table needs."""
    values = {"task": task, "method": method, "seed": seed, "test_accuracy": accuracy, "val_accuracy": 1.0}
    values |= {"synthetic": TASKS[task].embedded, "official_split": not TASKS[task].embedded, **more}
    unset = {f.name: None for f in dataclasses.fields(VtabRecord) if f.name not in ("kind", *values)}
    return VtabRecord(**{**unset, **values})


def test_means_over_seeds_groups_and_tasks():
    results = [result(t, "lora", s, 10.0 * i + s) for i, t in enumerate(VTAB) for s in (0, 1)]
    summary = summarize(results)["methods"]["lora"]
    assert summary["tasks"]["cifar"] == {"mean": 0.5, "std": pytest.approx(0.5**0.5), "n": 2}
    means = [10.0 * i + 0.5 for i in range(19)]
    groups = {"natural": means[:7], "specialized": means[7:11], "structured": means[11:]}
    assert summary["groups"] == {g: pytest.approx(statistics.fmean(v)) for g, v in groups.items()}
    assert summary["mean_of_groups"] == pytest.approx(statistics.fmean(map(statistics.fmean, groups.values())))
    assert summary["mean_of_tasks"] == pytest.approx(statistics.fmean(means))


def test_no_overall_mean_without_all_nineteen():
    results = [result(t, "lora", 0, 50.0) for t in VTAB[:18]] + [result("mini_count", "lora", 0, 50.0)]
    assert summarize(results)["methods"]["lora"].keys() == {"tasks"}


def test_methods_are_compared_in_pairs_of_task_and_seed():
    results = [result("cifar", "lora", s, v) for s, v in enumerate((50, 60, 70))]
    results += [result("cifar", "dash", s, v) for s, v in enumerate((52, 59, 73))]
    results += [result("svhn", "dash", 0, 10)]
    (difference,) = summarize(results)["differences"]
    assert (difference["method"], difference["minus"], difference["pairs"]) == ("dash", "lora", 3)
    assert difference["mean"] == pytest.approx(4 / 3)
    assert difference["standard_error"] == pytest.approx(statistics.stdev([2, -1, 3]) / 3**0.5)
    assert (difference["wins"], difference["ties"], difference["losses"]) == (2, 0, 1)


def test_one_value_has_no_spread():
    assert spread([5.0]) == {"mean": 5.0, "std": None, "n": 1}
    assert paired([0.0]) == {"mean": 0.0, "standard_error": None, "pairs": 1, "wins": 0, "ties": 1, "losses": 0}


def test_the_table_names_what_is_synthetic_and_what_is_not_the_official_split():
    results = [result("mini_count", "dash", 0, 40.0), result("cifar", "dash", 0, 60.0, official_split=False)]
    results += [result("dtd", "lora", 0, None, val_accuracy=33.0)]
    lines = render(summarize(results))
    assert "synthetic: mini_count" in lines
    assert "not the official split: cifar" in lines
    assert "val200 only: dtd" in lines
    assert lines[0].split() == ["accuracy", "in", "%", "lora", "dash"]
    assert lines[2].split() == ["dtd", "33.0", "(1)", "-"]


def test_results_are_collected_from_the_folders(data):
    trained_run(data, epochs=2, prelaunch_steps=2, methods=["linear"])
    (data / "runs" / "stray").mkdir()
    (data / "runs" / "stray" / "result.json").write_text("[]")
    lines = write_summary(data / "runs")
    assert "left out, being cut short or no result: 1 (" in lines[-2]
    assert "stray" in lines[-2]
    assert json.loads((data / "runs" / "summary.json").read_text())["methods"].keys() == {"linear"}
    assert render(summarize([]))[0] == "no results yet"
