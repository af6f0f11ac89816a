"""What the pages of finished runs show, against what lies in their folders."""

import dataclasses
import io
import json

import pytest
from PIL import Image

from dash_vision.drawing.sheet import Row, draw_sheet
from dash_vision.runs.evaluation import Evaluated, Evaluation, Recommendation, write_evaluation
from dash_vision.studio import launching
from dash_vision.studio.showing import duration
from tests.support.records import dreambooth_record
from tests.support.studio import stopped_run

PROMPTS = ["a photo of sks cat", "a sks cat in the snow"]
COLOURS = {"base": ["#ff0000", "#00ff00"], "trained": ["#0000ff", "#ffff00"]}
FILES = ("pytorch_lora_weights.safetensors", "dash_adapter.safetensors", "README.md", "kohya/one.safetensors")


def picture(colour):
    return Image.new("RGB", (16, 16), colour)


def finished_run(folder, method="dash", arguments=(), **changes):
    """What a finished run leaves, of few bytes."""
    dash_k = 8 if method == "dash" else 0
    changed = {**dreambooth_record()["arguments"], "dash_k": dash_k, **dict(arguments)}
    record = dreambooth_record(method=method, validation_prompts=PROMPTS, arguments=changed, **changes)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    inputs = Row("input", "", [picture("#888888")] * 4)
    rows = [Row(name, "", [picture(colour) for colour in colours]) for name, colours in COLOURS.items()]
    draw_sheet(inputs, PROMPTS, rows, "sks cat", "").save(folder / "samples.png")
    (folder / "kohya").mkdir()
    for name in FILES:
        (folder / name).write_bytes(name.encode() * 10)
    return folder


def test_a_tile_is_the_picture_that_was_put_into_the_sheet(page):
    finished_run(page.runs / "one")
    for row, colours in COLOURS.items():
        for column, colour in enumerate(colours):
            status, headers, content = page.ask(f"/runs/one/tile/{row}/{column}")
            assert (status, headers["content-type"]) == (200, "image/png")
            with Image.open(io.BytesIO(content)) as shown:
                assert shown.getcolors() == [(shown.width * shown.height, picture(colour).getpixel((0, 0)))]
    for address in ("trained/2", "other/0", "trained/99999"):
        assert page.ask(f"/runs/one/tile/{address}")[0] == 404
    text = page.text("/runs/one")
    for prompt in PROMPTS:
        assert f'alt="{prompt}"' in text


def test_a_sheet_drawn_on_the_way_is_shown_picture_by_picture(page):
    run = stopped_run(page.runs / "one")
    (run / "validation").mkdir()
    inputs = Row("input", "", [picture("#888888")] * 2)
    rows = [Row("dash", "", [picture(colour) for colour in COLOURS["trained"]])]
    draw_sheet(inputs, PROMPTS, rows, "sks cat", "").save(run / "validation" / "step-000040.png")
    with open(run / "journal.jsonl", "a") as file:
        for line in ({"prompts": PROMPTS}, {"picture": "validation/step-000040.png"}):
            file.write(json.dumps({"time": 1.0, **line}) + "\n")
    latest = json.loads(page.ask("/runs/one/state")[2])["latest"]
    assert latest["words"] == "What it draws after step 40"
    assert [told["prompt"] for told in latest["pictures"]] == PROMPTS
    for told, colour in zip(latest["pictures"], COLOURS["trained"], strict=True):
        with Image.open(io.BytesIO(page.ask(told["address"])[2])) as shown:
            assert shown.getpixel((5, 5)) == picture(colour).getpixel((0, 0))


def test_the_files_to_take_away_are_those_of_the_folder(page):
    folder = finished_run(page.runs / "my run")
    for key, name in zip(("diffusers", "native", "card", "others"), FILES, strict=True):
        status, headers, content = page.ask(f"/runs/my%20run/file/{key}")
        assert (status, content) == (200, (folder / name).read_bytes())
        assert headers["content-disposition"].startswith("attachment")
        assert headers["content-type"] == "application/octet-stream"
    (folder / "dash_adapter.safetensors").unlink()
    (folder / "dash_adapter.safetensors").symlink_to("/etc/passwd")
    assert page.ask("/runs/my%20run/file/native")[0] == 404
    assert page.ask("/runs/my%20run/file/run.json")[0] == 404


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"seed": 1}, "from other noise"),
        ({"instance_digest": "f" * 16}, "other pictures"),
        ({"instance_prompt": "a photo of sks dog"}, "other pictures"),
        ({"arguments": {"guidance_scale": 3.0}}, "from other noise"),
        ({"arguments": {"num_inference_steps": 3}}, "from other noise"),
    ],
)
def test_two_runs_share_a_slider_only_where_their_noise_and_subject_are_the_same(page, changes, reason):
    finished_run(page.runs / "dash")
    finished_run(page.runs / "lora", "lora", **changes)
    text = page.text("/compare?a=lora&b=dash")
    assert ("no fair pair" in text) == (reason is not None)
    assert ('class="viewer"' in text) == (reason is None)
    assert reason is None or reason in text
    three = page.text("/runs/dash")
    assert ("LoRA (lora)" in three) == (reason is None)


