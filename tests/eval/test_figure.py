"""The figure of samples: its layout, its repeatability and its names."""

import io
import json

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageStat

from eval.__main__ import main
from eval.figure.page import GAP, MARGIN, ROOM, TILE, Sampled, collage, draw
from tests.support.dreambooth import settings, train
from tests.support.eval import figure_of


def test_the_figure_has_the_paper_s_layout(runs, tmp_path, capsys):
    assert figure_of(runs, tmp_path / "a.png", "lora", "still", "dash") == 0
    assert "seed 0" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as page:
        story = json.loads(page.text["dash-vision"])
        pixels = page.convert("RGB")
    assert story["seed"] == 0
    assert story["blocks"][0]["prompts"] == ["a photo of sks cat", "a sks cat in the snow"]
    assert list(story["blocks"][0]["adapters"]) == ["lora", "still", "dash"]
    pair = 4 * TILE + 3 * GAP  # the base, and three methods
    assert pixels.width == 2 * MARGIN + TILE + 2 * ROOM - ROOM + 2 * pair + ROOM

    def tile(prompt, method):
        x = MARGIN + TILE + ROOM + prompt * (pair + ROOM) + method * (TILE + GAP)
        return pixels.crop((x, MARGIN, x + TILE, MARGIN + TILE - 27))  # without the method's name

    for prompt in (0, 1):
        # lora and still have learned nothing: equal tiles mean equal noise and equal prompts.
        assert tile(prompt, 1).tobytes() == tile(prompt, 2).tobytes()
        assert tile(prompt, 1).tobytes() != tile(prompt, 3).tobytes()
        # They draw what the base does, whose tile comes first.
        assert tile(prompt, 0).tobytes() == tile(prompt, 1).tobytes()
    assert tile(0, 0).tobytes() != tile(1, 0).tobytes()


def test_figures_repeat_themselves_and_seeds_differ(runs, tmp_path):
    for name, extra in (("a", []), ("b", []), ("c", ["--seed", "1"])):
        words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", *extra]
        assert main([*words, "--prompts", "a {}", "-o", str(tmp_path / f"{name}.png")]) == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_half_precision_draws_nearly_the_same(runs, tmp_path):
    pages = {}
    for dtype in ("float32", "bfloat16"):
        words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", "--dtype", dtype]
        assert main([*words, "--prompts", "a {}", "-o", str(tmp_path / f"{dtype}.png")]) == 0
        with Image.open(tmp_path / f"{dtype}.png") as page:
            assert json.loads(page.text["dash-vision"])["blocks"][0]["dtype"] == dtype
            pages[dtype] = page.convert("RGB").crop((0, 0, page.width, MARGIN + TILE))
    difference = ImageChops.difference(*pages.values())
    assert 0 < ImageStat.Stat(difference).rms[0] < 8


def test_adapters_of_other_layers_of_one_base_are_compared(runs, tmp_path, capsys):
    few = {"max_train_steps": 2, "prelaunch_steps": 1, "num_inference_steps": 2}
    for name, target in (("query", ["to_q"]), ("key", ["to_k"])):  # one of the attention's layers, and another
        train(settings(runs, tmp_path / name, lora_target=target, **few))
    words = ["figure", "--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}"]
    words += [w for name in ("query", "key") for w in ("--adapter", f"{name}={tmp_path / name}")]
    assert main([*words, "--prompts", "a {}", "-o", str(tmp_path / "a.png")]) == 0
    words += ["--adapter", f"other={runs / 'other'}"]
    assert main([*words, "--prompts", "a {}", "-o", str(tmp_path / "b.png")]) == 2
    assert "different bases" in capsys.readouterr().err


def test_subjects_stack_and_pdf_is_written(runs, tmp_path):
    words = []
    for _ in range(2):
        words += ["--subject", str(runs / "cat"), "--adapter", f"dash={runs / 'dash'}", "--prompts", "a {}"]
    assert main(["figure", *words, "-o", str(tmp_path / "two.png")]) == 0
    assert main(["figure", *words[: len(words) // 2], "-o", str(tmp_path / "one.png")]) == 0
    assert main(["figure", *words, "-o", str(tmp_path / "two.pdf")]) == 0
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


def test_a_footer_says_the_settings_of_every_tile(runs, tmp_path, monkeypatch):
    written = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda c, place, text, **o: written.append(text) or original(c, place, text, **o)
    )
    assert figure_of(runs, tmp_path / "a.png", "lora", "dash") == 0
    said = " ".join(written)
    record = json.loads((runs / "dash/run.json").read_text())
    rank, k = (record["arguments"][name] for name in ("rank", "dash_k"))
    assert f"lora: LoRA, rank {rank}, 2 training steps." in said
    assert f"dash: LoRA-Dash, rank {rank}, k = {k}, 2 training steps." in said
    assert "base: sd, without an adapter." in said
    assert "16 x 16 pixels, 2 sampling steps, guidance 7.5, seed 0" in said


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 9, 12])
def test_a_collage_shows_every_picture_up_to_nine(count):
    colours = [(20 * i + 5, 200 - 9 * i, 3 * i) for i in range(count)]
    square = collage([Image.new("RGB", (8, 6), c) for c in colours], 256)
    assert square.size == (256, 256)
    seen = {colour for _, colour in square.getcolors(1 << 16)}
    assert set(colours[:9]) <= seen
    assert not set(colours[9:]) & seen
