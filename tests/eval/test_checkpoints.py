"""The adapters that a run kept, compared: eval checkpoints."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dash_vision.__main__ import main as dash_vision
from dash_vision.files.atomic import FolderLock
from dash_vision.files.errors import InputError
from dash_vision.measures.choice import recommend
from dash_vision.runs.evaluation import compared, read_evaluation
from dash_vision.runs.record import read_record
from eval.__main__ import main
from eval.checkpoints.apply import applying
from eval.checkpoints.found import find_checkpoints, held_out
from eval.runs import read_run
from tests.support.dreambooth import settings, train

SHEET = ("--prompts", "a {} in the snow", "--num_inference_steps", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def shown(measured, tmp_path_factory):
    """A copy of the measured run, and what the command wrote beside it."""
    root = tmp_path_factory.mktemp("shown")
    shutil.copytree(measured, root / "out")
    assert main(["checkpoints", str(root / "out"), *SHEET]) == 0
    return root / "out"


def adapter(folder):
    """The native file, whose bytes are always the same, and the tensors of the plain LoRA."""
    return (folder / "dash_adapter.safetensors").read_bytes(), load_file(folder / "pytorch_lora_weights.safetensors")


def same(found, expected):
    tensors = found[1].keys() == expected[1].keys() and all(torch.equal(found[1][k], expected[1][k]) for k in found[1])
    return found[0] == expected[0] and tensors


def test_what_the_run_measured_is_taken_as_it_is(shown, measured):
    recorded = read_record(measured / "run.json").evaluation
    found = read_evaluation(shown / "checkpoints/checkpoints.json")
    assert found.checkpoints == recorded.checkpoints
    assert found.recommended == recorded.recommended == recommend(recorded, "balanced")
    table = (shown / "checkpoints/checkpoints.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:7]] == ["0", "2", "4", "6", "8"]
    assert "ViT of the miniature" in table
    assert recorded.recommended.sentence in table


def test_a_checkpoint_that_was_not_measured_is_measured_to_the_same_values(shown, tmp_path):
    """By the stock pipeline with the adapter's file, instead of the network that was trained."""
    folder = tmp_path / "out"
    shutil.copytree(shown, folder)
    record = json.loads((folder / "run.json").read_text())
    kept = [one for one in record["evaluation"]["checkpoints"] if one["step"] != 6]
    missing = next(one for one in record["evaluation"]["checkpoints"] if one["step"] == 6)
    record["evaluation"]["checkpoints"] = kept
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "checkpoints/checkpoints.json").unlink()
    assert main(["checkpoints", str(folder), *SHEET]) == 0
    found = read_evaluation(folder / "checkpoints/checkpoints.json")
    measured = next(one for one in found.checkpoints if one.step == 6)
    for name in ("likeness", "adherence", "drift", "leak"):
        assert measured.values[name] == pytest.approx(missing["values"][name], abs=2e-3)
    # Another adapter in its place is measured anew.
    steps = {one.step: one.folder for one in find_checkpoints(read_run(folder))}
    shutil.copy(steps[4] / "pytorch_lora_weights.safetensors", steps[6])
    assert main(["checkpoints", str(folder), *SHEET]) == 0
    found = {one.step: one for one in read_evaluation(folder / "checkpoints/checkpoints.json").checkpoints}
    for name in ("likeness", "drift"):
        assert found[6].values[name] == pytest.approx(found[4].values[name], abs=2e-3)


def test_other_pictures_of_the_same_names_are_measured_anew(shown, bases, tmp_path):
    recorded = read_record(shown / "run.json").evaluation
    shutil.copytree(bases / "cat", tmp_path / "cat")
    for path in list((tmp_path / "cat").iterdir()):
        if path.suffix == ".png" and path.name not in recorded.heldout:
            path.unlink()
    for name in recorded.heldout:
        Image.new("RGB", (80, 80), "orange").save(tmp_path / "cat" / name)
    words = ["--holdout", str(tmp_path / "cat"), "-o", str(tmp_path / "found"), *SHEET]
    assert main(["checkpoints", str(shown), *words]) == 0
    found = read_evaluation(tmp_path / "found/checkpoints.json")
    assert (found.heldout, found.captions) == (recorded.heldout, recorded.captions)
    for now, before in zip(found.trained, recorded.trained, strict=True):
        assert now.values["likeness"] != pytest.approx(before.values["likeness"], abs=1e-3)
        assert now.values["drift"] == pytest.approx(before.values["drift"], abs=1e-4)


