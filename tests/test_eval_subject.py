"""The DreamBooth protocol: the prompts, what is drawn when, what is measured, and the intervals."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import save_base, save_pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from test_dreambooth import settings, train
from torchvision.transforms import functional as images
from transformers import CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from vtab_helpers import TINY

from dash_vision.bases.backbones import MINIATURE_WEIGHTS
from dash_vision.miniature import clip_path, pipeline_path
from eval.__main__ import main
from eval.encoders import ClipEncoder, DinoEncoder
from eval.prompts import PROMPT_LISTS, prompt_list
from eval.runs import MINIATURE
from eval.scores import differences, intervals, markdown
from eval.subject import FLOOR

ROOT = Path(__file__).parent.parent
PROMPTS = ("a {} in the snow", "a red {}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs dash/ and still/ (nothing learned) on a tiny base, and the pictures cat/."""
    root = tmp_path_factory.mktemp("runs")
    save_base(root / "sd")
    save_pictures(root / "cat")
    few = {"max_train_steps": 2, "prelaunch_steps": 1, "num_inference_steps": 2}
    train(settings(root, root / "dash", learning_rate=0.1, **few))
    train(settings(root, root / "still", learning_rate=0.0, **few))
    return root


def words(runs, out, *extra, prompts=PROMPTS):
    adapters = [w for name in ("still", "dash") for w in ("--adapter", f"{name}={runs / name}")]
    chosen = ["--prompts", *prompts] if prompts else []
    common = ["--clip", str(clip_path()), "--dino", "none", "--device", "cpu", "--images_per_prompt", "2"]
    return ["subject", "--subject", str(runs / "cat"), *adapters, *chosen, *common, *extra, "-o", str(out)]


