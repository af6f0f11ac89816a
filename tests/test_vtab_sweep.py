"""Many runs: what is skipped, what is refused, commands, tables, Ray, and the command line's errors."""

import dataclasses
import json
import shlex
import statistics
import sys

import pytest
from vtab_helpers import CPU, TINY, one_run, train_vtab, trained_run, write_task

import dash_vision.core.decompositions as decompositions
from dash_vision.classification import sweep as sweep_module
from dash_vision.classification.config import VtabConfig
from dash_vision.classification.loop import NonFiniteLoss
from dash_vision.classification.results import RESULT, paired, read_result, read_results, render, spread, summarize
from dash_vision.classification.run import execute, finished
from dash_vision.classification.runtime import Interrupted
from dash_vision.classification.sweep import command, sweep, sweep_on_ray
from dash_vision.files.atomic import FolderInUse, FolderLock
from dash_vision.files.errors import InputError
from dash_vision.runs.settings import parse
from dash_vision.runs.signals import StopRequest
from dash_vision.runs.tasks import TASKS, VTAB


def config(tmp_path, **settings):
    values = dataclasses.asdict(one_run(tmp_path).settings) | {"epochs": 2, "prelaunch_steps": 2, **settings}
    return VtabConfig(**values)


@pytest.fixture
def folder(tmp_path):
    write_task(tmp_path / "data")
    return tmp_path


# -- sweeps


def test_every_task_method_and_seed_is_a_run(tmp_path):
    runs = config(tmp_path, task=["cifar", "svhn"], methods=["lora", "dash"], seeds=[0, 1, 2]).runs()
    assert len(runs) == 12
    assert len({r.folder for r in runs}) == 12
    assert [(r.task.name, r.seed, r.method) for r in runs[:3]] == [
        ("cifar", 0, "lora"),
        ("cifar", 0, "dash"),
        ("cifar", 1, "lora"),
    ]
    assert runs[0].folder == tmp_path / "runs/cifar/lora/seed-0"
    tagged = config(tmp_path, tag="r4").runs()[0]
    assert tagged.folder == tmp_path / "runs/cifar/dash-r4/seed-0"


def test_what_is_done_is_skipped_and_what_is_missing_is_run(folder, monkeypatch):
    executed = []
    original = sweep_module.execute
    monkeypatch.setattr(sweep_module, "execute", lambda run, *a: executed.append(run.name) or original(run, *a))
    first = sweep(config(folder, methods=["linear", "lora"]).runs(), CPU, StopRequest())
    assert (len(first.done), first.skipped, first.failed) == (2, 0, [])
    again = sweep(config(folder, methods=["linear", "lora", "dash"]).runs(), CPU, StopRequest())
    assert (len(again.done), again.skipped) == (3, 2)
    assert executed == ["cifar linear seed 0", "cifar lora seed 0", "cifar dash seed 0"]


def test_the_frozen_weights_are_decomposed_once_for_all_runs(folder, monkeypatch):
    seeds = {"seeds": [0, 1]}
    monkeypatch.delenv(decompositions.VARIABLE, raising=False)
    sweep(config(folder, cache_dir="none", output_dir=str(folder / "uncached"), **seeds).runs(), CPU, StopRequest())
    decompose, shapes = decompositions.decompose, []
    monkeypatch.setattr(decompositions, "decompose", lambda W: shapes.append(W.shape) or decompose(W))
    sweep(config(folder, **seeds).runs(), CPU, StopRequest())
    assert len(shapes) == len(list((folder / "cache/directions").iterdir())) == 8  # two blocks of four linear layers
    for run in config(folder, **seeds).runs():
        kept = read_result(run.folder / RESULT)
        other = read_result(folder / "uncached" / run.folder.relative_to(folder / "runs") / RESULT)
        assert kept["selection"] == other["selection"]
        assert kept["launch"]["step"] == other["launch"]["step"] == 2
    sweep(config(folder, seeds=[2], cache_dir="none").runs(), CPU, StopRequest())
    assert len(shapes) == 24  # nothing is kept with --cache_dir none: eight to select, eight to retrain


def test_a_killed_sweep_goes_on_where_it_was(folder):
    class Kill(StopRequest):
        left = 9

        def pending(self):
            self.left -= 1
            return self.left < 0

    runs = config(folder, methods=["linear", "lora", "dash"]).runs()
    with pytest.raises(Interrupted):
        sweep(runs, CPU, Kill())
    tally = sweep(runs, CPU, StopRequest())
    assert len(tally.done) == 3
    assert tally.skipped < 3


