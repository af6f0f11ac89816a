"""Figures of broken artifacts: what is left out, and what is said."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eval.__main__ import main
from eval.figure.page import MARGIN, TILE
from tests.support.dreambooth import settings, train
from tests.support.eval import figure_of


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--adapter", "x=nowhere"], "there is no folder nowhere"),
        (["--adapter", "x"], "it takes NAME=FOLDER"),
        (["--adapter", "x=CAT"], "holds no run.json"),
        (["--adapter", "a=DASH", "--adapter", "b=OTHER"], "different bases"),
        (["--adapter", "a=DASH", "--adapter", "a=LORA"], "have one name"),
        ([], "no adapter for"),
        (["--adapter", "a=CUT"], "cannot be read"),
        (["--adapter", "a=OLD"], "of another version"),
        (["--adapter", "a=LESS"], "of another version"),
    ],
)
def test_bad_figures_are_one_sentence(runs, tmp_path, capsys, change, words):
    less = json.loads((runs / "dash" / "run.json").read_text())
    del less["arguments"]["resolution"]
    for name, text in (("cut", '{"kind": "dream'), ("old", '{"kind": "dreambooth"}'), ("less", json.dumps(less))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    places = {"CAT": runs / "cat", "DASH": runs / "dash", "OTHER": runs / "other", "LORA": runs / "lora"}
    places |= {"CUT": tmp_path / "cut", "OLD": tmp_path / "old", "LESS": tmp_path / "less"}
    change = [w.split("=")[0] + f"={places[w.split('=')[1]]}" if w.split("=")[-1] in places else w for w in change]
    try:
        status = main(
            ["figure", "--subject", str(runs / "cat"), *change, "--prompts", "a {}", "-o", str(tmp_path / "o.png")]
        )
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "o.png").exists()


def test_a_bad_part_costs_itself_only(runs, tmp_path, capsys):
    shutil.copytree(runs / "cat", tmp_path / "cat")
    (tmp_path / "cat/broken.png").write_bytes(b"\x89PNG")
    for name in ("pytorch_lora_weights.safetensors", "dash_adapter.safetensors"):
        shutil.copytree(runs / "dash", tmp_path / name)
        path = tmp_path / name / name
        path.write_bytes(path.read_bytes()[:-10])
    shutil.copytree(runs / "dash", tmp_path / "odd")
    save_file({"nothing": torch.zeros(1)}, tmp_path / "odd/dash_adapter.safetensors")
    adapters = {"gone": tmp_path / "gone", "a": tmp_path / "pytorch_lora_weights.safetensors", "dash": runs / "dash"}
    adapters |= {"b": tmp_path / "dash_adapter.safetensors", "odd": tmp_path / "odd"}
    shutil.copytree(runs / "dash", tmp_path / "old")
    record = json.loads((runs / "dash/run.json").read_text())
    del record["arguments"]["guidance_scale"]
    (tmp_path / "old/run.json").write_text(json.dumps(record))
    adapters["old"] = tmp_path / "old"
    words = ["figure", "--subject", str(tmp_path / "cat"), *(f"--adapter={n}={p}" for n, p in adapters.items())]
    empty = ["--subject", str(tmp_path), *words[3:6], "--prompts", "a {}"]  # a block of which nothing is left
    assert main([*words, "--prompts", "a {}", *empty, "-o", str(tmp_path / "o.png")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 7
    for line, part in zip(
        said,
        ("gone: there is", "a: ", "b: ", "odd: ", "old: ", str(tmp_path / "cat/broken.png"), "no pictures"),
        strict=True,
    ):
        assert line.startswith("error: left out: ")
        assert part in line
        assert "o.png" not in line
    with Image.open(tmp_path / "o.png") as page:
        (block,) = json.loads(page.text["dash-vision"])["blocks"]
    assert block["adapters"] == {"dash": str(runs / "dash")}


def test_settings_of_zero_are_taken(runs, tmp_path):
    words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}"]
    story = {}
    for guidance in ("0", "1", "2.5"):
        out = tmp_path / f"{guidance}.png"
        assert main([*words, "--guidance_scale", guidance, "--prompts", "a {}", "-o", str(out)]) == 0
        with Image.open(out) as page:
            story[guidance] = json.loads(page.text["dash-vision"])
            story[guidance]["pixels"] = page.crop((0, 0, page.width, MARGIN + TILE)).tobytes()
    assert [s["blocks"][0]["guidance_scale"] for s in story.values()] == [0, 1, 2.5]
    # Up to 1 diffusers does without guidance.
    assert story["0"]["pixels"] == story["1"]["pixels"] != story["2.5"]["pixels"]
    made = story["0"]["blocks"][0]
    assert (made["base"], made["num_inference_steps"], made["resolution"]) == (str(runs / "sd"), 2, 16)
    assert torch.__version__.startswith(story["0"]["versions"]["torch"])


def test_a_prompt_without_a_place_for_the_subject_gets_a_note(runs, tmp_path, capsys):
    assert figure_of(runs, tmp_path / "o.png", "dash", prompts=("a cat", "a {}")) == 0
    assert capsys.readouterr().out.count("has no {}") == 1


@pytest.mark.parametrize(("key", "value"), [("subject", "zwx dog"), ("arguments", {"resolution": 32})])
def test_runs_of_another_subject_do_not_stand_in_one_block(runs, tmp_path, capsys, key, value):
    shutil.copytree(runs / "dash", tmp_path / "other")
    record = json.loads((runs / "dash/run.json").read_text())
    record[key] = {**record[key], **value} if key == "arguments" else value
    (tmp_path / "other/run.json").write_text(json.dumps(record))
    words = [
        "figure",
        "--subject",
        str(runs / "cat"),
        f"--adapter=a={runs / 'lora'}",
        f"--adapter=b={tmp_path / 'other'}",
    ]
    assert main([*words, "--prompts", "a {}", "-o", str(tmp_path / "o.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "different words or resolutions" in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--num_inference_steps", "0"], "--num_inference_steps is 0"),
        (["--num_inference_steps", "-3"], "--num_inference_steps is -3"),
        (["--guidance_scale", "-1"], "--guidance_scale is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--device", "cuda:9"], "--device is cuda:9, which cannot be used here"),
        (["--device", "toaster"], "--device is toaster, which cannot be used here"),
        (["--prompts", ""], "is blank"),
    ],
)
def test_settings_that_cannot_be_used_are_one_sentence(runs, tmp_path, capsys, change, sentence):
    words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", "--prompts", "a {}"]
    assert main([*words, *change, "-o", str(tmp_path / "o.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said


def test_a_folder_of_broken_pictures_is_no_subject(runs, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    words = ["figure", "--subject", str(tmp_path), "--adapter", f"dash={runs / 'dash'}", "--prompts", "a {}"]
    assert main([*words, "-o", str(tmp_path / "o.png")]) == 2
    assert f"no picture in {tmp_path} can be read" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["file/o.png", "folder.png"])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_drawn(runs, tmp_path, capsys, out):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    assert figure_of(runs, tmp_path / out, "dash") == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: cannot write {tmp_path / out}: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize("base", ["sd2", "xl"])
def test_a_wrong_base_draws_nothing(runs, bases, tmp_path, capsys, base):
    folder = {"sd2": runs / "sd2", "xl": bases / "sdxl"}[base]
    words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", "--base", str(folder)]
    assert main([*words, "--prompts", "a {}", "-o", str(tmp_path / "o.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"was trained on other weights than {folder} holds" in said
    assert not (tmp_path / "o.png").exists()


def test_an_adapter_that_does_not_fit_is_named(runs, tmp_path, capsys):
    shutil.copytree(runs / "dash", tmp_path / "odd")
    path = tmp_path / "odd/pytorch_lora_weights.safetensors"
    save_file({key: torch.cat([t, t], dim=1) for key, t in load_file(path).items()}, path)
    words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"odd={tmp_path / 'odd'}", "--prompts", "a {}"]
    assert main([*words, "-o", str(tmp_path / "o.png")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: odd: cannot load {path} in the base")
    assert said.count("\n") == 1
    more = ["--adapter", f"dash={runs / 'dash'}", "--prompts", "a {}", "-o", str(tmp_path / "o.png")]
    assert main([*words[:5], *more]) == 1
    assert capsys.readouterr().err.startswith(f"error: left out: odd: cannot load {path} in the base")
    with Image.open(tmp_path / "o.png") as page:
        (block,) = json.loads(page.text["dash-vision"])["blocks"]
    assert block["adapters"] == {"dash": str(runs / "dash")}


def test_adapters_of_two_bases_without_a_layer_in_common_are_not_compared(runs, tmp_path, capsys):
    few = {"max_train_steps": 2, "prelaunch_steps": 1, "num_inference_steps": 2, "lora_target": ["to_q"]}
    train(settings(runs, tmp_path / "odd", base="sd2", **few))
    capsys.readouterr()
    words = [f"--adapter=query={tmp_path / 'query'}", f"--adapter=odd={tmp_path / 'odd'}"]
    train(settings(runs, tmp_path / "query", **(few | {"lora_target": ["to_k"]})))
    figure = ["figure", "--subject", str(runs / "cat"), *words, "--prompts", "a {}", "-o", str(tmp_path / "o.png")]
    assert main(figure) == 2
    said = capsys.readouterr().err
    assert f"different bases (the vae of {runs / 'sd'} and that of {runs / 'sd2'}, of query and odd)" in said


def test_too_little_memory_for_the_base_is_one_sentence(runs, tmp_path, capsys, monkeypatch):
    from diffusers import StableDiffusionPipeline

    def full(self, *place):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(StableDiffusionPipeline, "to", full)
    assert figure_of(runs, tmp_path / "o.png", "dash") == 2
    said = capsys.readouterr().err
    assert said == "error: the GPU's memory does not suffice for the base; give --dtype float16, or --device cpu\n"