def test_the_settings_that_differ_are_listed_and_no_others(page):
    finished_run(page.runs / "dash")
    finished_run(page.runs / "lora", "lora", steps=2, arguments={"rank": 1, "output_dir": "elsewhere"})
    rows = page.text("/compare?a=lora&b=dash").split("<tbody>")[1].split("</tbody>")[0].split("<tr>")[1:]
    names = [row.split('<th scope="row">')[1].split("</th>")[0] for row in rows]
    assert names == ["steps made", "dash_k"]
    assert "<td>0</td><td>8</td>" in rows[1]


def test_the_other_run_is_the_same_command_with_plain_lora(page, monkeypatch):
    given = []
    monkeypatch.setattr(page.studio.trainings, "start", lambda folder, words, directory=None: given.append(words))
    folder = finished_run(page.runs / "one", steps=3)
    words = ["--instance_data_dir", "x", "--rank", "2", "--dash_k", "4", "--dash_lr", "1", "--num_train_epochs", "2"]
    stopped = stopped_run(page.runs / "told", words=[*words, "--output_dir", str(folder)])
    (folder / "journal.jsonl").write_bytes((stopped / "journal.jsonl").read_bytes())
    status, answer = page.send("/runs/one/lora")
    assert (status, answer) == (200, {"address": "/runs/one-lora"})
    output = str(page.runs / "one-lora")
    assert given == [[*words[:4], "--dash_k", "0", "--output_dir", output, "--max_train_steps", "3"]]


def measured(recommended=20):
    checkpoints = [
        Evaluated(0, None, {"likeness": [0.2, 0.4], "drift": [-0.0001]}),
        Evaluated(20, "adapters/one-000020", {"likeness": [0.6, 0.8], "drift": [0.1]}),
    ]
    chosen = Recommendation(recommended, "balanced", [], "a rule", "Step 20 & no other is recommended.")
    return Evaluation(["a.png"], ["a cat"], "cat", 20, {"likeness": "a ViT"}, {}, {}, checkpoints, chosen)


def test_what_was_measured_is_shown_with_the_recommendation(page):
    run = stopped_run(page.runs / "one")
    write_evaluation(run / "evaluation.json", measured())
    table = json.loads(page.ask("/runs/one/state")[2])["measured"]
    assert "<td>0.300</td><td>0.000</td>" in table  # the mean of 0.2 and 0.4, and no minus before a zero
    assert "step 20 · recommended" in table
    assert table.count("<svg") == 3
    folder = finished_run(page.runs / "two")
    write_evaluation(folder / "evaluation.json", measured())
    (folder / "adapters" / "two-000020").mkdir(parents=True)
    (folder / "adapters" / "two-20-copy").mkdir()  # a user's own
    text = page.text("/runs/two")
    assert "Step 20 &amp; no other is recommended." in text
    assert '<option value="20">step 20</option>' in text


def test_a_step_that_was_taken_is_told_beside_pictures_of_the_last(page):
    evaluation = dataclasses.replace(measured(), applied=20)
    finished_run(page.runs / "one", evaluation=dataclasses.asdict(evaluation))
    text = page.text("/runs/one")
    assert "The files of this run are those of step 20 now" in text
    assert "The slider and the sheet of samples show the last step." in text


def test_comparing_and_taking_a_checkpoint_is_the_command_of_eval(page, monkeypatch):
    given = []

    def popen(words, output, folder=None):
        given.append(words)
        raise OSError("not started")

    monkeypatch.setattr(launching, "_popen", popen)
    folder = finished_run(page.runs / "one")
    for form in ({}, {"step": "20"}):
        page.ask("/runs/one/checkpoints", "POST", json.dumps(form))
    assert given == [
        ["eval", "checkpoints", str(folder)],
        ["eval", "checkpoints", str(folder), "--apply", "20"],
    ]
    for step in ("x", "--apply", "-1", "1e99"):
        status, answer = page.send("/runs/one/checkpoints", step=step)
        assert (status, answer["error"].startswith("the step is")) == (400, True)


def test_pictures_of_the_prompt_box_are_found_again(page):
    folder = finished_run(page.runs / "one")
    batch = folder / "drawn" / "20260101-000000"
    batch.mkdir(parents=True)
    picture("#123456").save(batch / "000-00.png")
    (batch / "drawn.json").write_text(json.dumps({"prompt": "a <b>cat</b>", "how": "strength 1"}))
    (folder / "drawn" / "broken").mkdir()
    (folder / "drawn" / "broken" / "drawn.json").write_text("{")
    text = page.text("/runs/one")
    assert 'alt="a &lt;b&gt;cat&lt;/b&gt;, strength 1"' in text
    assert page.ask("/runs/one/drawn/20260101-000000/000-00.png")[2] == (batch / "000-00.png").read_bytes()
    for name in ("drawn.json", "..%2f..%2frun.json", "000-01.png"):
        assert page.ask(f"/runs/one/drawn/20260101-000000/{name}")[0] == 404
    assert page.ask("/runs/one/drawn/../run.json")[0] == 404


def test_a_report_can_do_nothing_on_the_page(page):
    (page.runs / "reports").mkdir()
    (page.runs / "reports" / "a--b.html").write_text("<script>1</script>")
    status, headers, _ = page.ask("/reports/a--b.html")
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert "connect-src" not in policy
    assert "default-src 'none'" in policy
    assert "allow-same-origin" not in policy


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3600, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_times_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
