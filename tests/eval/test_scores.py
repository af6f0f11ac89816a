"""Intervals, paired differences and the tables of scores."""

import json
import re
import shutil

import numpy as np
import pytest

from eval.__main__ import main
from eval.intervals import differences, intervals
from eval.subject.jobs import FLOOR
from eval.subject.tables import markdown
from tests.support.eval import words


def test_intervals_have_the_width_that_theory_gives():
    values = np.random.default_rng(3).normal(0.6, 0.1, 400)
    found = intervals({"a": values})["a"]
    width = 2 * 1.96 * values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(width, rel=0.05)
    assert (found.high + found.low) / 2 == pytest.approx(values.mean(), abs=0.05 * width)


def test_differences_are_paired():
    values = np.random.default_rng(4).normal(0.5, 0.2, 25)
    found = differences({"a": values, "b": values + 0.01})["b", "a"]
    # Prompts vary by 0.2, but every prompt gains exactly 0.01.
    assert found == pytest.approx((0.01, 0.01, 0.01))


def test_the_tables_name_what_was_measured(runs, done, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    assert main(words(runs, out)) == 0
    said = capsys.readouterr().out
    assert re.search(r"CLIP-I and CLIP-T by CLIP \S+", said)
    assert "CLIP-T compares with the prompt without the rare word" in said
    assert "DINO was left out" in said
    rows = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("|")]
    assert rows == ["", "---", "real pictures (ceiling)", "still", "dash", FLOOR, "", "---", "dash - still"]
    assert "| a red sks cat |" in (out / "subject.md").read_text()


@pytest.mark.parametrize(
    ("prompts", "count", "title"),
    [
        ("live", 4, "the DreamBooth protocol"),
        ("live", 1, "the DreamBooth protocol's prompts, 1 picture each"),
        ("own", 4, "own prompts, 4 pictures each"),
    ],
)
def test_only_the_protocol_bears_its_name(done, prompts, count, title):
    result = json.loads((done / "subject.json").read_text())
    text = markdown({**result, "prompt_list": prompts, "images_per_prompt": count})
    assert text.splitlines()[0] == f"# sks cat: {title}"


def test_a_result_says_which_intervals_it_has(done):
    result = json.loads((done / "subject.json").read_text())
    assert "95% intervals over prompts (Student's t)" in markdown(result)
    # Two values: Student's t with one degree of freedom is Cauchy's distribution, whose quantile is a tangent.
    scores = result["methods"]["dash"]["scores"]["CLIP-I"]
    half = np.tan(np.pi * 0.475) * abs(np.subtract(*scores["per_prompt"])) / 2
    assert scores["high"] - scores["mean"] == pytest.approx(half, rel=1e-4)
    assert scores["mean"] - scores["low"] == pytest.approx(half, rel=1e-4)


def test_one_prompt_has_no_interval(runs, tmp_path, capsys):
    assert main(words(runs, tmp_path, prompts=["a {}"])) == 0
    said = capsys.readouterr().out
    assert "A single prompt: no intervals." in said
    assert not any("[" in line for line in said.splitlines() if line.startswith("|"))
