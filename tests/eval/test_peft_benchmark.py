"""A run's score by PEFT's benchmark of image generation, against the formulas of its protocol."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from dash_vision.files.errors import InputError
from eval.__main__ import main
from eval.bases import load_base
from eval.peft_benchmark.params import read_params
from eval.peft_benchmark.pictures import prepare, read_part, split
from eval.peft_benchmark.record import named, unlike
from eval.runs import read_run
from tests.support.dino import save_dino
from tests.support.pictures import save_pictures

PROMPTS = [f"sks cat number {i}" for i in range(3)]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """params.json of a small benchmark, dino/, and test/ of three pictures."""
    root = tmp_path_factory.mktemp("peft")
    params = {
        "model_id": "a base",
        "dataset_id": "pictures",
        "dataset_split": "train",
        "image_column": "image",
        "valid_size": 1,
        "test_size": 3,
        "resolution": 16,
        "dtype": "float32",
        "batch_size_eval": 2,
        "eval_steps": 2,
        "num_inference_steps": 2,
        "guidance_scale": 3.5,
        "max_sequence_length": 32,
        "dino_model_id": str(save_dino(root / "dino")),
        "instance_prompts": [f"picture {i}" for i in range(8)],
        "sample_image_prompts": ["a photo of sks cat", "a dog"],
        "drift_image_prompts": ["a dog", "a chair", "an owl in a tree"],
    }
    (root / "params.json").write_text(json.dumps(params))
    save_pictures(root / "test", 3)
    for path, prompt in zip(sorted((root / "test").glob("*.png")), PROMPTS, strict=True):
        path.with_suffix(".txt").write_text(prompt)
    return root


def features(root, pictures):
    model, processor = AutoModel.from_pretrained(root / "dino"), AutoImageProcessor.from_pretrained(root / "dino")
    with torch.no_grad():
        tokens = model(**processor(images=pictures, return_tensors="pt")).last_hidden_state[:, 0].double().numpy()
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def drawn(pipe, prompts, generator):
    """Two at once, as many as are left."""
    found = []
    for start in range(0, len(prompts), 2):
        part = prompts[start : start + 2]
        found += pipe(part, num_inference_steps=2, guidance_scale=3.5, height=16, width=16, generator=generator).images
    return found


def test_a_run_is_scored_by_the_protocol_and_recorded_in_its_format(runs, given, tmp_path, capsys):
    words = ["--params", str(given / "params.json"), "--test", str(given / "test"), "--device", "cpu"]
    assert main(["peft-benchmark", str(runs / "dash"), *words, "-o", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out/lora-dash--rank-2-k-3-seed-0.json").read_text())
    (scores,) = record["train_info"]["metrics"]

    run = read_run(runs / "dash")
    pipe = load_base(run).pipeline
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(runs / "dash"), weight_name="pytorch_lora_weights.safetensors")
    real = features(given, [Image.open(path).convert("RGB") for path in sorted((given / "test").glob("*.png"))])
    generator = torch.Generator().manual_seed(100_000)
    rounds = [(features(given, drawn(pipe, PROMPTS, generator)) * real).sum(1).mean() for _ in range(3)]
    assert scores["test dino_similarity"] == pytest.approx(np.mean(rounds), abs=1e-5)

    unrelated = ["a dog", "a chair", "an owl in a tree"]
    on = features(given, drawn(pipe, unrelated, torch.Generator().manual_seed(100_000_000)))
    pipe.disable_lora()
    off = features(given, drawn(pipe, unrelated, torch.Generator().manual_seed(100_000_000)))
    assert scores["drift"] == pytest.approx((1 - (on * off).sum(1).mean()) / 2, abs=1e-5)
    assert scores["drift"] > 1e-4

    assert scores["train loss"] == pytest.approx(np.mean(run.losses))
    assert (scores["step"], scores["train samples"]) == (2, 4)
    assert record["train_info"]["num_trainable_params"] == run.record.trainable_parameters
    config = record["run_info"]["train_config"]
    assert (config["max_steps"], config["batch_size"], config["seed"]) == (2, 2, 0)
    assert config["optimizer_kwargs"] == {"lr": 0.1, "weight_decay": 0.01}
    assert config["drift_image_prompts"] == unrelated
    assert record["run_info"]["peft_config"]["r"] == 5  # rank 2 and 3 directions
    assert record["meta_info"]["dash_vision"]["arguments"]["dash_k"] == 3
    assert "not comparable with its rows" in capsys.readouterr().out
    samples = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert samples == [f"lora-dash--rank-2-k-3-seed-0_0{i}.png" for i in (1, 2)]


def test_pictures_are_split_as_numpy_s_seeded_shuffle_does():
    """numpy keeps its old generator's numbers for good: these are those of seed 0."""
    parts = split(20, 2, 4)
    order = parts["train"] + parts["valid"] + parts["test"]
    np.random.seed(0)
    expected = np.arange(20)
    np.random.shuffle(expected)
    assert order == expected.tolist()
    assert [len(part) for part in parts.values()] == [14, 2, 4]
    with pytest.raises(InputError, match="the data set has 6 pictures; the benchmark keeps 6"):
        split(6, 2, 4)


