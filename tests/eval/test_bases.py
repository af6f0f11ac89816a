"""Runs are compared on one base alone, as their records tell it."""

import json
import shutil

import pytest

from eval.__main__ import main
from eval.bases import compare_bases
from eval.runs import read_run


def copied(run, folder, **specification):
    """A run whose record says otherwise what its base is."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    record["base"]["specification"] |= specification
    record["base"]["name"] = specification.get("name", record["base"]["name"])
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def compared(first, second):
    return compare_bases(read_run(first), read_run(second))


@pytest.mark.parametrize(
    ("changes", "same", "word"),
    [
        ({}, True, ""),
        ({"name": "/elsewhere/sd"}, True, ""),  # the fingerprints of the weights are equal
        ({"vae": "/another/vae"}, False, "/another/vae"),
        ({"prediction_type": "v_prediction"}, False, "v_prediction"),
    ],
)
def test_bases_are_compared_by_weights_and_by_what_else_was_given(runs, tmp_path, changes, same, word):
    other = copied(runs / "lora", tmp_path / "other", **changes)
    found = compared(runs / "dash", other)
    assert found.same is same
    assert word in found.difference
    assert compared(other, runs / "dash").same is same


def test_other_weights_are_another_base(runs):
    found = compared(runs / "dash", runs / "other")
    assert found.same is False
    assert str(runs / "sd") in found.difference
    assert str(runs / "sd2") in found.difference


def test_every_command_that_compares_refuses_another_vae(runs, tmp_path, capsys):
    other = copied(runs / "lora", tmp_path / "other", vae="/another/vae")
    adapters = [f"--adapter=dash={runs / 'dash'}", f"--adapter=other={other}"]
    common = ["--subject", str(runs / "cat"), *adapters, "--prompts", "a {}"]
    commands = (
        ["figure", *common, "-o", str(tmp_path / "f.png")],
        ["subject", *common, "-o", str(tmp_path / "s")],
        ["directions", str(runs / "dash"), "--truth", str(other), "-o", str(tmp_path / "d.png")],
    )
    for words in commands:
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "/another/vae" in said
        assert said.count("\n") == 1


def test_settings_of_the_sampler_that_differ_between_runs_are_said(runs, tmp_path, capsys):
    shutil.copytree(runs / "lora", tmp_path / "lora")
    record = json.loads((tmp_path / "lora/run.json").read_text())
    record["arguments"]["guidance_scale"] = 3.0
    (tmp_path / "lora/run.json").write_text(json.dumps(record))
    words = ["figure", "--subject", str(runs / "cat"), f"--adapter=dash={runs / 'dash'}"]
    words += [f"--adapter=lora={tmp_path / 'lora'}", "--prompts", "a {}", "-o", str(tmp_path / "f.png")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "other values of guidance_scale (dash 7.5, lora 3); all are drawn with 7.5" in said
    assert main([*words, "--guidance_scale", "2"]) == 0
    assert "other values" not in capsys.readouterr().out
