"""Which results the VTAB table takes, and what it never averages."""

import csv
import io

import pytest

from eval.__main__ import main
from eval.vtab.table import table
from tests.support.eval_results import results


def rows_of(*paths):
    """(per row its name and accuracies of CIFAR-100 and DTD, every problem) of a table as CSV."""
    text, _, problems = table(list(paths), "csv", published=False)
    lines = list(csv.DictReader(io.StringIO(text)))
    cells = {(line["method"], line["column"]): line["accuracy"] for line in lines}
    names = dict.fromkeys(line["method"] for line in lines)
    numbers = {n: [float(cells[n, t]) if cells[n, t] else None for t in ("cifar", "dtd")] for n in names}
    return numbers, problems


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {"model": "orig_in21k", "arguments": {"method": "lora", "rank": 64}},
            "lora (orig_in21k, rank 64)",
        ),
        ({"model": "orig_in21k", "arguments": {"method": "lora", "rank": 4}}, "lora (orig_in21k)"),
        ({"normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "lora (normalization none)"),
        ({"arguments": {"method": "lora", "rank": 4, "image_size": 384}}, "lora (image_size 384)"),
        ({"arguments": {"method": "lora", "rank": 4, "checkpoint": "w.npz"}}, "lora (checkpoint w.npz)"),
        ({"arguments": {"method": "lora", "rank": 4, "epochs": 10}}, "lora (epochs 10)"),
        ({"official_split": False}, "lora (other data)"),
        ({"images": {"test": 500}}, "lora (other data)"),
    ],
)
def test_what_is_not_comparable_is_never_averaged(tmp_path, changes, name):
    same = {
        "model": "augreg_in21k",
        "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "arguments": {"method": "lora", "rank": 4},
    }
    results(tmp_path / "a", "lora", {"cifar": 90.0}, **same)
    results(tmp_path / "b", "lora", {"cifar": 80.0}, **{**same, **changes})
    numbers, problems = rows_of(tmp_path)
    assert list(numbers.values()) == [[90.0, None], [80.0, None]]
    assert list(numbers)[1] == name
    assert problems == []


def test_what_changes_nothing_about_a_result_makes_no_row(tmp_path):
    same = {"model": "m", "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    a = {
        "method": "lora",
        "rank": 4,
        "dash_k": 8,
        "lora_alpha": None,
        "normalization": "checkpoint",
        "lora_dropout": 0.0,
    }
    b = {
        "method": "lora",
        "rank": 4,
        "dash_k": 2,
        "lora_alpha": 4.0,
        "normalization": "half",
        "lora_dropout": 0.0,
        "search": [],
    }
    results(tmp_path, "lora", {"cifar": 70.0}, seeds=(0,), arguments={**a, "task": "cifar", "seed": 0}, **same)
    results(tmp_path, "lora", {"cifar": 70.0}, seeds=(2,), arguments={**b, "task": "cifar", "seed": 2}, **same)
    assert rows_of(tmp_path) == ({"lora": [71.0, None]}, [])  # 70 and 72


def test_a_file_given_twice_counts_once(tmp_path):
    results(tmp_path, "lora", {"cifar": 70.0})
    (file,) = tmp_path.rglob("result.json")
    (tmp_path / "link").symlink_to(file.parent)
    text, _, problems = table([file, tmp_path, file.parent, tmp_path / "link"], "csv", published=False)
    assert problems == []
    assert next(csv.DictReader(io.StringIO(text)))["seeds"] == "1"


def test_two_files_of_one_run_are_named_and_not_averaged(tmp_path, capsys):
    results(tmp_path / "a", "lora", {"cifar": 70.0})
    results(tmp_path / "b", "lora", {"cifar": 80.0})
    assert main(["vtab", str(tmp_path)]) == 1
    said = capsys.readouterr()
    first, second = sorted(tmp_path.rglob("result.json"))
    assert said.err.count("\n") == said.err.count(f"{second} is of the same run as {first}") + said.err.count("note:")
    assert rows_of(tmp_path)[0] == {"lora": [70.0, None]}