def test_prepared_pictures_are_read_as_they_were(given, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    shapes = random.Random(0)
    pixels = np.random.default_rng(0)
    raw = [
        Image.fromarray(pixels.integers(0, 255, (shapes.randint(20, 60), shapes.randint(20, 60), 3), np.uint8))
        for _ in range(8)
    ]
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: {"image": raw})
    params = read_params(given / "params.json")
    prepare(params, tmp_path)
    parts = split(8, 1, 3)
    for name, numbers in parts.items():
        found, prompts = read_part(tmp_path / name)
        assert prompts == [f"picture {i}" for i in numbers]
        for picture, number in zip(found, numbers, strict=True):
            expected = raw[number].resize((16, 16), Image.BILINEAR) if name == "train" else raw[number]
            assert np.array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a RUN to score"),
        (["RUN"], "--test is missing"),
        (["RUN", "--test", "TEST"], "-o is missing"),
        (["RUN", "--test", "NOWHERE", "-o", "OUT"], "there is no folder"),
        (["RUN", "--test", "TEST", "-o", "OUT", "--text_encoder_out_layers", "1"], "is of FLUX.2"),
        (["RUN", "--prepare", "OUT"], "give a RUN to score"),
    ],
)
def test_what_is_missing_is_one_sentence(runs, given, tmp_path, capsys, words, said):
    places = {"RUN": runs / "dash", "TEST": given / "test", "NOWHERE": tmp_path / "no", "OUT": tmp_path / "out"}
    words = [str(places.get(word, word)) for word in words]
    assert main(["peft-benchmark", *words, "--params", str(given / "params.json"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "int8"}, "dtype in"),
        ({"test_size": 0}, "test_size in"),
        ({"drift_image_prompts": []}, "no list of prompts"),
        ({"guidance_scale": "high"}, "guidance_scale in"),
        (None, "has no model_id"),
    ],
)
def test_another_file_of_settings_is_one_sentence(given, tmp_path, change, said):
    content = json.loads((given / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps([] if change is None else content | change))
    with pytest.raises(InputError, match=said):
        read_params(tmp_path / "params.json")
    with pytest.raises(InputError, match="there is no file"):
        read_params(tmp_path / "none.json")


def test_runs_that_are_no_rows_of_the_benchmark_are_refused_or_said(runs, given, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(runs / "dash", run)
    words = ["peft-benchmark", str(run), "--params", str(given / "params.json"), "--device", "cpu", "-o", str(out)]

    shutil.copytree(given / "test", tmp_path / "test")
    sorted((tmp_path / "test").glob("*.png"))[0].unlink()
    assert main([*words, "--test", str(tmp_path / "test")]) == 2
    assert "holds 2 pictures, and the benchmark compares 3" in capsys.readouterr().err

    out.mkdir()
    other = {"meta_info": {"dash_vision": {"arguments": {"rank": 9}, "launch": 1}}}
    record = out / "lora-dash--rank-2-k-3-seed-0.json"
    record.write_text(json.dumps(other))
    assert main([*words, "--test", str(given / "test")]) == 2
    assert "is the record of another run; give another --name or -o" in capsys.readouterr().err
    assert json.loads(record.read_text()) == other

    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**told, "launch": None}))
    params = read_params(given / "params.json")
    longer = dataclasses.replace(params, whole={"max_steps": 750, "batch_size": 2})
    assert list(unlike(read_run(run), longer)) == [
        "the benchmark trains with 750 steps, and this run with 2 steps: not comparable with its rows",
        "the run ended before its launch, so that it is LoRA of rank 2",
    ]
    assert list(unlike(read_run(runs / "dash"), params)) == []
    assert named(read_run(run)) == "lora-dash/rank-2-k-3-not-launched-seed-0"


def test_a_run_with_the_adapter_of_an_earlier_step_is_not_scored(measured, given, tmp_path, capsys):
    shutil.copytree(measured, tmp_path / "run")
    told = json.loads((tmp_path / "run/run.json").read_text())
    told["evaluation"]["applied"] = 4
    (tmp_path / "run/run.json").write_text(json.dumps(told))
    words = ["--params", str(given / "params.json"), "--test", str(given / "test"), "-o", str(tmp_path / "out")]
    assert main(["peft-benchmark", str(tmp_path / "run"), *words]) == 2
    assert "holds the adapter of step 4" in capsys.readouterr().err
