"""Many runs: what is skipped, what is refused, commands and Ray."""

import dataclasses
import shlex
import sys

import pytest

import dash_vision.core.decompositions as decompositions
import train_vtab
from dash_vision.classification import sweep as sweep_module
from dash_vision.classification.config import VtabConfig
from dash_vision.classification.run import execute, finished
from dash_vision.classification.sweep import command, sweep, sweep_on_ray
from dash_vision.files.atomic import FolderInUse, FolderLock
from dash_vision.files.errors import InputError, RunError, Stopped
from dash_vision.runs.record import RESULT, read_record
from dash_vision.runs.settings import parse
from dash_vision.runs.signals import StopRequest
from tests.support.vtab import StopAt, cpu, one_run, trained_run


def config(tmp_path, **settings):
    values = dataclasses.asdict(one_run(tmp_path).settings) | {"epochs": 2, "prelaunch_steps": 2, **settings}
    return VtabConfig(**values)


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


def test_what_is_done_is_skipped_and_what_is_missing_is_run(data, monkeypatch):
    executed = []
    original = sweep_module.execute
    monkeypatch.setattr(sweep_module, "execute", lambda run, *a: executed.append(run.name) or original(run, *a))
    first = sweep(config(data, methods=["linear", "lora"]).runs(), cpu(), StopRequest())
    assert (len(first.done), first.skipped, first.failed) == (2, 0, [])
    again = sweep(config(data, methods=["linear", "lora", "dash"]).runs(), cpu(), StopRequest())
    assert (len(again.done), again.skipped) == (3, 2)
    assert executed == ["cifar linear seed 0", "cifar lora seed 0", "cifar dash seed 0"]


def test_the_frozen_weights_are_decomposed_once_for_all_runs(data, monkeypatch):
    seeds = {"seeds": [0, 1]}
    monkeypatch.delenv(decompositions.VARIABLE, raising=False)
    sweep(config(data, cache_dir="none", output_dir=str(data / "uncached"), **seeds).runs(), cpu(), StopRequest())
    decompose, shapes = decompositions.decompose, []
    monkeypatch.setattr(decompositions, "decompose", lambda W: shapes.append(W.shape) or decompose(W))
    sweep(config(data, **seeds).runs(), cpu(), StopRequest())
    assert len(shapes) == len(list((data / "cache/directions").iterdir())) == 8  # two blocks of four linear layers
    for run in config(data, **seeds).runs():
        kept = read_record(run.folder / RESULT)
        other = read_record(data / "uncached" / run.folder.relative_to(data / "runs") / RESULT)
        assert kept.selection == other.selection
        assert kept.launch.step == other.launch.step == 2
    sweep(config(data, seeds=[2], cache_dir="none").runs(), cpu(), StopRequest())
    assert len(shapes) == 24  # nothing is kept with --cache_dir none: eight to select, eight to retrain


def test_a_killed_sweep_goes_on_where_it_was(data):
    runs = config(data, methods=["linear", "lora", "dash"]).runs()
    with pytest.raises(Stopped):
        sweep(runs, cpu(), StopAt(9))
    tally = sweep(runs, cpu(), StopRequest())
    assert len(tally.done) == 3
    assert tally.skipped < 3


def test_a_result_of_other_settings_is_neither_skipped_nor_overwritten(data):
    run, _ = trained_run(data, epochs=2, prelaunch_steps=2)
    before = (run.folder / "result.json").read_bytes()
    with pytest.raises(InputError, match=r"other settings \(rank 2 there, 3 here\); keep both with --tag"):
        sweep(config(data, rank=3).runs(), cpu(), StopRequest())
    assert (run.folder / "result.json").read_bytes() == before
    assert finished(config(data, rank=3, overwrite=True).runs()[0]) is None
    assert finished(config(data, device="cuda:5", compile=True).runs()[0]) is not None


def test_a_broken_result_file_counts_as_no_result(data):
    run = config(data).runs()[0]
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text('{"task": "cifar"')
    assert finished(run) is None


def test_a_diverging_run_does_not_end_the_sweep(data, monkeypatch, capsys):
    original = sweep_module.execute

    def fails_once(run, *arguments):
        if run.method == "linear":
            raise RunError("the loss became NaN")
        return original(run, *arguments)

    monkeypatch.setattr(sweep_module, "execute", fails_once)
    tally = sweep(config(data, methods=["linear", "lora"]).runs(), cpu(), StopRequest())
    assert len(tally.done) == 1
    assert tally.failed == ["cifar linear seed 0: the loss became NaN"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "[1/2] failed: cifar linear seed 0: the loss became NaN; 1 to go"
    assert lines[2].startswith("[2/2] cifar lora seed 0: test ")


def test_missing_data_of_any_task_is_noticed_before_the_first_run(data, monkeypatch):
    monkeypatch.setattr(sweep_module, "execute", None)
    with pytest.raises(ValueError, match="no data for task svhn"):
        sweep(config(data, task=["cifar", "svhn"]).runs(), cpu(), StopRequest())


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
        lora_alpha=3.5,
        max_grad_norm=1.0,
        allow_tf32=False,
        lora_target=["attn.qkv", "mlp.fc1"],
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


def test_commands_leave_out_what_is_done(data, capsys):
    trained_run(data, methods=["linear"], epochs=2, prelaunch_steps=2)
    words = shlex.split(command(config(data, methods=["linear"]).runs()[0]))[2:]
    assert train_vtab.main([*words, "--methods", "linear", "lora", "--print_commands"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "--methods lora" in line


# -- Ray


def test_without_ray_its_executor_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'dash-vision\[ray\]'"):
        sweep_on_ray([])


def test_runs_on_a_local_ray(data):
    ray = pytest.importorskip("ray", reason="Ray is an optional part and not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    stock = {"model": "test_vit", "image_size": 32}  # a worker does not know the tests' own model
    lines = []
    try:
        tally = sweep_on_ray(config(data, **stock, methods=["linear", "lora"]).runs(), lines.append)
    finally:
        ray.shutdown()
    assert (len(tally.done), tally.failed) == (2, [])
    assert sorted(line.split(":")[0].split("] ")[1] for line in lines[1:]) == [
        "cifar linear seed 0",
        "cifar lora seed 0",
    ]
    assert finished(config(data, **stock, methods=["lora"]).runs()[0]).method == "lora"


def test_two_sweeps_of_one_folder_share_the_runs(data):
    runs = config(data, methods=["linear", "lora"]).runs()
    elsewhere = runs[0].folder
    elsewhere.mkdir(parents=True)
    lock = FolderLock(elsewhere)
    with pytest.raises(FolderInUse, match="another run is writing"):
        execute(runs[0], cpu())
    tally = sweep(runs, cpu(), StopRequest())
    assert [record.method for record in tally.done] == ["lora"]
    assert tally.failed == []
    lock.release()
    assert len(sweep(runs, cpu(), StopRequest()).done) == 2