def test_without_an_encoder_the_pictures_are_shown_and_nothing_is_recommended(shown, tmp_path, capsys):
    words = ["checkpoints", str(shown), *SHEET, "-o", str(tmp_path / "out"), "--eval_encoders", str(tmp_path)]
    assert main(words) == 1
    assert "left out: cannot load the encoder" in capsys.readouterr().err
    evaluation = read_evaluation(tmp_path / "out/checkpoints.json")
    assert evaluation.recommended is None
    assert [one.step for one in evaluation.checkpoints] == [0, 2, 4, 6, 8]
    assert (tmp_path / "out/checkpoints.png").is_file()
    assert main([*words, "--apply"]) == 2
    assert "leave -o out" in capsys.readouterr().err
    assert main(["checkpoints", str(shown), *SHEET, "--eval_encoders", str(tmp_path), "--apply"]) == 2
    assert "nothing is recommended" in capsys.readouterr().err


def test_pictures_are_drawn_once(shown, monkeypatch):
    def never(*arguments):
        raise AssertionError("something was loaded or drawn again")

    monkeypatch.setattr("eval.sampling.find_encoders", never)

    monkeypatch.setattr("eval.sampling.generate", never)
    assert main(["checkpoints", str(shown), *SHEET]) == 0
    assert len(list((shown / "checkpoints/pictures").iterdir())) == 5  # the base and four checkpoints, one prompt
    with Image.open(shown / "checkpoints/checkpoints.png") as page:
        assert json.loads(page.text["dash-vision"])["prompts"] == ["a sks cat in the snow"]


def applied_in(folder):
    """The steps that the table of checkpoints marks as applied, and the one that checkpoints.json names."""
    lines = (folder / "checkpoints/checkpoints.md").read_text().splitlines()
    marked = [int(line.split("|")[1]) for line in lines if "applied" in line]
    return marked, read_evaluation(folder / "checkpoints/checkpoints.json").applied


def test_apply_puts_the_adapter_of_a_step_in_place_and_back(shown, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(shown, folder)
    last, kohya = adapter(folder), next((folder / "kohya").iterdir())
    before = ("", load_file(kohya))
    steps = {one.step: one.folder for one in find_checkpoints(read_run(folder))}
    assert main(["checkpoints", str(folder), *SHEET, "--apply", "4"]) == 0
    assert same(adapter(folder), adapter(steps[4]))
    assert not same(adapter(folder), last)
    assert [path.name for path in (folder / "kohya").iterdir()] == [kohya.name]
    assert not same(("", load_file(kohya)), before)
    assert read_record(folder / "run.json").evaluation.applied == 4
    assert "| adapter | of step 4" in (folder / "README.md").read_text()
    assert applied_in(folder) == ([4], 4)
    assert read_run(folder).steps_of_adapter == 4
    assert main(["checkpoints", str(folder), *SHEET, "--apply", "8"]) == 0
    assert same(adapter(folder), last)
    assert same(("", load_file(kohya)), before)
    assert read_record(folder / "run.json").evaluation.applied is None
    assert "| adapter |" not in (folder / "README.md").read_text()
    assert applied_in(folder) == ([], None)
    assert read_run(folder).steps_of_adapter == 8
    assert main(["checkpoints", str(folder), *SHEET, "--prefer", "likeness", "--apply"]) == 0
    evaluation = read_evaluation(folder / "checkpoints/checkpoints.json")
    assert same(adapter(folder), adapter(steps[evaluation.recommended.step]))
    assert f"step {evaluation.recommended.step} is the adapter" in capsys.readouterr().out


def put(folder, step):
    """--apply of a step without the drawing; the sentence that it says."""
    run = read_run(folder, torn=True)
    with applying(run, find_checkpoints(run), run.record.evaluation, step) as told:
        pass
    return told


def test_apply_never_takes_an_earlier_adapter_for_the_last_one(measured, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(measured, folder)
    steps = {one.step: one.folder for one in find_checkpoints(read_run(folder))}
    put(folder, 4)
    applied = adapter(folder)
    shutil.rmtree(steps[8])
    shutil.rmtree(steps[4])
    assert put(folder, 6).endswith("step 8 is not kept any more.")
    kept = {one.step: one.folder for one in find_checkpoints(read_run(folder))}
    assert sorted(kept) == [2, 4, 6]  # none of step 8, and that of step 4 was there alone
    assert same(adapter(kept[4]), applied)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda kept: (kept[4] / "dash_adapter.safetensors").unlink(), "has no dash_adapter.safetensors any more"),
        (lambda kept: shutil.rmtree(kept[4] / "kohya"), "has no kohya any more"),
        (lambda kept: (kept[4] / "pytorch_lora_weights.safetensors").write_bytes(b"{}"), "no complete .safetensors"),
        (lambda kept: shutil.copy(kept[6] / "dash_adapter.safetensors", kept[4]), "is of step 6"),
    ],
)
def test_apply_refuses_a_kept_adapter_that_is_not_whole(measured, tmp_path, harm, said):
    folder = tmp_path / "out"
    shutil.copytree(measured, folder)
    before = adapter(folder)
    harm({one.step: one.folder for one in find_checkpoints(read_run(folder))})
    with pytest.raises(InputError, match=said):
        put(folder, 4)
    assert same(adapter(folder), before)
    assert read_run(folder).steps_of_adapter == 8


