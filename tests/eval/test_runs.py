"""Which run is which: names, folders and versions."""

from pathlib import Path

import pytest

from eval.__main__ import main
from eval.curves.charts import all_panels
from eval.runs import find_runs, labels, short_names
from tests.support.records import dreambooth_record, vtab_record, write_record


def record_of(folder, kind="dream", curve=(), **changes):
    """A folder with the record of a run, and no more than it takes to be one."""
    if kind == "dream":
        write_record(folder / "run.json", dreambooth_record(**changes))
        (folder / "pytorch_lora_weights.safetensors").touch()
        return
    if curve:
        changes["selection"] = {"candidate": 0, "curves": [list(curve)]}
    write_record(folder / "val_result.json", vtab_record(**changes))


def test_only_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for place in ("1/r4/seed-0", "2/r4/seed-1"):
        record_of(tmp_path / "dream" / place)
    record_of(tmp_path / "dream/3/r4/seed-0", method="dash")
    record_of(tmp_path / "vtab/cifar/dash/seed-7", "vtab", method="dash", seed=7)
    record_of(tmp_path / "vtab/svhn/lora/seed-0", "vtab", task="svhn")
    record_of(tmp_path / "again/svhn/lora/seed-0", "vtab", task="svhn")
    found, problems = find_runs([tmp_path / "dream", tmp_path / "vtab", tmp_path / "again"])
    assert problems == []
    assert labels(found) == [
        "LoRA (1/r4/seed-0)",
        "LoRA (2/r4/seed-1)",
        "LoRA-Dash",
        "cifar, LoRA-Dash, seed 7",
        "svhn, LoRA, seed 0 (vtab/svhn/lora/seed-0)",
        "svhn, LoRA, seed 0 (again/svhn/lora/seed-0)",
    ]


def test_short_names_are_the_ends_of_paths_from_where_they_part(tmp_path):
    assert short_names([tmp_path / "a/x/seed-0", tmp_path / "b/x/seed-1"]) == ["a/x/seed-0", "b/x/seed-1"]
    assert short_names([tmp_path / "a/x/seed-0", tmp_path / "a/x/../x/seed-1"]) == ["seed-0", "seed-1"]
    assert short_names([tmp_path / "a", tmp_path / "a/b"]) == ["a", "a/b"]  # one run inside another's folder
    assert short_names([tmp_path / "a/b"]) == ["b"]


def test_a_run_given_by_several_paths_is_there_once(tmp_path, monkeypatch):
    record_of(tmp_path / "all/one")
    record_of(tmp_path / "all/two")
    (tmp_path / "link").symlink_to(tmp_path / "all/one")
    monkeypatch.chdir(tmp_path)
    given = ["all/one", "all", "all/", "all/../all/one", "link", tmp_path / "all"]
    found, problems = find_runs(Path(p) for p in given)
    assert ([str(run.folder) for run in found], problems) == (["all/one", "all/two"], [])
    _, problems = find_runs([Path("none"), Path("none/"), tmp_path / "none"])
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("launched", "changes", "launch"),
    [
        ((False, True), {}, 5),
        ((False, False), {}, None),
        ((False, True), {"selected_settings": {"prelaunch_steps": 4}}, 4),
        ((False, True), {"launch": {"step": 6, "layers": 1, "seconds": 0.1, "mean_relative_index": 0.5}}, 6),
        ((False, True), {"launch": None}, 5),
    ],
)
def test_the_launch_of_a_val_only_run(tmp_path, launched, changes, launch):
    curve = [{"epoch": i, "train_loss": 1.0, "val_accuracy": 1.0, "launched": on} for i, on in enumerate(launched, 1)]
    record_of(tmp_path / "run", "vtab", method="dash", curve=curve, **changes)
    (run,), _ = find_runs([tmp_path])
    assert run.launch == launch
    assert {mark for p in all_panels([run])[0] for mark in p.marks} == (
        {(launch, f"dash launched after step {launch}")} if launch else set()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"batch_size": 0}},
        {"arguments": {}},
        {"versions": ["torch"]},
        {"test_accuracy": "90"},
        {"selection": {"candidate": 1, "curves": []}},
    ],
)
def test_a_result_of_another_version_costs_itself_only(tmp_path, capsys, changes):
    record_of(tmp_path / "good", "vtab")
    record_of(tmp_path / "other", "vtab", **changes)
    for words in (["curves", "-o", str(tmp_path / "c.png")], ["report", "-o", str(tmp_path / "r.html")]):
        assert main([*words, str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "other" in said
        assert "another version" in said
