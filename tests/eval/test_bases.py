"""Runs are compared on one base alone, as their records tell it."""

import json
import shutil

import pytest

from eval.__main__ import main
from eval.bases import compare_bases
from eval.runs import read_run


def copied(run, folder, identity=None, **specification):
    """A run whose record says otherwise what its base is."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    record["base"]["specification"] |= specification
    record["base"]["name"] = specification.get("name", record["base"]["name"])
    record["base"]["identity"] |= identity or {}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def compared(first, second):
    return compare_bases(read_run(first), read_run(second))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"name": "/elsewhere/sd"}, None),  # the digests of all that it consists of are equal
        ({"vae": "/a/copy/of/the/vae"}, None),
        ({"vae": "/another/vae", "identity": {"vae": "0"}}, "the vae of {base} and that of {base} with /another/vae"),
        ({"identity": {"noise process": "0"}}, "the noise process of {base} and that of {base}"),
        ({"identity": {"tokenizer_2": "0"}}, "the tokenizer_2 of {base} and that of {base}"),
        ({"max_sequence_length": 64}, "max_sequence_length None and 64"),
    ],
)
def test_bases_are_compared_by_all_their_parts(runs, tmp_path, changes, words):
    other = copied(runs / "lora", tmp_path / "other", **changes)
    found = compared(runs / "dash", other)
    assert found == (words and words.format(base=runs / "sd"))
    assert (compared(other, runs / "dash") is None) == (words is None)


def test_other_weights_are_another_base(runs):
    found = compared(runs / "dash", runs / "other")
    assert str(runs / "sd") in found
    assert str(runs / "sd2") in found


def test_a_base_that_changed_after_the_run_is_refused_and_a_named_one_noted(runs, tmp_path, capsys):
    words = ["figure", "--subject", str(runs / "cat"), "--prompts", "a {}", "-o", str(tmp_path / "f.png")]
    moved = shutil.copytree(runs / "sd", tmp_path / "moved")
    run = copied(runs / "dash", tmp_path / "run", name=str(moved))
    words += [f"--adapter=dash={run}"]
    assert main(words) == 0
    config = moved / "tokenizer/tokenizer_config.json"
    config.write_text(config.read_text().replace('"model_max_length": 12', '"model_max_length": 9'))
    capsys.readouterr()
    assert main(words) == 2
    sentence = f"{moved} is not the base that {run} was trained on: its tokenizer differs"
    said = capsys.readouterr().err
    assert sentence in said
    assert "--base says where" in said
    assert main([*words, "--base", str(moved)]) == 0
    assert f"note: {sentence}" in capsys.readouterr().out


def test_every_command_that_compares_refuses_another_vae(runs, tmp_path, capsys):
    other = copied(runs / "lora", tmp_path / "other", identity={"vae": "0"}, vae="/another/vae")
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