@pytest.fixture(scope="module")
def done(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("done")
    assert main(words(runs, out)) == 0
    return out


# -- prompts


def test_the_protocol_has_25_prompts_of_each_kind():
    for prompts in PROMPT_LISTS.values():
        assert len(set(prompts)) == 25
        assert all(prompt.count("{}") == 1 for prompt in prompts)
    objects, live = PROMPT_LISTS["object"], PROMPT_LISTS["live"]
    assert (objects[:10], objects[-5:]) == (live[:10], live[-5:])
    assert objects[16].format("sks clock") == "a sks clock on top of a mirror"
    assert live[13].format("sks dog") == "a sks dog wearing a black top hat and a monocle"
    assert live[-1].format("sks dog") == "a cube shaped sks dog"
    assert [prompt_list(c) for c in ("cat", "Fluffy Dog", "dog toy", "")] == ["live", "live", "object", "object"]


def test_the_miniature_knows_every_word_of_the_live_prompts():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(pipeline_path() / "tokenizer")
    for prompt in PROMPT_LISTS["live"] + PROMPT_LISTS["object"]:
        assert tokenizer.unk_token not in tokenizer.tokenize(prompt.format("cat"))


# -- drawing


def test_pictures_are_equal_where_noise_and_weights_are(done):
    def tile(method, name):
        with Image.open(done / "pictures" / method / name) as picture:
            return picture.tobytes()

    names = sorted(p.name for p in (done / "pictures/dash").glob("*.png"))
    assert names == ["00-00.png", "00-01.png", "01-00.png", "01-01.png"]
    for name in names:
        assert tile("still", name) != tile("dash", name)
    assert tile("still", "00-00.png") != tile("still", "00-01.png")
    record = json.loads((done / "pictures/still/made.json").read_text())
    assert record["prompts"] == ["a sks cat in the snow", "a red sks cat"]
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
    record = tmp_path / "out/pictures/dash/made.json"
    older = json.loads(record.read_text())
    del older["dtype"]  # as before there was a choice
    record.write_text(json.dumps(older))
    assert main([*common, "--adapter", dash, "--prompts", "a {}"]) == 0


def test_too_little_memory_is_one_sentence_and_keeps_what_is_made(runs, tmp_path, capsys, monkeypatch):
    from diffusers import StableDiffusionPipeline

    original, calls = StableDiffusionPipeline.__call__, []

    def full(self, prompts, **options):
        calls.append(prompts)
        if len(calls) > 1:
            raise torch.cuda.OutOfMemoryError
        return original(self, prompts, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", full)
    assert main(words(runs, tmp_path, "--batch_size", "2")) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert "memory does not suffice for 2 pictures of 16 x 16 at once; give --dtype float16" in said[0]
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_two_processes_draw_what_one_does(runs, done, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "eval"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*launch, *words(runs, tmp_path, "--batch_size", "1")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("sks cat: own prompts, 2 pictures each") == 1  # one process speaks
    for path in done.rglob("*.png"):
        other = np.asarray(Image.open(tmp_path / path.relative_to(done))).astype(int)
        assert np.abs(other - np.asarray(Image.open(path))).max() <= 1


# -- measuring


def test_scores_are_mean_cosines(runs, done):
    """Against CLIPModel itself, one picture and one prompt at a time."""
    model, processor = CLIPModel.from_pretrained(clip_path()).eval(), CLIPProcessor.from_pretrained(clip_path())

    def embedded(path):
        pixels = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        return model.visual_projection(model.vision_model(pixels).pooler_output)[0]

    result = json.loads((done / "subject.json").read_text())
    real = [embedded(p) for p in sorted((runs / "cat").iterdir()) if p.suffix in (".png", ".jpg", ".jpeg", ".webp")]
    cosine = torch.nn.functional.cosine_similarity
    with torch.no_grad():
        between = [cosine(a, b, dim=0).item() for i, a in enumerate(real) for b in real[:i]]
        assert result["ceiling"]["CLIP-I"]["mean"] == pytest.approx(np.mean(between), abs=1e-5)
        for number, text in enumerate(("a cat in the snow", "a red cat")):  # without the rare word
            tokens = processor(text=[text], padding="max_length", max_length=40, return_tensors="pt")
            said = model.get_text_features(**tokens).pooler_output[0]
            pictures = [embedded(done / f"pictures/dash/{number:02d}-{n:02d}.png") for n in (0, 1)]
            scores = result["methods"]["dash"]["scores"]
            seen = [cosine(p, r, dim=0).item() for p in pictures for r in real]
            assert scores["CLIP-I"]["per_prompt"][number] == pytest.approx(np.mean(seen), abs=1e-5)
            matched = [cosine(p, said, dim=0).item() for p in pictures]
            assert scores["CLIP-T"]["per_prompt"][number] == pytest.approx(np.mean(matched), abs=1e-5)
    assert scores["CLIP-I"]["mean"] == pytest.approx(np.mean(scores["CLIP-I"]["per_prompt"]))


def test_dino_is_the_timm_model_without_its_head(tmp_path):
    torch.manual_seed(0)
    plain = timm.create_model(TINY["model"], num_classes=0).eval()
    save_file(plain.state_dict(), tmp_path / "vit.safetensors")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    found = DinoEncoder(TINY["model"], str(tmp_path / "vit.safetensors")).pictures([picture, picture.rotate(90)])
    # timm's default: resize to 32 / 0.875, cut out the middle; this model's mean and deviation are 0.5.
    larger = images.center_crop(images.resize(picture, 36, images.InterpolationMode.BICUBIC), 32)
    pixels = (images.to_tensor(larger) - 0.5) / 0.5
    with torch.no_grad():
        expected = torch.nn.functional.normalize(plain(pixels[None]).double(), dim=1)
    torch.testing.assert_close(found[:1], expected, atol=1e-6, rtol=0)
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_the_miniatures_vit_stands_in_for_dino():
    plain = timm.models.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=128, depth=4, num_heads=4, num_classes=0
    ).eval()
    kept = {k: v for k, v in load_file(MINIATURE_WEIGHTS).items() if not k.startswith("head.")}
    plain.load_state_dict(kept)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    encoder = DinoEncoder(MINIATURE)
    assert encoder.name == "ViT of the embedded miniature"
    with torch.no_grad():
        features = plain(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    expected = torch.nn.functional.normalize(features.double(), dim=1)
    torch.testing.assert_close(encoder.pictures([Image.fromarray(pixels)]), expected, atol=1e-5, rtol=0)


def test_long_prompts_are_cut_and_do_not_fail():
    texts = ClipEncoder(str(clip_path())).texts(["a cat " * 100, "a cat"])
    assert texts.shape[0] == 2
    assert torch.isfinite(texts).all()


# -- intervals


def test_intervals_have_the_width_that_theory_gives():
    values = np.random.default_rng(3).normal(0.6, 0.1, 400)
    found = intervals({"a": values})["a"]
    width = 2 * 1.96 * values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(width, rel=0.05)
    assert (found.high + found.low) / 2 == pytest.approx(values.mean(), abs=0.05 * width)


def test_differences_are_paired():
    values = np.random.default_rng(4).normal(0.5, 0.2, 25)
    found = differences({"a": values, "b": values + 0.01})["b", "a"]
    # Prompts vary by 0.2, but every prompt gains exactly 0.01.
    assert found == pytest.approx((0.01, 0.01, 0.01))


def test_the_tables_name_what_was_measured(runs, done, capsys):
    assert main(words(runs, done)) == 0
    said = capsys.readouterr().out
    assert re.search(r"CLIP-I and CLIP-T by CLIP \S+", said)
    assert "CLIP-T compares with the prompt without the rare word" in said
    assert "DINO was left out" in said
    rows = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("|")]
    assert rows == ["", "---", "real pictures (ceiling)", "still", "dash", FLOOR, "", "---", "dash - still"]
    assert "| a red sks cat |" in (done / "subject.md").read_text()


@pytest.mark.parametrize(
    ("prompts", "count", "title"),
    [
        ("live", 4, "the DreamBooth protocol"),
        ("live", 1, "the DreamBooth protocol's prompts, 1 picture each"),
        ("own", 4, "own prompts, 4 pictures each"),
    ],
)
def test_only_the_protocol_bears_its_name(done, prompts, count, title):
    result = json.loads((done / "subject.json").read_text())
    text = markdown({**result, "prompt_list": prompts, "images_per_prompt": count})
    assert text.splitlines()[0] == f"# sks cat: {title}"


def test_a_result_says_which_intervals_it_has(done):
    result = json.loads((done / "subject.json").read_text())
    assert "95% intervals over prompts (Student's t)" in markdown(result)
    older = {key: value for key, value in result.items() if key != "intervals"}
    assert "95% intervals over prompts (percentile bootstrap)" in markdown(older)
    # Two values: Student's t with one degree of freedom is Cauchy's distribution, whose quantile is a tangent.
    scores = result["methods"]["dash"]["scores"]["CLIP-I"]
    half = np.tan(np.pi * 0.475) * abs(np.subtract(*scores["per_prompt"])) / 2
    assert scores["high"] - scores["mean"] == pytest.approx(half, rel=1e-4)
    assert scores["mean"] - scores["low"] == pytest.approx(half, rel=1e-4)


def test_one_prompt_has_no_interval(runs, tmp_path, capsys):
    assert main(words(runs, tmp_path, prompts=["a {}"])) == 0
    said = capsys.readouterr().out
    assert "A single prompt: no intervals." in said
    assert not any("[" in line for line in said.splitlines() if line.startswith("|"))


# -- in the report


def test_the_report_shows_a_measured_subject(runs, done, tmp_path):
    (tmp_path / "again").symlink_to(done)
    assert main(["report", str(done), str(tmp_path / "again"), "-o", str(tmp_path / "r.html")]) == 0
    assert "1 measured subject<" in (tmp_path / "r.html").read_text()
    text = (tmp_path / "r.html").read_text()
    result = json.loads((done / "subject.json").read_text())
    assert f"{result['methods']['dash']['scores']['CLIP-I']['mean']:.3f} [" in text
    assert text.count("generated picture") >= 2
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/subject.json").write_text(json.dumps({**result, "methods": {}})[:-9])
    assert main(["report", str(done), str(tmp_path / "cut"), "-o", str(tmp_path / "r.html")]) == 1


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


def test_a_missing_adapter_costs_itself_only(runs, done, capsys):
    assert main(words(runs, done, "--adapter", "x=nowhere")) == 1
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
