"""Figures and tables: what is drawn, what is computed, and what is said when artifacts are broken."""

import csv
import io
import json
import shutil
import statistics

import pytest
import torch
from helpers import save_base, save_pictures
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageStat
from safetensors.torch import load_file, save_file
from test_dreambooth import settings, train

from dash_vision.drawing import fonts as drawing_fonts
from eval.__main__ import main
from eval.figure import GAP, MARGIN, ROOM, TILE, Sampled, collage, draw
from eval.vtab import GROUPS, PUBLISHED, TASKS, published_rows, table


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs lora/ and still/ (nothing learned) on one tiny base, other/ on another one, and the pictures cat/."""
    root = tmp_path_factory.mktemp("runs")
    save_base(root / "sd")
    save_base(root / "sd2", seed=5)
    save_pictures(root / "cat")
    few = {"max_train_steps": 2, "prelaunch_steps": 1, "num_inference_steps": 2}
    train(settings(root, root / "dash", learning_rate=0.1, **few))
    train(settings(root, root / "lora", learning_rate=0.0, dash_k=0, **few))
    train(settings(root, root / "still", learning_rate=0.0, **few))
    train(settings(root, root / "other", base="sd2", **few))
    return root


def figure_of(runs, out, *adapters, prompts=("a photo of {}", "a {} in the snow")):
    words = ["figure", "--subject", str(runs / "cat")]
    for adapter in adapters:
        words += ["--adapter", f"{adapter}={runs / adapter}"]
    return main([*words, "--prompts", *prompts, str(out)])


def test_the_figure_has_the_paper_s_layout(runs, tmp_path, capsys):
    assert figure_of(runs, tmp_path / "a.png", "lora", "still", "dash") == 0
    assert "seed 0" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as page:
        story = json.loads(page.text["dash-vision"])
        pixels = page.convert("RGB")
    assert story["seed"] == 0
    assert story["blocks"][0]["prompts"] == ["a photo of sks cat", "a sks cat in the snow"]
    assert list(story["blocks"][0]["adapters"]) == ["lora", "still", "dash"]
    pair = 3 * TILE + 2 * GAP
    assert pixels.width == 2 * MARGIN + TILE + 2 * ROOM - ROOM + 2 * pair + ROOM

    def tile(prompt, method):
        x = MARGIN + TILE + ROOM + prompt * (pair + ROOM) + method * (TILE + GAP)
        return pixels.crop((x, MARGIN, x + TILE, MARGIN + TILE - 27))  # without the method's name

    for prompt in (0, 1):
        # lora and still have learned nothing: equal tiles mean equal noise and equal prompts.
        assert tile(prompt, 0).tobytes() == tile(prompt, 1).tobytes()
        assert tile(prompt, 0).tobytes() != tile(prompt, 2).tobytes()
    assert tile(0, 0).tobytes() != tile(1, 0).tobytes()


def test_figures_repeat_themselves_and_seeds_differ(runs, tmp_path):
    for name, extra in (("a", []), ("b", []), ("c", ["--seed", "1"])):
        words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", *extra]
        assert main([*words, "--prompts", "a {}", str(tmp_path / f"{name}.png")]) == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_half_precision_draws_nearly_the_same(runs, tmp_path):
    pages = {}
    for dtype in ("float32", "bfloat16"):
        words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", "--dtype", dtype]
        assert main([*words, "--prompts", "a {}", str(tmp_path / f"{dtype}.png")]) == 0
        with Image.open(tmp_path / f"{dtype}.png") as page:
            assert json.loads(page.text["dash-vision"])["blocks"][0]["dtype"] == dtype
            pages[dtype] = page.convert("RGB")
    difference = ImageChops.difference(*pages.values())
    assert 0 < ImageStat.Stat(difference).rms[0] < 8


def test_adapters_of_other_layers_of_one_base_are_compared(runs, tmp_path, capsys):
    few = {"max_train_steps": 2, "prelaunch_steps": 1, "num_inference_steps": 2}
    for name, target in (("query", ["to_q"]), ("key", ["to_k"])):  # one of the attention's layers, and another
        train(settings(runs, tmp_path / name, lora_target=target, **few))
    words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}"]
    words += [w for name in ("query", "key") for w in ("--adapter", f"{name}={tmp_path / name}")]
    assert main([*words, "--prompts", "a {}", str(tmp_path / "a.png")]) == 0
    words += ["--adapter", f"other={runs / 'other'}"]
    assert main([*words, "--prompts", "a {}", str(tmp_path / "b.png")]) == 2
    assert "different bases" in capsys.readouterr().err


def test_subjects_stack_and_pdf_is_written(runs, tmp_path):
    words = []
    for _ in range(2):
        words += ["--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", "--prompts", "a {}"]
    assert main(["figure", *words, str(tmp_path / "two.png")]) == 0
    assert main(["figure", *words[: len(words) // 2], str(tmp_path / "one.png")]) == 0
    assert main(["figure", *words, str(tmp_path / "two.pdf")]) == 0
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.width == one.width
        assert two.height == 2 * (one.height - 2 * MARGIN) + GAP + 2 * MARGIN
    content = (tmp_path / "two.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    _, stream = content.split(b">>stream\n", 2)[:2]
    with Image.open(tmp_path / "two.png") as png, Image.open(io.BytesIO(stream)) as embedded:
        assert embedded.convert("RGB").tobytes() == png.convert("RGB").tobytes()


@pytest.mark.parametrize("name", ["projection without the division of rank 16", "x" * 45, "LoRA-Dash", "W" * 90])
def test_a_method_s_name_is_whole_on_its_tile(name):
    tiles = [[Image.new("RGB", (16, 16), "#204060")]]
    drawn = []
    original = ImageDraw.ImageDraw.text

    def spy(canvas, place, text, **options):
        left, _, right, _ = canvas.textbbox(place, text, font=options["font"], anchor=options["anchor"])
        drawn.append((text, left >= 0, right <= canvas.im.size[0], canvas.im.size[0]))
        return original(canvas, place, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", spy)
        draw([Sampled("cat", [Image.new("RGB", (8, 8))], [name], [""], tiles, {})])
    labels = [entry for entry in drawn if entry[3] <= TILE]
    assert "".join(entry[0] for entry in labels).replace(" ", "") == name.replace(" ", "")
    assert all(left and right for _, left, right, _ in labels)


@pytest.mark.parametrize(
    ("installed", "chosen"), [("none", None), ("few", None), ("few all", "all"), ("all few", "all")]
)
def test_letters_that_pillow_s_font_lacks_come_from_a_font_that_has_them_all(monkeypatch, installed, chosen):
    own = ImageFont.load_default(17)
    box = bytes(own.getmask("\uffff"))
    assert bytes(own.getmask("é")) == bytes(own.getmask("猫")) == box  # else there is nothing to be mended

    class Installed:
        def __init__(self, letters):
            self.letters = letters

        def getmask(self, letter):
            return f"glyph {letter}".encode() if letter in self.letters else b"box"

    fonts = {"few": Installed("é"), "all": Installed("é猫 b")}

    original = ImageFont.truetype

    def truetype(font, size, **options):
        if not isinstance(font, str):  # Pillow's own
            return original(font, size, **options)
        if font not in fonts:
            raise OSError("cannot open resource")
        return fonts[font]

    monkeypatch.setattr(drawing_fonts, "_FONTS", ("missing", *installed.split()))
    monkeypatch.setattr(ImageFont, "truetype", truetype)
    found = drawing_fonts.font_for("é 猫", 17)
    assert found is fonts[chosen] if chosen else isinstance(found, ImageFont.FreeTypeFont)
    assert isinstance(drawing_fonts.font_for("cat b", 17), ImageFont.FreeTypeFont)  # Pillow's own, where it will do


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 9, 12])
def test_a_collage_shows_every_picture_up_to_nine(count):
    colours = [(20 * i + 5, 200 - 9 * i, 3 * i) for i in range(count)]
    square = collage([Image.new("RGB", (8, 6), c) for c in colours], 256)
    assert square.size == (256, 256)
    seen = {colour for _, colour in square.getcolors(1 << 16)}
    assert set(colours[:9]) <= seen
    assert not set(colours[9:]) & seen


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
        status = main(["figure", "--subject", str(runs / "cat"), *change, "--prompts", "a {}", str(tmp_path / "o.png")])
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
    assert main([*words, "--prompts", "a {}", *empty, str(tmp_path / "o.png")]) == 1
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
        assert main([*words, "--guidance_scale", guidance, "--prompts", "a {}", str(out)]) == 0
        with Image.open(out) as page:
            story[guidance] = json.loads(page.text["dash-vision"])
            story[guidance]["pixels"] = page.tobytes()
    assert [s["blocks"][0]["guidance_scale"] for s in story.values()] == [0, 1, 2.5]
    # Up to 1 diffusers does without guidance.
    assert story["0"]["pixels"] == story["1"]["pixels"] != story["2.5"]["pixels"]
    made = story["0"]["blocks"][0]
    assert (made["base"], made["num_inference_steps"], made["resolution"]) == (str(runs / "sd"), 2, 16)
    assert torch.__version__.startswith(story["0"]["versions"]["torch"])


def test_a_prompt_without_a_place_for_the_subject_gets_a_note(runs, tmp_path, capsys):
    assert figure_of(runs, tmp_path / "o.png", "dash", prompts=("a cat", "a {}")) == 0
    assert capsys.readouterr().out.count("has no {}") == 1


@pytest.mark.parametrize(
    ("key", "value"), [("instance_prompt", "a photo of zwx dog"), ("arguments", {"resolution": 32})]
)
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
    assert main([*words, "--prompts", "a {}", str(tmp_path / "o.png")]) == 2
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
    assert main([*words, *change, str(tmp_path / "o.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said


def test_a_folder_of_broken_pictures_is_no_subject(runs, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    words = ["figure", "--subject", str(tmp_path), "--adapter", f"dash={runs / 'dash'}", "--prompts", "a {}"]
    assert main([*words, str(tmp_path / "o.png")]) == 2
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
def test_a_wrong_base_draws_nothing(runs, tmp_path, capsys, base):
    if base == "xl" and not (runs / "xl").exists():
        save_base(runs / "xl", xl=True)
    capsys.readouterr()
    words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", "--base", str(runs / base)]
    assert main([*words, "--prompts", "a {}", str(tmp_path / "o.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"was trained on other weights than {runs / base} holds" in said
    assert not (tmp_path / "o.png").exists()


def test_an_adapter_that_does_not_fit_is_named(runs, tmp_path, capsys):
    shutil.copytree(runs / "dash", tmp_path / "odd")
    path = tmp_path / "odd/pytorch_lora_weights.safetensors"
    save_file({key: torch.cat([t, t], dim=1) for key, t in load_file(path).items()}, path)
    words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"odd={tmp_path / 'odd'}", "--prompts", "a {}"]
    assert main([*words, str(tmp_path / "o.png")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: odd: cannot load {path} in the base")
    assert said.count("\n") == 1
    more = ["--adapter", f"dash={runs / 'dash'}", "--prompts", "a {}", str(tmp_path / "o.png")]
    assert main([*words[:5], *more]) == 1
    assert capsys.readouterr().err.startswith(f"error: left out: odd: cannot load {path} in the base")
    with Image.open(tmp_path / "o.png") as page:
        (block,) = json.loads(page.text["dash-vision"])["blocks"]
    assert block["adapters"] == {"dash": str(runs / "dash")}


def test_the_adapter_of_another_base_costs_itself_only(runs, tmp_path, capsys):
    few = {"max_train_steps": 2, "prelaunch_steps": 1, "num_inference_steps": 2, "lora_target": ["to_q"]}
    train(settings(runs, tmp_path / "odd", base="sd2", **few))
    capsys.readouterr()
    words = [f"--adapter=query={tmp_path / 'query'}", f"--adapter=odd={tmp_path / 'odd'}"]
    train(settings(runs, tmp_path / "query", **(few | {"lora_target": ["to_k"]})))
    figure = ["figure", "--subject", str(runs / "cat"), *words, "--prompts", "a {}", str(tmp_path / "o.png")]
    assert main(figure) == 1  # no layer in common: only the base's weights tell
    said = capsys.readouterr().err
    assert f"error: left out: odd: {tmp_path / 'odd'} was trained on other weights than {runs / 'sd'} holds" in said


def test_too_little_memory_for_the_base_is_one_sentence(runs, tmp_path, capsys, monkeypatch):
    from diffusers import StableDiffusionPipeline

    def full(self, *place):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(StableDiffusionPipeline, "to", full)
    assert figure_of(runs, tmp_path / "o.png", "dash") == 2
    said = capsys.readouterr().err
    assert said == "error: the GPU's memory does not suffice for the base; give --dtype float16, or --device cpu\n"


# -- the VTAB table


def test_published_rows_have_their_published_means():
    # Mean of the three group means / mean of the 19 tasks, as published; one number where it is not said which.
    expected = {"full": (68.97, 65.57), "linear": (57.64, 52.94), "LoRA r8 (q, v)": (74.60, 72.25)}
    expected |= {"HST": (78.13, 75.99), "GPS": (77.47, 75.18), "RepAdapter": (77.15, 75.02), "Convpass": (76.56, 74.44)}
    alone = {"Adapter+": 77.6, "SSF": 75.69, "FacT": 75.55, "NOAH": 75.48}
    rows = {row.name: row for row in published_rows()}
    assert rows.keys() == expected.keys() | alone.keys()
    for name, (groups, tasks) in expected.items():
        assert rows[name].mean("mean of groups").value == pytest.approx(groups, abs=0.011)
        assert rows[name].mean("mean of 19").value == pytest.approx(tasks, abs=0.011)
    for name, number in alone.items():
        assert rows[name].unclear_mean == number
        assert rows[name].mean("mean of groups") is rows[name].mean("mean of 19") is None
    assert [len(tasks) for tasks in GROUPS.values()] == [7, 4, 8]


def test_published_rows_show_only_what_is_known(tmp_path):
    head, lines, _ = markdown([], published=True)
    known = {name: [head[i] for i, cell in enumerate(cells) if cell != "–"] for name, cells in lines.items()}  # noqa: RUF001
    named = [f"*{name} (published elsewhere)*" for name in ("HST", "NOAH, mean 75.48 of groups or of tasks")]
    assert known[named[0]] == ["method", "backbone", "mean of groups", "mean of 19"]
    assert known[named[1]] == ["method", "backbone"]
    assert lines["*LoRA r8 (q, v) (published elsewhere)*"][:3][1:] == ["ViT-B/16, IN-21k", "0.29M"]
    text, _, _ = table([], "csv", published=True)
    (only,) = [r for r in csv.DictReader(io.StringIO(text)) if r["method"] == "NOAH" and r["accuracy"]]
    assert (only["model"], only["column"]) == ("ViT-B/16, IN-21k", "mean_of_groups_or_of_19")
    assert (only["accuracy"], only["official_split"]) == ("75.4800", "")


def markdown(paths, published=False):
    """(head, per row its cells by the first one, the lines under it) of a table in Markdown."""
    above, _, below = table(list(paths), "markdown", published)[0].partition("\n\n")
    head, _, groups, *rows = [[c.strip() for c in line[1:-1].split(" | ")] for line in above.splitlines()]
    assert groups[3:] == ["Natural"] * 7 + ["Specialized"] * 4 + ["Structured"] * 8 + ["Means"] * 5
    assert {len(row) for row in rows} <= {len(head)}
    return head, {row[0]: row for row in rows}, below


def results(folder, method, accuracies, seeds=(0,), **changes):
    for task, accuracy in accuracies.items():
        for seed in seeds:
            place = folder / task / method / f"seed{seed}"
            place.mkdir(parents=True)
            content = {
                "task": task,
                "method": method,
                "seed": seed,
                "synthetic": False,
                "official_split": True,
                "val_accuracy": 1.0,
                "test_accuracy": accuracy + seed,
                "sizes": {"parameters": {"trained_without_head": 290_000}},
                **changes,
            }
            (place / "result.json").write_text(json.dumps(content))


def test_means_spreads_and_the_best_in_bold(tmp_path):
    results(tmp_path, "dash", dict.fromkeys(TASKS, 60.0), seeds=(0, 1, 2))
    results(tmp_path, "lora", {**dict.fromkeys(TASKS, 50.0), "svhn": 90.0}, seeds=(0, 1, 2))
    head, lines, below = markdown([tmp_path], published=True)
    dash, lora, *others = lines.values()
    assert len(head) == 3 + 19 + 5
    assert "- measured rows: mean ± sample standard deviation over 3 seeds\n" in below
    svhn = head.index("SVHN")
    # Seeds 0, 1, 2 give x, x + 1, x + 2: mean x + 1, sample deviation 1.
    assert dash[head.index("DTD")] == "**61.0** ± 1.0"
    assert lora[head.index("DTD")] == "51.0 ± 1.0"
    assert (dash[svhn], lora[svhn]) == ("61.0 ± 1.0", "**91.0** ± 1.0")
    assert dash[2] == "290,000"
    natural = (6 * 51 + 91) / 7
    assert (
        lora[head.index("natural")] == f"{natural:.1f} ± 1.0"
    )  # every task, and so their mean, rises by 1 with the seed
    assert lora[head.index("mean of groups")] == f"{(natural + 51 + 51) / 3:.1f} ± 1.0"
    assert lora[head.index("mean of 19")] == f"{(18 * 51 + 91) / 19:.1f} ± 1.0"
    assert [row[0] for row in others[:3]] == [f"*{name} (published elsewhere)*" for name in PUBLISHED]
    assert not any("**" in cell for row in others for cell in row)  # never mixed with measured ones


def test_missing_cells_stay_missing(tmp_path):
    results(tmp_path, "dash", {"cifar": 70.0, "mini_count": 99.0})
    results(tmp_path, "lora", {"cifar": 60.0}, test_accuracy=None)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "result.json").write_text('{"task": "ci')
    _, remarks, problems = table([tmp_path], "markdown", published=False)
    row = markdown([tmp_path])[1]["dash"]
    assert row[3] == "70.0"  # nothing to compare with: not bold
    assert row[4:] == ["–"] * 23  # noqa: RUF001
    assert len(problems) == 2
    said = "\n".join(remarks + problems)
    assert "cut" in said
    other, _ = table([tmp_path], "markdown", published=False)[0].split("\n\n")[2:]
    assert [line.split(" | ")[3:] for line in other.splitlines()] == [
        ["mini_count |"],
        ["---: |"],
        ["Other tasks |"],
        ["99.0 |"],
    ]
    assert "no result for caltech101" in said
    assert "lora" in said


@pytest.mark.parametrize("style", ["markdown", "latex", "csv"])
def test_a_table_keeps_what_makes_it_not_comparable(tmp_path, capsys, style):
    official = dict.fromkeys([*GROUPS["natural"], *GROUPS["specialized"]], 60.0)
    results(tmp_path, "lora", {t: a for t, a in official.items() if t != "dtd"}, model="miniature")
    results(tmp_path, "lora", {"dtd": 70.0}, model="miniature", official_split=False)
    results(tmp_path, "dash", {"svhn": 80.0}, model="vit_base_patch16_224")
    assert main(["vtab", str(tmp_path), "--style", style, "-o", str(tmp_path / "t")]) == 0
    text = (tmp_path / "t").read_text()
    if style == "csv":
        rows = {(r["model"], r["column"]): r["official_split"] for r in csv.DictReader(io.StringIO(text))}
        assert {column for (_, column), is_official in rows.items() if is_official == "no"} == {"dtd", "natural"}
        assert rows["miniature", "cifar"] == rows["vit_base_patch16_224", "svhn"] == "yes"
        assert rows["vit_base_patch16_224", "dtd"] == ""  # missing
        return
    mark = {"markdown": "‡", "latex": r"$^\ddagger$"}[style]
    row = next(line for line in text.splitlines() if "miniature" in line and "70.0" in line)
    cells = [cell.strip(" |\\") for cell in row.split("|" if style == "markdown" else "&") if cell.strip()]
    assert cells[:2] == ["lora", "miniature"]
    assert [cell for cell in cells if mark in cell] == [f"70.0{mark}", f"61.4{mark}"]  # (6 * 60 + 70) / 7 = 61.43
    remarks = [line for line in text.splitlines() if line.startswith(("- ", r"\par"))]
    assert sum(f"dtd {mark} not the official split; not comparable" in remark for remark in remarks) == 1
    assert sum("different backbones" in remark for remark in remarks) == 1
    assert sum("no result for cifar, caltech101, dtd" in remark for remark in remarks) == 1  # of dash


def test_seeds_are_counted_where_they_differ(tmp_path):
    results(tmp_path, "lora", dict.fromkeys(GROUPS["natural"], 50.0), seeds=(0, 2))
    results(tmp_path, "lora", dict.fromkeys(GROUPS["specialized"], 50.0), seeds=(0, 1, 2))
    results(tmp_path, "lora", {"cifar": 50.0}, seeds=(4,))
    head, lines, below = markdown([tmp_path])
    row = dict(zip(head, lines["lora"], strict=True))
    # 50, 52 and 54: mean 52, deviation 2. 50 and 52: mean 51, deviation sqrt 2. 50, 51 and 52: mean 51, deviation 1.
    assert (row["Cifar100"], row["DTD"], row["EuroSAT"]) == ("52.0 ± 2.0 (3)", "51.0 ± 1.4 (2)", "51.0 ± 1.0 (3)")
    assert row["natural"] == "51.1"  # (52 + 6 * 51) / 7; its tasks have different seeds
    assert row["specialized"] == "51.0 ± 1.0 (3)"
    assert "in brackets the number of seeds" in below


def test_the_best_is_bold_among_rows_of_one_backbone(tmp_path):
    for method, model, accuracy in (("dash", "a", 50.0), ("lora", "a", 40.0), ("full", "b", 90.0)):
        results(tmp_path, method, {"cifar": accuracy}, model=model)
    cells = {name: row[3] for name, row in markdown([tmp_path])[1].items()}
    assert cells == {"dash": "**50.0**", "lora": "40.0", "full": "90.0"}


def test_numbers_of_another_split_do_not_take_the_bold_from_the_official_ones(tmp_path):
    for method, accuracy, official in (("a", 40.0, True), ("b", 50.0, True), ("c", 90.0, False)):
        results(tmp_path, method, {"cifar": accuracy}, official_split=official)
    for method, accuracy in (("a", 60.0), ("c", 70.0)):
        results(tmp_path, method, {"dtd": accuracy}, official_split=method == "a")
    for method, accuracy in (("a", 10.0), ("c", 20.0)):
        results(tmp_path, method, {"svhn": accuracy}, official_split=False)
    head, lines, _ = markdown([tmp_path])
    column = {name: [row[head.index(name)] for row in lines.values()] for name in ("Cifar100", "DTD", "SVHN")}
    assert column["Cifar100"] == ["40.0", "**50.0**", "90.0‡"]
    assert column["DTD"] == ["60.0", "–", "70.0‡"]  # noqa: RUF001
    assert column["SVHN"] == ["10.0‡", "–", "**20.0**‡"]  # noqa: RUF001


@pytest.mark.parametrize("official", [False, True])
def test_embedded_tasks_have_a_table_of_their_own(tmp_path, official):
    for method, extra in (("lora", 0.0), ("dash", 2.0)):
        results(tmp_path, method, {"mini_count": 40 + extra, "mini_location": 71.5}, seeds=(0, 1), synthetic=True)
        results(tmp_path, method, {"cifar": 50.0} if official else {})
    text, remarks, problems = table([tmp_path], "markdown", published=False)
    assert problems == []
    parts = text.split("\n\n")
    assert len(parts) == (4 if official else 2)
    head, _, over, *rows = [[c.strip(" |") for c in line.split(" | ")] for line in parts[-2].splitlines()]
    assert head == ["method", "backbone", "parameters", "mini_count", "mini_location", "mean of others"]
    assert over[3:] == ["Other tasks", "Other tasks", "Means"]
    # Seeds 0 and 1: x and x + 1, of deviation 0.7. Means: (40.5 + 72) / 2 and (42.5 + 72) / 2.
    assert {row[0]: row[3:] for row in rows} == {
        "lora": ["40.5 ± 0.7‡", "**72.0** ± 0.7‡", "56.2 ± 0.7‡"],
        "dash": ["**42.5** ± 0.7‡", "**72.0** ± 0.7‡", "**57.2** ± 0.7‡"],
    }
    assert sum("mini_count, mini_location ‡ synthetic" in remark for remark in remarks) == 1
    found = list(csv.DictReader(io.StringIO(table([tmp_path], "csv", published=False)[0])))
    embedded = [row for row in found if row["column"] in ("mini_count", "mini_location", "mean_of_others")]
    assert [row["official_split"] for row in embedded] == ["no"] * 6
    assert len(found) == 6 + 48 * official
    latex = table([tmp_path], "latex", published=False)[0]
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1 + official
    assert r"\rotatebox{90}{mini\_count}" in latex
    assert latex.count(r"\ifdim\wd0>\linewidth\resizebox") == 1 + official  # a small table keeps its size of print
    assert latex.count("{") == latex.count("}")


def test_a_compact_table_has_the_measured_columns_alone(tmp_path):
    natural = list(GROUPS["natural"])
    results(tmp_path, "lora", dict.fromkeys([*natural, "kitti"], 50.0))
    results(tmp_path, "dash", dict.fromkeys(natural, 60.0))
    text, remarks, _ = table([tmp_path], "markdown", published=True, compact=True)
    head, _, over, *rows = [[c.strip(" |") for c in line.split(" | ")] for line in text.split("\n\n")[0].splitlines()]
    assert head[3:] == [*(TASKS[task] for task in natural), "KITTI-Dist", "natural"]
    assert over[3:] == ["Natural"] * 7 + ["Structured", "Means"]
    cells = {row[0]: row[3:] for row in rows}
    assert cells["dash"] == [*["**60.0**"] * 7, "–", "**60.0**"]  # noqa: RUF001
    assert cells["lora"] == [*["50.0"] * 8, "50.0"]
    assert cells["*full (published elsewhere)*"][-2:] == ["65.5", "75.9"]
    assert [remark for remark in remarks if "no result" in remark] == [
        "dash: no result for kitti; shown as –, and no mean over them"  # noqa: RUF001
    ]


def test_rows_are_set_against_one_by_task_and_seed(tmp_path, capsys):
    results(tmp_path, "lora", {"cifar": 50.0, "kitti": 70.0, "mini_count": 30.0}, seeds=(0, 1, 2))  # x, x + 1, x + 2
    results(tmp_path, "dash", {"cifar": 52.0, "kitti": 70.5}, seeds=(0, 1))
    results(tmp_path, "dash", {"mini_count": 35.0}, seeds=(2,))
    results(tmp_path, "x100", {"cifar": 51.0, "mini_count": 29.0}, seeds=(0, 1, 2))
    results(tmp_path, "full", {"dtd": 80.0})  # shares nothing
    results(tmp_path, "far", {"cifar": 90.0}, model="another")
    (tmp_path / "cifar/dash/seed1/result.json").write_text(
        (tmp_path / "cifar/dash/seed1/result.json").read_text().replace("53.0", "52.5")
    )
    assert main(["vtab", str(tmp_path), "--against", "lora"]) == 0
    part = capsys.readouterr().out.split("\n\n")[-2]
    head, _, *rows = [[c.strip(" |") for c in line.split(" | ")] for line in part.splitlines()]
    assert head == ["method", "less", "Cifar100", "KITTI-Dist", "mini_count", "pairs", "mean over tasks"]
    # CIFAR-100: 52 - 50 and 52.5 - 51; mini_count, seed 2: 37 - 32. Of the tasks' means t = 4.303 (two degrees of
    # freedom); two tasks have no interval.
    gaps = [1.75, 0.5, 5.0]
    half = 4.303 * statistics.stdev(gaps) / 3**0.5
    mean = statistics.fmean(gaps)
    whole = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
    nothing = "–"  # noqa: RUF001
    assert sorted(rows) == [
        ["dash", "lora", "+1.75 (+1.50 to +2.00)", "+0.50 (+0.50 to +0.50)", "+5.00", "5", whole],
        ["x100", "lora", "+1.00 (+1.00 to +1.00)", nothing, "-1.00 (-1.00 to -1.00)", "6", "+0.00"],
    ]
    assert main(["vtab", str(tmp_path), "--against", "lora", "--style", "latex"]) == 0
    part = capsys.readouterr().out.split(r"\begin{tabular}")[-1]
    whole = whole.replace("-", "$-$")
    assert rf"dash & lora & +1.75 (+1.50 to +2.00) & +0.50 (+0.50 to +0.50) & +5.00 & 5 & {whole} \\" in part
    assert r"method & less & Cifar100 & KITTI-Dist & mini\_count & pairs & mean over tasks \\" in part
    for words, sentence in (
        (["--against", "peft"], "--against is peft, which no row is called; the rows are"),
        (["--against", "full"], "no other row shares a backbone, a task and a seed with full"),
        (["--against", "lora", "--style", "csv"], "--against is a second table, which one CSV does not hold"),
    ):
        assert main(["vtab", str(tmp_path), *words]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1


def test_differences_pair_like_with_like(tmp_path, capsys):
    """Rows are called what their tables call them; another split or backbone is no pair."""
    for method, gain in (("lora", 0.0), ("dash", 1.0)):
        results(tmp_path, method, {"cifar": 50.0 + gain}, model="vit", arguments={"method": method, "epochs": 100})
        small = {"model": "mini", "arguments": {"method": method, "epochs": 16}, "synthetic": True}
        results(tmp_path, method, {"mini_count": 30.0 + 2 * gain}, **small)
    results(tmp_path, "lora", {"dtd": 40.0}, model="vit", arguments={"method": "lora", "epochs": 100})
    dtd = {"model": "vit", "arguments": {"method": "dash", "epochs": 100}, "official_split": False}
    results(tmp_path, "dash", {"dtd": 90.0}, **dtd)
    assert main(["vtab", str(tmp_path), "--against", "lora"]) == 0
    part = capsys.readouterr().out.split("\n\n")[-2]
    rows = [[c.strip(" |") for c in line.split(" | ")] for line in part.splitlines()[2:]]
    nothing = "–"  # noqa: RUF001
    assert sorted(rows) == [
        ["dash", "lora", "+1.00", nothing, nothing, "1", "+1.00"],
        ["dash", "lora", nothing, nothing, "+2.00", "1", "+2.00"],
    ]


def test_what_several_rows_lack_is_said_once(tmp_path):
    for method in ("dash", "lora"):
        results(tmp_path, method, {"cifar": 50.0}, official_split=False)
    _, remarks, _ = table([tmp_path], "markdown", published=False)
    assert [remark.partition(":")[0] for remark in remarks[1:]] == ["dash; lora", "dash; lora"]


def test_sizes_of_small_models_differ(tmp_path):
    for method, count in (("lora", 65_536), ("dash", 65_664)):
        results(tmp_path, method, {"cifar": 50.0}, sizes={"parameters": {"trained_without_head": count}})
    assert [row[2] for row in markdown([tmp_path])[1].values()] == ["65,664", "65,536"]
    text, _, _ = table([tmp_path], "csv", published=False)
    assert {r["parameters"] for r in csv.DictReader(io.StringIO(text))} == {"65664", "65536"}


def test_odd_names_break_neither_markdown_nor_latex(tmp_path):
    name = r"a|b $^{}\~_&%#*"
    results(tmp_path, name, {"cifar": 50.0})
    row = table([tmp_path], "markdown", published=False)[0].splitlines()[3]
    assert row.startswith(r"| a\|b $^{}\\~_&%#\* | ")
    row = next(line for line in table([tmp_path], "latex", published=False)[0].splitlines() if "50.0" in line)
    escaped = r"a\textbar{}b \$\textasciicircum{}\{\}\textbackslash{}\textasciitilde{}\_\&\%\#*"
    assert row.startswith(escaped + " & ")


def rows_of(*paths):
    """(per row its name and accuracies of CIFAR-100 and DTD, every problem) of a table as CSV."""
    text, _, problems = table(list(paths), "csv", published=False)
    lines = list(csv.DictReader(io.StringIO(text)))
    cells = {(line["method"], line["column"]): line["accuracy"] for line in lines}
    names = dict.fromkeys(line["method"] for line in lines)
    numbers = {n: [float(cells[n, t]) if cells[n, t] else None for t in ("cifar", "dtd")] for n in names}
    return numbers, problems


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {"model": "orig_in21k", "arguments": {"method": "lora", "rank": 64}},
            "lora (orig_in21k, rank 64)",
        ),
        ({"model": "orig_in21k", "arguments": {"method": "lora", "rank": 4}}, "lora (orig_in21k)"),
        ({"normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "lora (normalization none)"),
        ({"arguments": {"method": "lora", "rank": 4, "image_size": 384}}, "lora (image_size 384)"),
        ({"arguments": {"method": "lora", "rank": 4, "checkpoint": "w.npz"}}, "lora (checkpoint w.npz)"),
        ({"arguments": {"method": "lora", "rank": 4, "epochs": 10}}, "lora (epochs 10)"),
        ({"official_split": False}, "lora (other data)"),
        ({"sizes": {"images": {"test": 500}}}, "lora (other data)"),
    ],
)
def test_what_is_not_comparable_is_never_averaged(tmp_path, changes, name):
    same = {
        "model": "augreg_in21k",
        "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "arguments": {"method": "lora", "rank": 4},
        "sizes": {"images": {"test": 10000}},
    }
    results(tmp_path / "a", "lora", {"cifar": 90.0}, **same)
    results(tmp_path / "b", "lora", {"cifar": 80.0}, **{**same, **changes})
    numbers, problems = rows_of(tmp_path)
    assert list(numbers.values()) == [[90.0, None], [80.0, None]]
    assert list(numbers)[1] == name
    assert problems == []


def test_what_changes_nothing_about_a_result_makes_no_row(tmp_path):
    same = {"model": "m", "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    a = {"method": "lora", "rank": 4, "dash_k": 8, "alpha": None, "normalization": "checkpoint", "dropout": 0.0}
    b = {"method": "lora", "rank": 4, "dash_k": 2, "alpha": 4.0, "normalization": "half", "dropout": 0.0, "search": []}
    results(tmp_path, "lora", {"cifar": 70.0}, seeds=(0,), arguments={**a, "task": "cifar", "seed": 0}, **same)
    results(tmp_path, "lora", {"cifar": 70.0}, seeds=(2,), arguments={**b, "task": "cifar", "seed": 2}, **same)
    assert rows_of(tmp_path) == ({"lora": [71.0, None]}, [])  # 70 and 72


def test_a_file_given_twice_counts_once(tmp_path):
    results(tmp_path, "lora", {"cifar": 70.0})
    (file,) = tmp_path.rglob("result.json")
    (tmp_path / "link").symlink_to(file.parent)
    text, _, problems = table([file, tmp_path, file.parent, tmp_path / "link"], "csv", published=False)
    assert problems == []
    assert next(csv.DictReader(io.StringIO(text)))["seeds"] == "1"


def test_two_files_of_one_run_are_named_and_not_averaged(tmp_path, capsys):
    results(tmp_path / "a", "lora", {"cifar": 70.0})
    results(tmp_path / "b", "lora", {"cifar": 80.0})
    assert main(["vtab", str(tmp_path)]) == 1
    said = capsys.readouterr()
    first, second = sorted(tmp_path.rglob("result.json"))
    assert said.err.count("\n") == said.err.count(f"{second} is of the same run as {first}") + said.err.count("note:")
    assert rows_of(tmp_path)[0] == {"lora": [70.0, None]}


@pytest.mark.parametrize("accuracy", [float("nan"), float("inf"), -1.0, 100.5, 10**400, "x"])
def test_an_impossible_accuracy_is_a_broken_result(tmp_path, capsys, accuracy):
    results(tmp_path, "dash", {"cifar": 70.0})
    results(tmp_path / "odd", "dash", {"dtd": 0.0}, test_accuracy=accuracy)
    assert main(["vtab", str(tmp_path)]) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert str(tmp_path / "odd" / "dtd") in said
    assert rows_of(tmp_path)[0] == {"dash": [70.0, None]}


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": {"parameters": {"trained_without_head": 10**400}}},
        {"sizes": {"images": {"test": []}}},
        {"arguments": 7},
        {"arguments": {"peft": [1]}},
        {"normalization": {"mean": [[0]], "std": 1}},
        {"task": "cifar\x1b[31m"},
        {"seed": 1.5},
    ],
)
def test_a_malformed_result_costs_itself_only(tmp_path, changes):
    results(tmp_path, "dash", {"cifar": 70.0})
    results(tmp_path / "odd", "dash", {"dtd": 50.0}, **changes)
    numbers, (said,) = rows_of(tmp_path)
    assert numbers == {"dash": [70.0, None]}
    assert str(tmp_path / "odd" / "dtd") in said


def test_a_bad_path_costs_itself_only(tmp_path, capsys):
    results(tmp_path / "good", "dash", {"cifar": 70.0})
    (tmp_path / "empty").mkdir()
    assert main(["vtab", *(str(tmp_path / name) for name in ("none", "good", "empty"))]) == 1
    said = capsys.readouterr()
    assert "70.0" in said.out
    assert f"error: left out: there is nothing at {tmp_path / 'none'}" in said.err
    assert f"error: left out: {tmp_path / 'empty'} holds no result.json" in said.err


def test_runs_of_validation_only_are_named_as_such(tmp_path, capsys):
    results(tmp_path, "dash", {"cifar": 70.0}, test_accuracy=None)
    (file,) = tmp_path.rglob("result.json")
    file = file.rename(file.with_name("val_result.json"))
    for path in (tmp_path, file):
        assert main(["vtab", str(path)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert f"{file} is of validation only; the table takes test accuracies" in said
    results(tmp_path / "good", "dash", {"cifar": 70.0})
    assert main(["vtab", str(tmp_path)]) == 1
    assert "of validation only" in capsys.readouterr().err
    (file.parent / "result.json").write_text((next((tmp_path / "good").rglob("result.json"))).read_text())
    assert main(["vtab", str(file.parent)]) == 0  # finished since: its test result counts


def test_csv_and_latex(tmp_path, capsys):
    results(tmp_path, "my_method", {"cifar": 70.25}, seeds=(0, 1))
    text, _, _ = table([tmp_path], "csv", published=False)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 24
    assert rows[0] == {
        "method": "my_method",
        "model": "",
        "published": "no",
        "official_split": "yes",
        "parameters": "290000",
        "column": "cifar",
        "accuracy": "70.7500",
        "deviation": "0.7071",
        "seeds": "2",
        "before_launch": "",
    }
    assert main(["vtab", str(tmp_path), "--style", "latex", "--published", "-o", str(tmp_path / "t.tex")]) == 0
    latex = (tmp_path / "t.tex").read_text()
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and "&" in line and "multicolumn" not in line]
    assert {line.count(" & ") for line in body} == {26}
    assert r"\sbox0{%" in latex  # 27 columns are wider than a page, and are made smaller
    assert latex.count("{") == latex.count("}")
    assert r"my\_method" in latex
    assert r"full$^\dagger$ & ViT-B/16, IN-21k" in latex
    assert r"{\footnotesize\raggedright $^\dagger$ published elsewhere, not measured here" in latex
    assert not any("%" in line.replace("{%", "").replace("3pt}%", "") for line in latex.splitlines()[1:])  # no comment


def test_a_broken_result_costs_the_exit_status_and_not_the_table(tmp_path, capsys):
    results(tmp_path, "dash", {"cifar": 70.0})
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "result.json").write_text('{"task": "ci')
    assert main(["vtab", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "70.0" in said.out
    assert sum("cut" in line for line in said.err.splitlines()) == 1


def test_tables_of_nothing_are_one_sentence(tmp_path, capsys):
    assert main(["vtab", str(tmp_path / "none")]) == 2
    assert main(["vtab", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