def test_apply_keeps_the_formats_of_the_last_adapter_that_were_removed(measured, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(measured, folder)
    last, kept = adapter(folder), next((folder / "adapters").glob("*-000008"))
    (kept / "dash_adapter.safetensors").unlink()
    put(folder, 4)
    put(folder, 8)
    assert same(adapter(folder), last)


def test_an_apply_that_was_stopped_leaves_a_run_that_is_refused_until_it_is_done_again(measured, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(measured, folder)
    run = read_run(folder)
    with (
        pytest.raises(OSError, match="disk"),
        applying(run, find_checkpoints(run), run.record.evaluation, 4),
    ):
        raise OSError("the disk is full")
    for command in (lambda: main(["checkpoints", str(folder)]), lambda: dash_vision(["merge", str(folder), "merged"])):
        assert command() == 2
        assert f"eval checkpoints {folder} --apply 4 again" in capsys.readouterr().err
    put(folder, 6)
    steps = {one.step: one.folder for one in find_checkpoints(read_run(folder))}
    assert same(adapter(folder), adapter(steps[6]))
    assert sorted(steps) == [2, 4, 6, 8]


def test_apply_waits_for_nothing_and_takes_no_record_that_changed_meanwhile(measured, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(measured, folder)
    lock = FolderLock(folder)
    assert main(["checkpoints", str(folder), "--apply"]) == 2
    assert "another command is writing to" in capsys.readouterr().err
    lock.release()
    run = read_run(folder)
    put(folder, 2)
    with pytest.raises(InputError, match="changed by another command"), applying(run, find_checkpoints(run), None, 4):
        pass
    assert read_run(folder).steps_of_adapter == 2


def test_a_run_that_held_nothing_out_is_measured_on_what_it_learned_from(bases, tmp_path):
    few = {"max_train_steps": 3, "prelaunch_steps": 1, "num_inference_steps": 1, "save_lora_every": 2}
    train(settings(bases, tmp_path / "out", **few))
    words = ["checkpoints", str(tmp_path / "out"), *SHEET, "--eval_encoders", "miniature"]
    assert main([*words, "--apply", "2"]) == 0
    evaluation = read_evaluation(tmp_path / "out/checkpoints/checkpoints.json")
    assert [one.step for one in evaluation.checkpoints] == [0, 2, 3]
    assert len(evaluation.heldout) == 5
    assert held_out(read_run(tmp_path / "out"), None).learned  # --apply does not make held-out pictures of them
    table = (tmp_path / "out/checkpoints/checkpoints.md").read_text()
    assert ", from which the run learned" in table
    assert "held-out" not in table
    assert main(["report", str(tmp_path / "out"), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "likeness to training pictures" in page
    assert "from which the run learned" in page
    assert "held-out" not in page
    assert held_out(read_run(tmp_path / "out"), bases / "cat").learned  # the same pictures by another name of theirs
    kept = tmp_path / "out/adapters/out-000003"  # the last one, which was in the run's folder alone
    assert main([*words, "--apply", "3"]) == 0
    assert same(adapter(kept), adapter(tmp_path / "out"))


def test_a_comparison_of_a_run_that_was_trained_further_since_is_not_taken(shown):
    recorded = read_record(shown / "run.json").evaluation
    assert compared(shown, recorded, 8).checkpoints == recorded.checkpoints
    assert compared(shown, recorded, 10) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--apply", "5"], "--apply is 5; the run kept the steps 2, 4, 6, 8"),
        (["--apply", "best"], "--apply is best; it takes a step"),
        (["--holdout", "nowhere"], "--holdout"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(shown, capsys, words, said):
    assert main(["checkpoints", str(shown), *SHEET, *words]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.splitlines()) == 1


def test_a_run_without_kept_adapters_says_how_to_keep_them(runs, capsys):
    assert main(["checkpoints", str(runs / "dash")]) == 2
    assert "--save_lora_every" in capsys.readouterr().err


def test_the_report_shows_the_recommended_checkpoint_its_curves_and_its_sheet(shown, tmp_path):
    assert main(["report", str(shown), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    evaluation = read_evaluation(shown / "checkpoints/checkpoints.json")
    assert '<h2 id="checkpoints">Checkpoints</h2>' in page
    assert evaluation.recommended.sentence in page
    for words in ("How like the subject", "How far from the base", "Denoising loss"):
        assert words in page
    assert "pictures by the checkpoints of" in page
    assert f"{evaluation.trained[-1].mean('likeness'):.4f}" in page