@pytest.mark.parametrize("accuracy", [float("nan"), float("inf"), -1.0, 100.5, 10**400, "x"])
def test_an_impossible_accuracy_is_a_broken_result(tmp_path, capsys, accuracy):
    results(tmp_path, "dash", {"cifar": 70.0})
    results(tmp_path / "odd", "dash", {"dtd": 0.0}, test_accuracy=accuracy)
    assert main(["vtab", str(tmp_path)]) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert str(tmp_path / "odd" / "dtd") in said
    assert rows_of(tmp_path)[0] == {"dash": [70.0, None]}


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"trained_without_head": 10**400}},
        {"images": {"test": []}},
        {"arguments": 7},
        {"arguments": {"peft": [1]}},
        {"normalization": {"mean": [[0]], "std": 1}},
        {"task": "cifar\x1b[31m"},
        {"seed": 1.5},
    ],
)
def test_a_malformed_result_costs_itself_only(tmp_path, changes):
    results(tmp_path, "dash", {"cifar": 70.0})
    results(tmp_path / "odd", "dash", {"dtd": 50.0}, **changes)
    numbers, (said,) = rows_of(tmp_path)
    assert numbers == {"dash": [70.0, None]}
    assert str(tmp_path / "odd" / "dtd") in said


def test_a_bad_path_costs_itself_only(tmp_path, capsys):
    results(tmp_path / "good", "dash", {"cifar": 70.0})
    (tmp_path / "empty").mkdir()
    assert main(["vtab", *(str(tmp_path / name) for name in ("none", "good", "empty"))]) == 1
    said = capsys.readouterr()
    assert "70.0" in said.out
    assert f"error: left out: there is nothing at {tmp_path / 'none'}" in said.err
    assert f"error: left out: {tmp_path / 'empty'} holds no result.json" in said.err


def test_runs_of_validation_only_are_named_as_such(tmp_path, capsys):
    results(tmp_path, "dash", {"cifar": 70.0}, test_accuracy=None)
    (file,) = tmp_path.rglob("result.json")
    file = file.rename(file.with_name("val_result.json"))
    for path in (tmp_path, file):
        assert main(["vtab", str(path)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert f"{file} is of validation only; the table takes test accuracies" in said
    results(tmp_path / "good", "dash", {"cifar": 70.0})
    assert main(["vtab", str(tmp_path)]) == 1
    assert "of validation only" in capsys.readouterr().err
    (file.parent / "result.json").write_text((next((tmp_path / "good").rglob("result.json"))).read_text())
    assert main(["vtab", str(file.parent)]) == 0  # finished since: its test result counts


def test_csv_and_latex(tmp_path, capsys):
    results(tmp_path, "my_method", {"cifar": 70.25}, seeds=(0, 1))
    text, _, _ = table([tmp_path], "csv", published=False)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 24
    assert rows[0] == {
        "method": "my_method",
        "model": "vit",
        "published": "no",
        "official_split": "yes",
        "parameters": "290000",
        "column": "cifar",
        "accuracy": "70.7500",
        "deviation": "0.7071",
        "seeds": "2",
        "before_launch": "",
    }
    assert main(["vtab", str(tmp_path), "--style", "latex", "--published", "-o", str(tmp_path / "t.tex")]) == 0
    latex = (tmp_path / "t.tex").read_text()
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and "&" in line and "multicolumn" not in line]
    assert {line.count(" & ") for line in body} == {26}
    assert r"\sbox0{%" in latex  # 27 columns are wider than a page, and are made smaller
    assert latex.count("{") == latex.count("}")
    assert r"my\_method" in latex
    assert r"full$^\dagger$ & ViT-B/16, IN-21k" in latex
    assert r"{\footnotesize\raggedright $^\dagger$ published elsewhere, not measured here" in latex
    assert not any("%" in line.replace("{%", "").replace("3pt}%", "") for line in latex.splitlines()[1:])  # no comment


def test_a_broken_result_costs_the_exit_status_and_not_the_table(tmp_path, capsys):
    results(tmp_path, "dash", {"cifar": 70.0})
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "result.json").write_text('{"task": "ci')
    assert main(["vtab", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "70.0" in said.out
    assert sum("cut" in line for line in said.err.splitlines()) == 1


def test_tables_of_nothing_are_one_sentence(tmp_path, capsys):
    assert main(["vtab", str(tmp_path / "none")]) == 2
    assert main(["vtab", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
