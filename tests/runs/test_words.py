"""A command line's words: every fault at once, flags of other trainers answered, no suggestion of another meaning."""

import re
from dataclasses import fields

import pytest

from dash_vision.classification.config import VtabConfig
from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.other_trainers import FOREIGN
from dash_vision.runs.settings import make_parser, parse
from dash_vision.runs.words import near, slips
from tests.support.paths import ROOT

# diffusers.txt: every flag of the train_dreambooth_lora*.py in diffusers' examples as of August 2026. kohya.txt: those
# that guides to train_network.py of kohya's sd-scripts name most.
FLAGS = [ROOT / "tests/support/flags" / name for name in ("diffusers.txt", "kohya.txt")]


def refused(cls, words, capsys):
    """What is said of words that are refused."""
    with pytest.raises(SystemExit) as status:
        parse(cls, "", "", words)
    said = capsys.readouterr().err
    assert status.value.code == 2
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("file", FLAGS, ids=lambda file: file.stem)
def test_every_flag_of_another_trainer_is_taken_or_answered(file):
    flags = file.read_text(encoding="utf-8").split()
    ours = {f.name for f in fields(DreamBoothConfig)} | {"instance_data"}
    assert [flag for flag in flags if flag not in ours and flag not in FOREIGN] == []


def test_no_flag_of_ours_is_answered_as_anothers():
    names = {f.name for f in fields(DreamBoothConfig)}
    assert names & FOREIGN.keys() == set()
    answers = " ".join(answer.answer for answer in FOREIGN.values())
    parser = make_parser(DreamBoothConfig, "", "")
    others = {"--base", "--config_file", "--dtype", "--peft_config"}  # of dash-vision's commands, accelerate and VTAB
    assert set(re.findall(r"--[a-z]\w*", answers)) <= set(parser._option_string_actions) | others


def test_a_flag_that_is_not_needed_is_left_out_with_a_word(capsys):
    words = ["--instance_data", "x", "--dataloader_num_workers", "4", "--local_rank=0", "--output_kohya_format"]
    config = parse(DreamBoothConfig, "", "", [*words, "--network_module", "networks.lora", "--rank", "3"])
    assert config.rank == 3
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines()] == [
        "--dataloader_num_workers",
        "--local_rank",
        "--output_kohya_format",
        "--network_module",
    ]


def test_a_flag_with_the_value_of_another_behaviour_is_refused(capsys):
    said = refused(DreamBoothConfig, ["--instance_data", "x", "--loss_type", "huber"], capsys)
    assert "mean squared error" in said
    assert parse(DreamBoothConfig, "", "", ["--instance_data", "x", "--loss_type", "L2"]).snr_gamma is None


def test_every_unknown_flag_is_told_at_once_beside_what_others_are_called_here(capsys):
    words = ["--instance_dta", "x", "--foo", "3", "--use_dora", "--network_dim=8", "--rank", "4"]
    said = refused(DreamBoothConfig, words, capsys)
    assert "--instance_dta (did you mean --instance_data" in said
    assert "--foo" in said
    assert "--network_dim: it is --rank here" in said
    assert "--use_dora" in said
    assert "--seed" not in said


def test_a_process_that_is_not_the_first_says_nothing(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    parse(DreamBoothConfig, "", "", ["--instance_data", "x", "--xformers"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--instance_prompt", "a", "photo", "of", "sks", "dog"], '--instance_prompt "a photo of sks dog"'),
        (["--instance_prompt=a", "photo"], '--instance_prompt "a photo"'),
        (["--validation_prompt", "a", "photo", "of", "sks", "dog"], '--validation_prompt "a photo of sks dog"'),
        (["--output_dir", "my", "dogs"], '--output_dir "my dogs"'),
        (["--rank", "3", "4"], "--rank takes one value, got 3 4"),
        (["--random_flip", "true", "false"], "--random_flip takes one value"),
        (["-rank", "3"], "did you mean --rank?"),
    ],
)
def test_a_text_without_its_quotes_is_told_in_quotes(words, said, capsys):
    assert said in refused(DreamBoothConfig, ["--instance_data", "x", *words], capsys)


def test_words_before_the_first_flag_are_told(capsys):
    assert "unknown setting cat/" in refused(DreamBoothConfig, ["cat/", "--rank", "3"], capsys)


def test_lists_and_numbers_below_zero_are_values():
    config = parse(
        DreamBoothConfig, "", "", ["--instance_data", "x", "--lora_target", "to_k", "to_q", "--lr_power", "0"]
    )
    assert config.lora_target == ["to_k", "to_q"]
    assert parse(DreamBoothConfig, "", "", ["--instance_data", "-1"]).instance_data_dir == "-1"


def test_vtab_answers_its_own_neighbours_flags(capsys):
    said = refused(VtabConfig, ["--task", "cifar", "--opt", "sgd", "--weight_decay", "0.1", "--tsk", "x"], capsys)
    assert "--opt: it is --optimizer here" in said
    assert "--weight_decay: it is --adam_weight_decay here" in said
    assert "--tsk; did you mean --task?" in said


@pytest.mark.parametrize(
    ("typed", "meant", "count"),
    [("rank", "rank", 0), ("rnak", "rank", 1), ("rnk", "rank", 1), ("", "abc", 3), ("kitten", "sitting", 3)],
)
def test_slips_are_counted_as_damerau_and_levenshtein_do(typed, meant, count):
    assert slips(typed, meant) == slips(meant, typed) == count


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("use_dora", []),
        ("adam_beta3", []),
        ("use_ema", []),
        ("max_train_step", ["max_train_steps"]),
        ("train_steps", ["max_train_steps"]),
        ("lr_warmup", ["lr_warmup_steps"]),
        ("learnign_rate", ["learning_rate"]),
    ],
)
def test_a_suggestion_has_the_meaning_of_what_was_typed(typed, suggested):
    names = ["seed", "adam_beta1", "adam_beta2", "max_train_steps", "lr_warmup_steps", "learning_rate", "use_8bit_adam"]
    assert near(typed, names) == suggested
