"""The command line of train_vtab.py."""

import json

import pytest

import train_vtab
from tests.support.vtab import TINY, write_task


def test_help_has_groups_and_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        train_vtab.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for group in (
        "what to run:",
        "base model:",
        "data:",
        "LoRA-Dash:",
        "training:",
        "optimizer:",
        "model selection:",
        "output:",
        "machine:",
    ):
        assert f"\n{group}\n" in shown
    for default in ("(default: 8)", "(default: 100)", "1e-3; 1e-4 for full", "runs/vtab", "change_rate"):
        assert default in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--task is missing; for a first try that needs no data: --task mini_location"),
        (["--task", "cifer"], "did you mean cifar"),
        (["--task", "cifar", "--data_root", "{tmp}"], "no data for task cifar in {tmp}"),
        (["--task", "cifar", "--methods", "magic"], "unknown method 'magic'; it takes dash, lora"),
        (["--task", "cifar", "--train_batch_size", "0"], "--train_batch_size is 0; it takes a number of 1 or more"),
        (
            ["--task", "cifar", "--keep_every", "2", "--val_only"],
            "keeps adapters of the retraining, which --val_only",
        ),
        (["--task", "cifar", "--keep_every", "2", "--methods", "full", "linear"], "full, linear have none"),
        (["--task", "cifar", "--rank", "-1"], "--rank is -1; it takes a number of 0 or more"),
        (["--task", "cifar", "--dash_k", "0", "--dash_lr", "1e-3"], "--dash_lr does nothing without the dash"),
        (["--task", "cifar", "--warmup_epochs", "100"], "--warmup_epochs 100 leaves nothing of the 100 epochs"),
        (["--task", "mini_count", "--warmup_epochs", "17"], "leaves nothing of the 16 epochs of mini_count"),
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


def test_one_command_trains_writes_and_prints_the_table(data, capsys):
    words = ["--task", "cifar100", "--data_root", str(data / "data"), "--cache_dir", "none", "--epochs", "2"]
    words += [
        "--output_dir",
        str(data / "out"),
        "--prelaunch_steps",
        "1",
        "--train_batch_size",
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
    summary = json.loads((data / "out/summary.json").read_text())
    assert set(summary["methods"]) == {"lora", "dash"}
    assert train_vtab.main([*words, "--report"]) == 0
