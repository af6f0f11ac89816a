"""Runs as processes of their own: started, found again, stopped, resumed; and what their pages show."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import pytest

from dash_vision.files.atomic import FolderInUse, FolderLock, in_use
from dash_vision.runs.journal import Journal, read_journal
from dash_vision.studio import launching
from dash_vision.studio.found import find_run, log_of
from dash_vision.studio.launching import Trainings, value_of, without_flags
from tests.support.paths import ROOT
from tests.support.pictures import save_pictures
from tests.support.studio import served, stopped_run

# A stand-in for the trainer without torch: it locks, tells and stops as the trainer does.
TRAINER = """
import signal, sys, time
from pathlib import Path
from dash_vision.files.atomic import FolderLock
from dash_vision.runs.journal import Journal
words = sys.argv[2:]
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
out, steps = Path(words[words.index("--output_dir") + 1]), int(words[words.index("--max_train_steps") + 1])
lock = FolderLock(out)
journal = Journal(out)
journal.begin(words)
done = sorted(int(p.stem.split("-")[1]) for p in out.glob("checkpoint-*"))
step = done[-1] if done else 0
journal.write(phase="train", step=step, total=steps)
while step < steps and not asked:
    step += 1
    journal.write(step=step, total=steps, losses=[0.5])
    time.sleep(0.02)
(out / f"checkpoint-{step}.safetensors").write_bytes(b"")
if asked:
    print("stopped by SIGTERM; wrote a checkpoint")
    sys.exit(143)
