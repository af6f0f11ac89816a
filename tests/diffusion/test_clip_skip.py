"""--clip_skip in a run: trained, sampled, recorded and loaded again with the same layer."""

import shutil

import pytest
from safetensors import safe_open

from dash_vision.files.errors import InputError
from eval.bases import compare_bases, load_base
from eval.runs import read_run
from tests.support.dreambooth import prepare, settings, train


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory):
    """(folder of a run that trains the text encoder too, its losses, what it said); to be read only."""
    out, lines = tmp_path_factory.mktemp("clip-skip") / "out", []
    job = train(settings(bases, out, clip_skip=1, train_text_encoder=True, max_train_steps=5), lines)
    return out, job.training.losses, lines


def test_it_is_said_how_others_call_it(run):
    assert any("--clip_skip 1 counts as diffusers' pipelines do; kohya and A1111 call it 2" in line for line in run[2])
    (file,) = (run[0] / "kohya").iterdir()
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_clip_skip"] == "2"


def test_eval_reads_the_same_layer(run):
    base = load_base(read_run(run[0]))
    assert base.prompt_options.clip_skip == 1


def test_the_card_draws_with_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(run[0], tmp_path / "copy"))
    code = (run[0] / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "clip_skip=1" in code
    exec(compile(code, "card", "exec"), {})
    assert (tmp_path / "copy/out.png").is_file()


def test_a_run_of_another_layer_is_another_run(bases, run, tmp_path):
    other = train(settings(bases, tmp_path / "out", train_text_encoder=True, max_train_steps=5))
    assert other.training.losses != run[1]
    assert compare_bases(read_run(run[0]), read_run(tmp_path / "out")) == "clip_skip 1 and None"
    changed = {"max_train_steps": 6, "resume_from_checkpoint": "latest", "clip_skip": 1, "train_text_encoder": True}
    with pytest.raises(InputError, match="was trained with --clip_skip None, this run has 1"):
        prepare(settings(bases, tmp_path / "out", **changed))
