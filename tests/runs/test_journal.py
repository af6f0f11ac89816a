"""journal.jsonl: what a run tells of itself while it is at work."""

import json

import pytest

from dash_vision.diffusion.run import finish, fit
from dash_vision.runs.journal import JOURNAL, Journal, read_journal
from dash_vision.runs.record import read_record
from tests.support.dreambooth import before_each_batch, prepare, settings, train

FEW = {"max_train_steps": 12, "prelaunch_steps": 3, "num_inference_steps": 1, "validation_steps": 6}


def test_the_journal_tells_what_the_record_tells(bases, tmp_path):
    train(settings(bases, tmp_path / "out", **FEW))
    told, record = read_journal(tmp_path / "out"), read_record(tmp_path / "out" / "run.json")
    assert [told.losses[step] for step in range(1, 13)] == record.losses
    assert (told.step, told.total, told.launch, told.phase) == (12, 12, 3, "done")
    assert told.pictures == ["validation/step-000006.png", "samples.png"]
    phases = [json.loads(line).get("phase") for line in (tmp_path / "out" / JOURNAL).read_text().splitlines()]
    assert list(filter(None, phases)) == ["load", "encode", "train", "adapters", "samples", "done"]


def test_a_resumed_run_tells_each_step_once(bases, tmp_path):
    config = settings(bases, tmp_path / "out", **FEW, checkpointing_steps=4)
    job = prepare(config)

    def kill(batch):
        if batch == 11:
            raise KeyboardInterrupt

    before_each_batch(job, kill)
    with pytest.raises(KeyboardInterrupt):
        fit(job)
    job.close()
    assert sorted(read_journal(tmp_path / "out").losses) == list(range(1, 11))  # beyond the checkpoint of step 8
    job = prepare(config)
    fit(job)
    finish(job)
    told, record = read_journal(tmp_path / "out"), read_record(tmp_path / "out" / "run.json")
    assert [told.losses[step] for step in range(1, 13)] == record.losses
    assert told.launch == record.launch.step


def test_lines_that_are_none_are_passed_over(tmp_path):
    journal = Journal(tmp_path)
    journal.begin(["--x", "\udc80"])
    journal.write(phase="train", step=0, total=9)
    journal.write(step=2, total=9, losses=[1.0, 0.5])
    good = read_journal(tmp_path)
    bad = [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"time": "x", "step": 3}',
        '{"time": 1, "step": [], "total": 2}',
        "[" * 9999,
    ]
    bad += ['{"time": 1, "step": 3, "total": 9, "losses": [NaN]}', '{"time": Infinity}', '{"time": 1, "losses": 5}']
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write("\n".join(bad).encode() + b"\n\xff\xfe\n")
    again = read_journal(tmp_path)
    assert (again.losses, again.total) == (good.losses, good.total)


def test_no_journal_is_written_where_none_can_be(tmp_path):
    Journal(None).write(phase="train")
    Journal(tmp_path / "absent").write(phase="train")
    assert read_journal(tmp_path / "absent").begin is None
    assert list(tmp_path.iterdir()) == []