def test_a_result_of_other_settings_is_neither_skipped_nor_overwritten(folder):
    run, _ = trained_run(folder, epochs=2, prelaunch_steps=2)
    before = (run.folder / "result.json").read_bytes()
    with pytest.raises(InputError, match=r"other settings \(rank 2 there, 3 here\); keep both with --tag"):
        sweep(config(folder, rank=3).runs(), CPU, StopRequest())
    assert (run.folder / "result.json").read_bytes() == before
    assert finished(config(folder, rank=3, overwrite=True).runs()[0]) is None
    assert finished(config(folder, device="cuda:5", compile=True).runs()[0]) is not None


def test_a_broken_result_file_counts_as_no_result(folder):
    run = config(folder).runs()[0]
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text('{"task": "cifar"')
    assert finished(run) is None


def test_a_diverging_run_does_not_end_the_sweep(folder, monkeypatch, capsys):
    original = sweep_module.execute

    def fails_once(run, *arguments):
        if run.method == "linear":
            raise NonFiniteLoss("cifar linear seed 0: the loss became NaN")
        return original(run, *arguments)

    monkeypatch.setattr(sweep_module, "execute", fails_once)
    tally = sweep(config(folder, methods=["linear", "lora"]).runs(), CPU, StopRequest())
    assert len(tally.done) == 1
    assert tally.failed == ["cifar linear seed 0: the loss became NaN"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1/2] failed: cifar linear")
    assert "1 to go, about" in lines[0]
    assert lines[1].startswith("[2/2] cifar lora seed 0: test ")


def test_missing_data_of_any_task_is_noticed_before_the_first_run(folder, monkeypatch):
    monkeypatch.setattr(sweep_module, "execute", None)
    with pytest.raises(ValueError, match="no data for task svhn"):
        sweep(config(folder, task=["cifar", "svhn"]).runs(), CPU, StopRequest())


# -- commands


def test_every_printed_command_asks_for_exactly_its_run(tmp_path):
    peft = tmp_path / "a b.json"
    peft.write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["qkv"]}')
    asked = config(
        tmp_path,
        task=["cifar", "mini_count"],
        methods=["dash"],
        peft_config=[str(peft)],
        seeds=[0, 3],
        search=["learning_rate=1e-3,1e-2", "dash_k=2,4"],
        alpha=3.5,
        compile=True,
    )
    runs = asked.runs()
    assert len(runs) == 8
    for run in runs:
        words = shlex.split(command(run))
        assert words[:2] == ["python", "train_vtab.py"]
        (again,) = parse(VtabConfig, "", "", words[2:]).runs()
        assert again.identity() == run.identity()
        assert again.folder == run.folder
        assert again.settings.compile


