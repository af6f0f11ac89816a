"""The settings of a VTAB run from the record that it left."""

import json

import pytest

from dash_vision.classification.config import VtabConfig
from dash_vision.runs.record import RESULT
from dash_vision.runs.settings import parse


@pytest.mark.parametrize("method", ["dash", "linear"])
def test_the_record_of_a_run_asks_for_that_run(finished, method):
    _, run, _ = finished(method)
    (again,) = parse(VtabConfig, "", "", ["--config", str(run.folder / RESULT)]).runs()
    assert again.identity() == run.identity()
    assert again.label == run.label


def test_flags_win_over_a_record_and_what_followed_follows(finished):
    _, run, _ = finished("dash")
    words = ["--config", str(run.folder / RESULT), "--learning_rate", "0.5", "--seed", "1", "2"]
    runs = parse(VtabConfig, "", "", words).runs()
    assert [(r.seed, r.learning_rate, r.dash_lr) for r in runs] == [(1, 0.5, 0.5), (2, 0.5, 0.5)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "dreambooth"}, "is of a run of train_dreambooth.py"),
        ({"arguments": {}}, "is no complete record"),
    ],
)
def test_a_record_of_something_else_is_refused(finished, tmp_path, changes, words, capsys):
    _, run, _ = finished("dash")
    record = json.loads((run.folder / RESULT).read_text()) | changes
    (tmp_path / "result.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        parse(VtabConfig, "", "", ["--config", str(tmp_path / "result.json")])
    assert words in capsys.readouterr().err


def test_a_record_of_a_peft_method_asks_for_its_file(finished, capsys):
    _, run, _ = finished("dora")
    with pytest.raises(SystemExit):
        parse(VtabConfig, "", "", ["--config", str(run.folder / RESULT)])
    assert "--peft_config FILE" in capsys.readouterr().err
