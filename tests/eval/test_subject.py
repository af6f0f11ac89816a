"""The DreamBooth protocol: what is drawn when, and what is said about bad input."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dash_vision.miniature import clip_path
from eval.__main__ import main
from eval.subject.jobs import FLOOR
from tests.support.bases import save_base
from tests.support.dreambooth import settings, train
from tests.support.eval import PROMPTS, words
from tests.support.processes import free_port, place_of, start

# -- drawing


def test_pictures_are_equal_where_noise_and_weights_are(runs, done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    assert main(words(runs, out, "--adapter", f"lora={runs / 'lora'}")) == 0

    def tile(method, name):
        with Image.open(out / "pictures" / method / name) as picture:
            return picture.tobytes()

    names = sorted(p.name for p in (out / "pictures/dash").glob("*.png"))
    assert names == ["00-00.png", "00-01.png", "01-00.png", "01-01.png"]
    for name in names:
        assert tile("still", name) == tile("lora", name)  # neither has learned anything
        assert tile("still", name) != tile("dash", name)
    assert tile("still", "00-00.png") != tile("still", "00-01.png")
    record = json.loads((done / "pictures/still/made.json").read_text())
    assert record["prompts"] == ["a sks cat in the snow", "a red sks cat"]
    assert record["base"] == json.loads((runs / "still/run.json").read_text())["base"]["identity"]
    floor = json.loads((done / "pictures/base-floor/made.json").read_text())
    assert floor["prompts"] == ["a cat in the snow", "a red cat"]


def test_only_what_is_missing_is_drawn_again(runs, done, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(done, out)
    lost, cut = out / "pictures/dash/01-00.png", out / "pictures/still/00-01.png"
    expected = [np.asarray(Image.open(path)).astype(int) for path in (lost, cut)]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    assert main(words(runs, out, "--batch_size", "1")) == 0
    changed = {p for p in out.rglob("*.png") if p.stat().st_mtime_ns != before.get(p)}
    assert changed == {lost, cut}
    for path, pixels in zip((lost, cut), expected, strict=True):  # the noise is the picture's own, not its batch's
        assert np.abs(np.asarray(Image.open(path)) - pixels).max() <= 1
    assert json.loads((out / "subject.json").read_text())["methods"].keys() == {"still", "dash", FLOOR}


def test_prompts_may_be_added_and_left_out_at_the_end(runs, done, tmp_path, capsys):
    out = tmp_path / "more"
    shutil.copytree(done, out)
    first = {p: p.read_bytes() for p in out.rglob("*.png")}
    times = {p: p.stat().st_mtime_ns for p in first}
    assert main(words(runs, out, "--prompts", "a blue {}")) == 0
    added = set(out.rglob("*.png")) - set(first)
    assert sorted({p.name for p in added}) == ["02-00.png", "02-01.png"]
    assert all(p.stat().st_mtime_ns == times[p] for p in first)
    # What was added is what a run of all three would have drawn.
    assert main(words(runs, tmp_path / "all", prompts=(*PROMPTS, "a blue {}"))) == 0
    for path in added:
        other = np.asarray(Image.open(tmp_path / "all" / path.relative_to(out))).astype(int)
        assert np.abs(other - np.asarray(Image.open(path))).max() <= 1
    assert main(words(runs, out)) == 0  # two again: nothing is forgotten
    assert json.loads((out / "subject.json").read_text())["prompts"] == ["a sks cat in the snow", "a red sks cat"]
    assert len(json.loads((out / "pictures/dash/made.json").read_text())["prompts"]) == 3
    capsys.readouterr()
    assert main(words(runs, out, prompts=(PROMPTS[0], "a green {}"))) == 2
    assert "pictures made with other prompts" in capsys.readouterr().err


def test_adapters_of_other_layers_may_come_in_any_order(runs, tmp_path):
    few = {"max_train_steps": 2, "prelaunch_steps": 1, "num_inference_steps": 2}
    train(settings(runs, tmp_path / "query", lora_target=["to_q"], **few))
    common = ["subject", "--subject", str(runs / "cat"), "--clip", str(clip_path()), "--dino", "none"]
    common += ["--device", "cpu", "--images_per_prompt", "1", "-o", str(tmp_path / "out")]
    dash, query = f"dash={runs / 'dash'}", f"query={tmp_path / 'query'}"
    for adapters in ((dash, query), (query, dash), (query,), (dash,)):
        words = [w for adapter in adapters for w in ("--adapter", adapter)]
        assert main([*common, *words, "--prompts", "a {}"]) == 0


def test_too_little_memory_is_one_sentence_and_keeps_what_is_made(runs, tmp_path, capsys, monkeypatch):
    from diffusers import StableDiffusionPipeline

    original, calls = StableDiffusionPipeline.__call__, []

    def full(self, **options):
        calls.append(options)
        if len(calls) > 1:
            raise torch.cuda.OutOfMemoryError
        return original(self, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", full)
    assert main(words(runs, tmp_path, "--batch_size", "2")) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert "memory does not suffice for 2 pictures of 16 x 16 at once; give --dtype float16" in said[0]
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_two_processes_draw_what_one_does(runs, done, tmp_path):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    command = ["-m", "eval", *words(runs, tmp_path, "--batch_size", "1")]
    processes = [start(command, **address, **place_of(rank, 2)) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0], [process.stderr for process in processes]
    said = "".join(process.stdout for process in processes)
    assert said.count("sks cat: own prompts, 2 pictures each") == 1  # one process speaks
    for path in done.rglob("*.png"):
        other = np.asarray(Image.open(tmp_path / path.relative_to(done))).astype(int)
        assert np.abs(other - np.asarray(Image.open(path))).max() <= 1


# -- bad input


def test_the_base_is_looked_at_and_recorded(runs, done, capsys, tmp_path):
    save_base(tmp_path / "other", seed=5)
    for out in (tmp_path / "new", done):  # with pictures to draw, and with none
        assert main(words(runs, out, "--base", str(tmp_path / "other"))) == 2
        assert f"was trained on other weights than {tmp_path / 'other'} holds" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    shutil.copytree(done, tmp_path / "moved")
    shutil.copytree(runs / "sd", tmp_path / "sd")
    assert main(words(runs, tmp_path / "moved", "--base", str(tmp_path / "sd"))) == 0
    assert json.loads((tmp_path / "moved/subject.json").read_text())["base"] == str(tmp_path / "sd")
    assert json.loads((done / "subject.json").read_text())["base"] == str(runs / "sd")


def test_a_missing_adapter_costs_itself_only(runs, done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "out")
    assert main(words(runs, tmp_path / "out", "--adapter", "x=nowhere")) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: left out: x: there is no folder nowhere")
    assert "| dash - still |" in said.out


def test_an_adapter_that_does_not_fit_costs_itself_only(runs, done, tmp_path, capsys):
    shutil.copytree(runs / "dash", tmp_path / "odd")
    path = tmp_path / "odd/pytorch_lora_weights.safetensors"
    save_file({key: torch.cat([t, t], dim=1) for key, t in load_file(path).items()}, path)
    shutil.copytree(done, tmp_path / "out")
    (tmp_path / "out/pictures/dash/00-00.png").unlink()
    assert main(words(runs, tmp_path / "out", "--adapter", f"odd={tmp_path / 'odd'}")) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith(f"error: left out: odd: cannot load {path} in the base")
    assert "| dash - still |" in said.out
    assert not (tmp_path / "out/pictures/odd").exists()
    result = json.loads((tmp_path / "out/subject.json").read_text())
    assert result["methods"] == json.loads((done / "subject.json").read_text())["methods"]


def test_a_place_that_cannot_be_written_is_named_before_anything_is_drawn(runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(words(runs, tmp_path / "file/out")) == 2
    said = capsys.readouterr()
    assert said.err == (f"error: cannot write {tmp_path}/file/out: {tmp_path}/file is no folder; give another place\n")
    assert said.out == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--seed", "7"], "pictures made with another seed"),
        (["--num_inference_steps", "3"], "pictures made with other num_inference_steps"),
        (["--dtype", "bfloat16"], "pictures made with another dtype"),
        (["--images_per_prompt", "0"], "--images_per_prompt is 0"),
        (["--clip", "nowhere"], "cannot load CLIP from nowhere"),
        (["--dino", "vit_small_patch16_224.dino"], "leave the column out by --dino none"),
        (["--dino", "vtab_tiny", "--dino_checkpoint", "x.bin"], "it takes a .safetensors file"),
        (["--prompts", " "], "prompt 3 of --prompts is blank"),
        (["--guidance_scale", "nan"], "--guidance_scale is nan; it takes a number of 0 or more"),
        (["--device", "cuda:9"], "--device is cuda:9, which cannot be used here"),
        (["--subject", "cat/"], "2 subjects given"),
    ],
)
def test_bad_input_is_one_sentence(runs, done, capsys, monkeypatch, tmp_path, change, sentence):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(words(runs, done, *change)) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
