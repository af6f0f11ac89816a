"""The comparison on pretrained weights: what is run, what is chosen, what the tables say."""

import runpy
import shlex
import statistics

import pytest
import yaml
from PIL import Image

from benchmarks import pretrained
from dash_vision.files.errors import InputError
from tests.support.paths import ROOT

# A script whose dev loss is least at a rate of 0.01, and lower by 0.1 for the better method.
SCRIPT = """
import json, math, sys
from pathlib import Path
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rate, seed = float(words["--learning_rate"]), int(words["--seed"])
loss = 0.5 + abs(math.log10(rate) + 2) + 0.01 * seed - 0.1 * (words["--method"] == "better")
result = {"parameters": 7, "steps": 3, "dev_loss": [9.0, loss], "dev_accuracy": [1.0, 100 * (1 - loss)]}
result |= {"test_loss": 2 * loss, "test_accuracy": 50 + seed, "task": words["--data_dir"]}
Path(words["--output_dir"], "result.json").write_text(json.dumps(result))
"""
ARMS = [{"name": "plain", "flags": "--method plain"}, {"name": "new", "flags": "--method better", "against": "plain"}]


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    content = {"script": str(tmp_path / "script.py"), "common": "--size\n  3", "rates": [0.001, 0.01, 0.1]}
    content |= {"choice_seed": 90, "seeds": [0, 1, 2], "arms": ARMS}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "plan.yaml"


def words(plan, *more):
    folder = plan.parent
    return [str(folder / "records"), "--plan", str(plan), "--model_name_or_path", "m", "--data_dir", "d", *more]


def test_every_arm_has_all_rates_and_the_seeds_have_the_best_one(plan, capsys):
    assert pretrained.main(words(plan)) == 0
    records = pretrained.Records(plan.parent / "records/plan.jsonl")
    assert len(records.results) == 2 * (3 + 3)
    assert [c for c in records.results if "--seed 1" in c.replace("--seed 90", "")] == [
        f"--size 3 --method {method} --learning_rate 0.01 --seed 1" for method in ("plain", "better")
    ]
    shown = capsys.readouterr().out
    losses = [0.5 + 0.01 * seed for seed in range(3)]
    assert f"| plain | 7 | 0.01 | {statistics.fmean(losses):.3f} ± {statistics.stdev(losses):.3f} |" in shown
    assert "| new | plain | -0.100 (-0.100 to -0.100) | +10.0 (+10.0 to +10.0) | -0.200 (-0.200 to -0.200) |" in shown
    for name in ("plan.png", "plan-rates.png"):
        assert Image.open(plan.parent / "records" / name).size[0] > 1000


def test_what_was_recorded_is_not_run_again(plan, capsys):
    assert pretrained.main(words(plan)) == 0
    path = plan.parent / "records/plan.jsonl"
    lines = path.read_text().splitlines()
    assert "data_dir" not in lines[0]  # no place of a machine
    path.write_text("\n".join(lines[:7]) + "\n")
    capsys.readouterr()
    assert pretrained.main(words(plan, "--table")) == 0
    assert "new" not in capsys.readouterr().out  # it is not finished
    assert pretrained.main(words(plan)) == 0
    assert path.read_text().splitlines() == lines


def test_a_failing_script_and_a_bad_plan_are_one_sentence(plan, capsys):
    plan.with_name("script.py").write_text("import sys; sys.exit('no such model')")
    assert pretrained.main(words(plan)) == 2
    assert "--learning_rate 0.001 --seed 90 failed: no such model" in capsys.readouterr().err
    assert pretrained.main(words(plan, "--table")) == 2
    assert "no finished arm" in capsys.readouterr().err
    plan.write_text(plan.read_text().replace("against: plain", "against: none such"))
    with pytest.raises(InputError, match="new is set against 'none such'; the arms are"):
        pretrained.Plan.read(plan)
    plan.write_text("arms: 3")
    assert pretrained.main(words(plan)) == 2
    assert "is no plan" in capsys.readouterr().err


def test_an_arm_may_have_rates_of_its_own(plan, capsys):
    content = yaml.safe_load(plan.read_text())
    content["arms"].append({"name": "plain at 0.1", "flags": "--method plain", "rates": [0.1]})
    plan.write_text(yaml.safe_dump(content))
    assert pretrained.main(words(plan)) == 0
    records = pretrained.Records(plan.parent / "records/plan.jsonl")
    assert len(records.results) == 2 * (3 + 3) + 3  # its rate was tried by the first arm
    assert "| plain at 0.1 | 7 | 0.1 | 1.510 ± 0.010 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pretrained", "smollm2", "smollm2-sst2"])
def test_the_scripts_take_the_flags_of_their_plans(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    plan = pretrained.Plan.read(ROOT / "benchmarks" / f"{name}.yaml")
    parser = runpy.run_path(str(ROOT / plan.script))["make_parser"]()
    places = ["--model_name_or_path", "m", "--data_dir", "d", "--output_dir", "o"]
    for arm in plan.arms:
        task, method, arguments = parser.parse_args_into_dataclasses(
            [*shlex.split(plan.command(arm, arm.rates[0], plan.choice_seed)), *places]
        )
        assert (task.data_dir, arguments.learning_rate, arguments.seed) == ("d", arm.rates[0], plan.choice_seed)
        assert method.method in arm.flags


def test_the_shifts_rate_is_a_multiple_of_the_rate():
    read = pretrained.Plan.read(ROOT / "benchmarks/pretrained.yaml")
    arms = {arm.name: arm for arm in read.arms}
    assert "--dash_lr 0.03 --learning_rate 0.003" in read.command(arms["LoRA-Dash r4, shifts x10"], 3e-3, 0)
    assert "--dash_lr" not in read.command(arms["LoRA-Dash r4"], 3e-3, 0)