journal.write(phase="done")
print("dash-vision dreambooth: error: it is only a stand-in", file=sys.stderr)
sys.exit(1)
"""


@pytest.fixture
def light(monkeypatch):
    """Commands are a stand-in that needs no torch; the list of those that were given."""
    given = []

    def popen(words, output, folder=None):
        given.append(list(words))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", TRAINER, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )

    monkeypatch.setattr(launching, "_popen", popen)
    return given


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def words_for(folder, steps):
    return ["--output_dir", str(folder), "--max_train_steps", str(steps)]


def test_a_training_outlives_the_page_and_is_found_stopped_and_resumed(tmp_path, light):
    save_pictures(tmp_path / "pictures" / "cat")
    form = {"pictures": "cat", "kind": "cat", "subject": "sks", "base": "miniature", "max_train_steps": "5000"}
    with served(tmp_path) as page:
        status, answer = page.send("/runs", **form)
        assert (status, answer["address"]) == (200, "/runs/cat")
        assert page.send("/runs", **form)[1]["address"] == "/runs/cat-2"  # another page, another folder
        run = page.runs / "cat"
        until(lambda: find_run(run).step > 2)
        assert page.send("/runs/cat-2/stop")[0] == 200
    with served(tmp_path) as page:  # the page was killed and started again
        assert 'data-state="running"' in page.text("/runs/cat")
        told = json.loads(page.ask("/runs/cat/state")[2])
        assert (told["state"], told["known"], told["phase"]) == ("running", True, "training")
        assert "left" in told["numbers"]
        status, answer = page.send("/runs/cat/resume")
        assert (status, "at work" in answer["error"]) == (400, True)
        assert page.send("/runs/cat/stop")[0] == 200
        until(lambda: find_run(run).state == "stopped")
        assert page.send("/runs/cat/stop")[0] == 400
        saved = find_run(run).saved
        assert f"Resume goes on from the checkpoint of step {saved[-1]}" in page.text("/runs/cat")
        assert page.send("/runs/cat/resume")[0] == 200
        assert light[-1] == light[0]
        until(lambda: find_run(run).step > saved[-1] + 2)
        assert page.send("/runs/cat/finish")[0] == 200
        steps = find_run(run).saved[-1]
        assert light[-1][-2:] == ["--max_train_steps", str(steps)]
        until(lambda: find_run(run).state == "failed")
        assert "it is only a stand-in" in page.text("/runs/cat")
        losses = read_journal(run).losses
        assert sorted(losses) == list(range(1, steps + 1))


def test_the_command_line_is_a_list_of_words_and_never_a_shells(page, light):
    save_pictures(page.pictures / "a; touch x")
    form = {"pictures": "a; touch x", "kind": "$(touch y) `z`", "subject": "sks", "base": "miniature", "name": "n"}
    assert page.send("/runs", **form, max_train_steps="1", dash_k="0")[0] == 200
    (words,) = light
    assert value_of(words, "instance_prompt") == "a photo of sks $(touch y) `z`"
    assert value_of(words, "instance_data_dir") == str(page.pictures / "a; touch x")
    shown = page.text("/runs/n")
    assert "&#39;a photo of sks $(touch y) `z`&#39;" in shown
    until(lambda: find_run(page.runs / "n").state == "failed")


def test_two_starts_at_once_give_one_process(tmp_path, light):
    trainings = Trainings()
    folder = tmp_path / "run"
    folder.mkdir()
    trainings.start(folder, words_for(folder, 5000))
    with pytest.raises(ValueError, match="at work in run already"):
        trainings.start(folder, words_for(folder, 5000))
    until(lambda: in_use(folder))
    with pytest.raises(ValueError, match="at work in run already"):
        Trainings().start(folder, words_for(folder, 5000))  # of another studio
    assert len(light) == 1
    trainings.stop(folder)
    until(lambda: trainings.look(folder).state == "stopped")


def test_a_run_of_the_command_line_is_stopped_and_resumed_by_what_it_told(tmp_path, light):
    folder = tmp_path / "run"
    folder.mkdir()
    words = ["dreambooth", "--output_dir", "run", "--max_train_steps", "5000"]
    with open(os.devnull, "wb") as nowhere:
        process = launching._popen(words, nowhere, tmp_path)
    until(lambda: find_run(folder).step > 1)
    trainings = Trainings()
    trainings.stop(folder)
    assert process.wait(30) == 143
    trainings.resume(folder)
    assert light[-1] == words
    until(lambda: in_use(folder))
    trainings.stop(folder)
    until(lambda: trainings.look(folder).state == "stopped")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "does not say by which command"),
        (["--output_dir", "elsewhere"], "writes to another folder"),
        (["--output_dir={}/run", "--output_dir", "{}"], "writes to another folder"),
        (["--output_dir", "{}/run", "--hub_token", "HIDDEN"], "started with a token"),
    ],
)
def test_what_a_folder_says_of_its_command_is_not_trusted(tmp_path, light, words, reason):
    folder = stopped_run(tmp_path / "run", words=[word.format(tmp_path) for word in words])
    with pytest.raises(ValueError, match=reason):
        Trainings().resume(folder)
    assert light == []


def test_an_id_that_another_process_has_by_now_is_no_run(tmp_path):
    folder = stopped_run(tmp_path / "run")
    told = {"host": platform.node(), "folder": str(tmp_path), "words": [], "created": 1.0}
    Journal(folder).write(start={**told, "pid": os.getpid()})
    assert find_run(folder).state == "stopped"
    with pytest.raises(ValueError, match="no run is at work"):
        Trainings().stop(folder)


def test_flags_are_replaced_with_their_values():
    words = [
        "--rank",
        "4",
        "--validation_prompt",
        "a cat",
        "-x",
        "--max-train-steps=9",
        "--lora_target",
        "a",
        "b",
        "--overwrite",
    ]
    assert without_flags(words, ["--lora_target", "c", "--max_train_steps", "3"]) == words[:5]
    assert value_of(words, "max_train_steps") == "9"
    assert value_of(["--logit_mean", "-1"], "logit_mean") == "-1"


def test_looking_at_a_lock_does_not_keep_a_run_from_starting(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # as in_use holds it, but longer
    threading.Timer(0.08, os.close, [handle]).start()
    lock = FolderLock(tmp_path)
    assert in_use(tmp_path)
    with pytest.raises(FolderInUse):
        FolderLock(tmp_path)
    lock.release()
    assert not in_use(tmp_path)


def test_the_log_is_shown_without_progress_bars(tmp_path):
    bar = "\rpre-launch:  50%|█████     | 1/2 [00:01<00:01, 1.1s/it]"
    (tmp_path / "log.txt").write_bytes(f"base: x\n{bar}{bar}\nnote: y\x1b[31m\r\n\nlast".encode() + b"\xff")
    lines = log_of(tmp_path).splitlines()
    assert lines[0] == "base: x"
    assert lines[1].startswith("note: y")
    assert "\x1b" not in lines[1]
    assert len(lines) == 3


def test_a_broken_record_is_said_and_harms_no_other_run(page):
    (page.runs / "broken").mkdir()
    (page.runs / "broken" / "run.json").write_text("{")
    stopped_run(page.runs / "good")
    text = page.text("/")
    assert "cannot be read" in text
    assert 'data-run="good"' in text
    assert "cannot be read" in page.text("/runs/broken")


def test_the_loss_and_its_launch_are_drawn(page):
    stopped_run(page.runs / "one", losses=[1 / step for step in range(1, 61)], launch=30, total=100)
    told = json.loads(page.ask("/runs/one/state")[2])
    assert "dash launched after step 30" in told["chart"]
    assert told["numbers"].startswith("step 60 of 100 · loss ")
    assert 'class="l c0"' in page.text("/runs/one")


def test_a_helpers_sentence_and_progress_are_passed_on(page, monkeypatch, tmp_path):
    scripts = iter(
        [
            "print('tool: error: no such thing')\nraise SystemExit(2)",
            "print('50%|##', flush=True)\ninput()",
            "print('all well')",
        ]
    )

    def popen(words, output, folder=None):
        script = next(scripts)
        return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=output)

    monkeypatch.setattr(launching, "_popen", popen)
    form = {"kind": "cat", "subject": "sks", "base": "miniature"}

    def look():
        return json.loads(page.ask("/helper?key=plan")[2])

    assert look() == {"state": "none"}
    page.send("/plan", **form)
    until(lambda: look()["state"] == "failed")
    assert look()["error"] == "no such thing"
    page.send("/plan", **form)
    until(lambda: look().get("share") == 0.5)
    status, answer = page.send("/plan", **form)
    assert (status, answer["error"]) == (400, "the plan is at work already; wait for it")
    page.studio.helpers.look("plan").process.communicate(b"\n")
    page.send("/plan", **form)
    until(lambda: look() == {"state": "done", "text": "all well\n"})


def test_signals_to_the_page_do_not_reach_its_trainings(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(subprocess, "Popen", lambda words, **how: asked.update(how, words=words))
    with open(os.devnull, "wb") as nowhere:
        launching._popen(["dreambooth", "--x"], nowhere, tmp_path)
    assert asked["start_new_session"] is True
    assert asked["words"] == [sys.executable, "-m", "dash_vision", "dreambooth", "--x"]
    assert asked["stdin"] == subprocess.DEVNULL
    assert "shell" not in asked


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "--overwrite"}, "flag"),
        ({"prompt": "secret.txt"}, "file"),
        ({"prompt": "a cat", "scale": "strong"}, "scale"),
        ({"prompt": "a cat", "count": "1000"}, "count"),
        ({"prompt": "a cat", "count": "1.5"}, "whole number"),
        ({"prompt": "a cat", "seed": "-1"}, "seed"),
        ({"prompt": "a cat", "seed": "3.0"}, "seed"),
        ({"prompt": "a cat", "seed": str(2**63)}, "seed"),
        ({"prompt": "a cat"}, "has not finished"),
    ],
)
def test_what_cannot_be_drawn_is_said(page, light, form, reason):
    stopped_run(page.runs / "one")
    status, answer = page.send("/runs/one/draw", **form)
    assert (status, reason in answer["error"]) == (400, True), answer
    assert light == []


def test_names_with_signs_of_addresses_lead_to_their_pages(page):
    name = "50% of a#b?c&d é"
    stopped_run(page.runs / name)
    assert quote(name, safe="") in page.text("/")
    assert page.ask(f"/runs/{quote(name, safe='')}")[0] == 200