def test_commands_leave_out_what_is_done(folder, capsys):
    trained_run(folder, methods=["linear"], epochs=2, prelaunch_steps=2)
    words = shlex.split(command(config(folder, methods=["linear"]).runs()[0]))[2:]
    assert train_vtab.main([*words, "--methods", "linear", "lora", "--print_commands"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "--methods lora" in line


# -- tables


def result(task, method, seed, accuracy, **more):
    values = {"task": task, "method": method, "seed": seed, "test_accuracy": accuracy, "val_accuracy": 1.0}
    return {**values, "synthetic": TASKS[task].embedded, "official_split": not TASKS[task].embedded, **more}


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


def test_results_are_collected_from_the_folders(folder):
    trained_run(folder, epochs=2, prelaunch_steps=2, methods=["linear"])
    (folder / "runs" / "stray").mkdir()
    (folder / "runs" / "stray" / "result.json").write_text("[]")
    assert [r["method"] for r in read_results(folder / "runs")[0]] == ["linear"]
    assert render(summarize([]))[0] == "no results yet"


# -- Ray


def test_without_ray_its_executor_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'dash-vision\[ray\]'"):
        sweep_on_ray([])


def test_runs_on_a_local_ray(folder):
    ray = pytest.importorskip("ray", reason="Ray is an optional part and not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    stock = {"model": "test_vit", "image_size": 32}  # a worker does not know the tests' own model
    lines = []
    try:
        tally = sweep_on_ray(config(folder, **stock, methods=["linear", "lora"]).runs(), lines.append)
    finally:
        ray.shutdown()
    assert (len(tally.done), tally.failed) == (2, [])
    assert sorted(line.split(":")[0].split("] ")[1] for line in lines) == ["cifar linear seed 0", "cifar lora seed 0"]
    assert finished(config(folder, **stock, methods=["lora"]).runs()[0])["method"] == "lora"


# -- the command line


def test_help_has_groups_and_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        train_vtab.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for group in (
        "what to run:",
        "base model:",
        "data:",
        "method:",
        "training:",
        "model selection:",
        "output:",
        "machine:",
    ):
        assert f"\n{group}\n" in shown
    for default in ("(default: 8)", "(default: 100)", "1e-3; full: 1e-4", "runs/vtab", "change_rate"):
        assert default in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--task is missing; for a first try that needs no data: --task mini_location"),
        (["--task", "cifer"], "did you mean cifar"),
        (["--task", "cifar", "--data_root", "{tmp}"], "no data for task cifar in {tmp}"),
        (["--task", "cifar", "--methods", "magic"], "unknown method 'magic'; it takes dash, lora"),
        (["--task", "cifar", "--batch_size", "0"], "batch_size is 1 or more, got 0"),
        (
            ["--task", "cifar", "--keep_every", "2", "--val_only"],
            "keeps adapters of the retraining, which --val_only",
        ),
        (["--task", "cifar", "--keep_every", "2", "--methods", "full", "linear"], "full, linear have none"),
        (["--task", "cifar", "--rank", "0", "--dash_k", "0"], "rank and dash_k are both 0"),
        (["--task", "cifar", "--search", "colour=1,2"], "--search takes NAME=V,V"),
        (["--task", "cifar", "--search", "rank=1,x"], "--search rank: 'x' is no whole number"),
        (["--task", "cifar", "--seeds", "-1"], "seeds are whole numbers of 0 or more"),
        (["--task", "cifar", "--rnak", "3"], "unknown setting --rnak; did you mean --rank"),
        (["--task", "mini_count", "--model", "vit_bas_patch16_224"], "did you mean"),
        (["--task", "mini_count", "--checkpoint", "{tmp}/w.pth"], "there is no checkpoint"),
        (["--check_data", "--data_root", "{tmp}"], "holds none of the tasks"),
    ],
)
def test_what_cannot_be_used_is_answered_in_a_sentence(tmp_path, capsys, words, sentence):
    try:
        status = train_vtab.main([w.format(tmp=tmp_path) for w in words])
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    assert status == 2
    assert sentence.format(tmp=tmp_path) in captured.err
    assert captured.err.count("\n") == 1


def test_check_data_reports_by_its_exit_status(tmp_path, capsys):
    write_task(tmp_path)
    assert train_vtab.main(["--check_data", "--data_root", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("cifar: PROBLEMS (train800 24")


def test_one_command_trains_writes_and_prints_the_table(folder, capsys):
    words = ["--task", "cifar100", "--data_root", str(folder / "data"), "--cache_dir", "none", "--epochs", "2"]
    words += [
        "--output_dir",
        str(folder / "out"),
        "--prelaunch_steps",
        "1",
        "--batch_size",
        "16",
        "--methods",
        "lora",
        "dash",
    ]
    words += [f"--{name}={value}" for name, value in TINY.items()]
    assert train_vtab.main(words) == 0
    shown = capsys.readouterr().out
    assert "(not the official split)" in shown
    assert "dash - lora: " in shown
    summary = json.loads((folder / "out/summary.json").read_text())
    assert set(summary["methods"]) == {"lora", "dash"}
    assert train_vtab.main([*words, "--report"]) == 0


def test_two_sweeps_of_one_folder_share_the_runs(folder):
    runs = config(folder, methods=["linear", "lora"]).runs()
    elsewhere = runs[0].folder
    elsewhere.mkdir(parents=True)
    lock = FolderLock(elsewhere)
    with pytest.raises(FolderInUse, match="another run is writing"):
        execute(runs[0], CPU)
    tally = sweep(runs, CPU, StopRequest())
    assert [result["method"] for result in tally.done] == ["lora"]
    assert tally.failed == []
    lock.release()
    assert len(sweep(runs, CPU, StopRequest()).done) == 2
