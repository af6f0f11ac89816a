"""Whatever loads a run's base again loads it as the run had it: the model card, eval, `dash-vision generate`."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from dash_vision.__main__ import main
from dash_vision.bases import identity
from dash_vision.bases.loading import load_again
from dash_vision.bases.noise import DDPM
from dash_vision.files.errors import InputError
from dash_vision.runs.record import read_record
from eval.bases import load_base
from eval.runs import read_run
from tests.support.dreambooth import settings, train


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory):
    """(folder of a run with options of its own, its base's digests); to be read only."""
    root = tmp_path_factory.mktemp("again")
    shutil.copytree(bases / "sd", root / "base")
    vae = AutoencoderKL.from_pretrained(bases / "sd" / "vae")
    torch.manual_seed(5)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    vae.save_pretrained(root / "vae")
    here = os.getcwd()
    os.chdir(root)
    try:
        options = {
            "pretrained_model_name_or_path": "base",
            "pretrained_vae_model_name_or_path": "vae",
            "prediction_type": "v_prediction",
            "zero_terminal_snr": True,
            "max_train_steps": 5,
        }
        job = train(settings(bases, root / "out", **options))
    finally:
        os.chdir(here)
    return root / "out", job.base.identity()


def digests(pipeline):
    """Those of the parts that a run may choose."""
    return {"vae": identity.of_network(pipeline.vae), "noise process": identity.of_values(DDPM.of(pipeline.scheduler))}


def test_the_card_eval_and_the_record_have_the_runs_vae_and_noise(run, tmp_path, monkeypatch):
    out, expected = run
    expected = {part: expected[part] for part in ("vae", "noise process")}
    assert digests(load_base(read_run(out)).pipeline) == expected
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "num_inference_steps=2, guidance_scale=7.5" in code
    scope = {}
    monkeypatch.chdir(shutil.copytree(out, tmp_path / "copy"))
    exec(compile(code, "card", "exec"), scope)
    assert digests(scope["pipe"]) == expected
    assert (tmp_path / "copy/out.png").is_file()
    again = load_again(read_record(out / "run.json").base.specification)
    assert again.identity() == run[1]


def test_generate_says_where_the_base_is_another_one_now(run, bases, tmp_path, capsys):
    command = ["generate", str(run[0]), "--prompts", "a {}", "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert not main(command)
    assert "note:" not in capsys.readouterr().out
    moved = shutil.copytree(bases / "sd", tmp_path / "moved")
    assert not main([*command, "--base", str(moved)])
    assert "note:" not in capsys.readouterr().out
    text = (moved / "tokenizer/tokenizer_config.json").read_text()
    (moved / "tokenizer/tokenizer_config.json").write_text(
        text.replace('"model_max_length": 12', '"model_max_length": 9')
    )
    assert not main([*command, "--base", str(moved)])
    assert f"is not the base that {run[0]} was trained on: its tokenizer differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("generate", "{run}", "--prompts", "a {}", "-o", "{out}"), ("merge", "{run}", "{out}")]
)
def test_a_base_that_changed_since_is_refused_unless_it_is_named(run, bases, tmp_path, capsys, words):
    copy, moved = shutil.copytree(run[0], tmp_path / "run"), shutil.copytree(bases / "sd", tmp_path / "moved")
    record = json.loads((copy / "run.json").read_text())
    record["base"]["specification"]["name"] = str(moved)
    (copy / "run.json").write_text(json.dumps(record))
    config = moved / "tokenizer/tokenizer_config.json"
    config.write_text(config.read_text().replace('"model_max_length": 12', '"model_max_length": 9'))
    command = [word.replace("{run}", str(copy)).replace("{out}", str(tmp_path / "out")) for word in words]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"{moved} is not the base that {copy} was trained on: its tokenizer differs; --base says where" in said
    assert not (tmp_path / "out").exists()
    assert main([*command, "--base", str(moved)]) == 0
    assert "note:" in capsys.readouterr().out


def test_generate_says_that_the_adapters_file_is_cut_short(run, tmp_path, capsys):
    copy = shutil.copytree(run[0], tmp_path / "run")
    (copy / "pytorch_lora_weights.safetensors").write_bytes(b"0123456789")
    assert main(["generate", str(copy), "--prompts", "a {}", "-o", str(tmp_path / "out")]) == 2
    assert "pytorch_lora_weights.safetensors in the base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num_inference_steps", "0"], "--num_inference_steps is 0; it takes a number of 1 or more"),
        (["--guidance_scale", "nan"], "--guidance_scale is nan; it takes a number of 0 or more"),
        (["--scale", "inf"], "--scale is inf; it takes a number up to"),
        (["--seed", "-1"], "--seed is -1; it takes a number of 0 or more"),
        (["--device", "nowhere"], "--device is nowhere, which cannot be used here"),
        (
            ["--prompts", "a", "sks", "cat"],
            '--prompts got 3 prompts of one word each; put a prompt in quotes: --prompts "a',
        ),
        (["--prompts", "absent.txt"], "cannot read --prompts absent.txt"),
    ],
)
def test_generate_checks_what_it_is_given(run, tmp_path, capsys, words, sentence):
    assert main(["generate", str(run[0]), "--prompts", "a {}", "-o", str(tmp_path / "out"), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_generate_takes_files_of_prompts_and_the_adapters_that_a_run_kept(run, tmp_path, capsys):
    kept = shutil.copytree(run[0], tmp_path / "run") / "adapters" / "run-000003"
    kept.mkdir(parents=True)
    for name in ("pytorch_lora_weights.safetensors", "dash_adapter.safetensors"):
        shutil.copy(run[0] / name, kept)
    (tmp_path / "p.txt").write_text("a {} in the snow\n\na red {}\n")
    out = ["--prompts", str(tmp_path / "p.txt"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    drawn = []
    for place in (run[0], kept, kept / "dash_adapter.safetensors"):
        assert main(["generate", str(place), *out]) == 0
        assert "001-00.png: a red sks cat" in capsys.readouterr().out
        drawn.append((tmp_path / "out/000-00.png").read_bytes())
    assert drawn[0] == drawn[1] == drawn[2]
    (checkpoint,) = tmp_path.glob("run/checkpoint-*.safetensors")
    assert main(["generate", str(checkpoint), *out]) == 2
    assert "is not what is drawn with; give the run's folder" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "absent"), *out]) == 2
    assert "absent is not there (no run.json); give the --output_dir of a run" in capsys.readouterr().err
    assert main(["merge", str(kept), str(tmp_path / "merged")]) == 0


def test_generate_in_half_precision_draws_nearly_the_same(run, tmp_path):
    command = ["generate", str(run[0]), "--prompts", "a {}", "--device", "cpu", "--guidance_scale", "1"]
    drawn = []
    for dtype in ("float32", "bfloat16"):
        assert not main([*command, "-o", str(tmp_path / dtype), "--dtype", dtype])
        drawn.append(np.asarray(Image.open(tmp_path / dtype / "000-00.png"), float))
    difference = np.abs(drawn[0] - drawn[1]).mean()
    assert 0 < difference < 0.1 * drawn[0].std()


def test_a_specification_of_another_version_is_refused():
    with pytest.raises(InputError, match="another version of dash-vision"):
        load_again({"name": "miniature", "colour": "red"})
    with pytest.raises(InputError, match="another version of dash-vision"):
        load_again({"revision": None})
