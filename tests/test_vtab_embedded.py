"""The embedded tasks: drawn the same everywhere, and labelled with what the picture shows."""

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dash_vision.bases.backbones import MINIATURE_SHAPE, Backbone, build, describe
from dash_vision.classification import embedded
from dash_vision.classification.cache import whole
from dash_vision.classification.data import load_task
from dash_vision.classification.embedded import class_names, draw, labels
from dash_vision.miniature.__main__ import main
from dash_vision.miniature.train import vit as build_vit
from dash_vision.miniature.train.vit import BuildPlan, answers, question_loss, scene_at, split_answers, thumbnail_loss
from dash_vision.miniature.world.scenes import KINDS, PATTERNS
from dash_vision.runs.tasks import EMBEDDED, TASKS

SPLITS = ("train800", "val200", "test")


@pytest.mark.parametrize("name", EMBEDDED)
def test_classes_come_equally_often_and_have_names(name):
    task = TASKS[name]
    for split in SPLITS:
        counts = Counter(labels(task, split).tolist())
        assert sorted(counts) == list(range(task.classes))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert counts.total() == task.size(split)
    assert len(set(class_names(task))) == task.classes


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_picture_follows_from_its_number_alone(name):
    task = TASKS[name]
    first, again = draw(task, "test", 5), draw(task, "test", 5)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1] == again[1] == labels(task, "test")[5]
    assert draw(task, "test", 6)[0].tobytes() != first[0].tobytes()
    assert draw(task, "val200", 5)[0].tobytes() != first[0].tobytes()


def drawn_subjects(monkeypatch, name, numbers=range(12)):
    """(label, subjects, pens, picture) of some pictures, as the renderer was asked for them."""
    calls = []
    original = embedded.draw_subject

    def spy(canvas, pen, subject, *arguments, **options):
        calls.append((subject, pen.x * canvas.k / canvas.pixels, pen.y * canvas.k / canvas.pixels))
        return original(canvas, pen, subject, *arguments, **options)

    monkeypatch.setattr(embedded, "draw_subject", spy)
    monkeypatch.setattr("dash_vision.miniature.world.scenes.draw_subject", spy)
    for number in numbers:
        calls.clear()
        picture, label = draw(TASKS[name], "train800", number)
        yield label, list(calls), np.asarray(picture).astype(int)


def test_subject_and_material_are_those_of_the_subject_drawn(monkeypatch):
    for label, calls, _ in drawn_subjects(monkeypatch, "mini_subject"):
        assert {subject.kind for subject, _, _ in calls} == {list(KINDS)[label]}
    for label, calls, _ in drawn_subjects(monkeypatch, "mini_material"):
        assert {subject.pattern for subject, _, _ in calls} == {PATTERNS[label]}


def test_the_count_is_the_number_of_subjects_and_none_hides_another(monkeypatch):
    for label, calls, _ in drawn_subjects(monkeypatch, "mini_count"):
        assert len(calls) == label + 1
        places = [(x, y) for _, x, y in calls]
        for i, (x, y) in enumerate(places):
            assert all(max(abs(x - a), abs(y - b)) > 0.2 for a, b in places[:i])


def test_the_location_is_the_cell_of_the_subject_s_middle(monkeypatch):
    for label, [(_, x, y)], _ in drawn_subjects(monkeypatch, "mini_location", range(16)):
        assert (int(y * 4), int(x * 4)) == divmod(label, 4)


@pytest.mark.parametrize("seed", ["two", "three", "four", "five"])
def test_the_orientation_turns_the_subject_anticlockwise(seed):
    ground = np.asarray(embedded._background(Random(seed), 64)[0].image.reduce(4)).astype(int)
    upright, turned = (outline(embedded._orientation(label, Random(seed), 64), ground) for label in (0, 4))
    alike = [(np.rot90(upright, k) & turned).sum() / (np.rot90(upright, k) | turned).sum() for k in range(4)]
    assert int(np.argmax(alike)) == 1
    assert alike[1] > 0.6


def outline(picture, ground):
    """Where the picture differs from its bare background, moved to the middle."""
    shape = np.abs(np.asarray(picture).astype(int) - ground).sum(2) > 40
    rows, columns = np.nonzero(shape)
    return np.roll(shape, (32 - round(rows.mean()), 32 - round(columns.mean())), (0, 1))


def test_a_split_is_drawn_once_and_read_from_the_cache_afterwards(tmp_path, monkeypatch):
    task = TASKS["mini_location"]
    monkeypatch.setattr(embedded, "_keys", lambda task, split: [(split, i) for i in range(5)])
    drawn = whole(embedded.images(task, "val200", 32, tmp_path))
    assert drawn.shape == (5, 3, 32, 32)
    assert torch.equal(drawn, whole(embedded.images(task, "val200", 32, None)))
    monkeypatch.setattr(embedded, "draw", None)
    assert torch.equal(drawn, whole(embedded.images(task, "val200", 32, tmp_path)))


def test_an_embedded_task_is_loaded_without_any_folder():
    data = load_task(TASKS["mini_count"], "/nowhere", 64, None)
    assert data.sizes == {"train800": 800, "val200": 200, "train800val200": 1000, "test": 2000}
    assert data.source.startswith("synthetic")
    assert not data.official
    assert not data.test.opened


# -- the miniature ViT


def test_the_questions_it_is_trained_on_are_none_of_the_tasks():
    scene = scene_at(0, 3)
    asked = set(build_vit.QUESTIONS)
    assert len(answers(scene)) == len(asked)
    for task in ("mini_subject", "mini_material", "mini_location", "mini_orientation", "mini_count"):
        assert not set(class_names(TASKS[task])) & {a for q in build_vit.QUESTIONS.values() for a in q if a != "none"}


def test_answers_are_indices_or_left_out():
    sizes = [len(a) for a in build_vit.QUESTIONS.values()]
    for number in range(40):
        scene = scene_at(1, number)
        found = answers(scene)
        assert all(a == -100 or 0 <= a < n for a, n in zip(found, sizes, strict=True))
        assert (found[2] == -100) == (scene.subject.pattern == "plain")
        assert build_vit.QUESTIONS["colour"][found[1]] == scene.subject.colour


def test_the_loss_of_guessing_is_one_and_of_knowing_zero():
    rows = torch.tensor([answers(scene_at(0, n)) for n in range(6)])
    assert question_loss(torch.zeros(6, build_vit.outputs()), rows).item() == pytest.approx(1)
    known = torch.zeros(6, build_vit.outputs())
    for part, column in zip(split_answers(known), rows.T, strict=True):
        for row, answer in zip(part, column.tolist(), strict=True):
            if answer >= 0:
                row[answer] = 50
    assert question_loss(known, rows).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_of_a_perfect_copy_is_zero_and_of_the_mean_picture_one():
    pictures = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    copies = pictures.view(5, 3, 8, 8, 8, 8).mean((3, 5)).flatten(1)  # the means of 8 x 8 blocks of 8 x 8 pixels
    head = torch.zeros(5, build_vit.outputs())
    head[:, -3 * 64 :] = copies
    assert thumbnail_loss(head, pictures).item() == pytest.approx(0, abs=1e-9)
    head[:, -3 * 64 :] = copies.mean(0)
    assert thumbnail_loss(head, pictures).item() == pytest.approx(1)


def test_it_is_built_resumed_and_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build_vit, "measure", lambda model, pixels, labels: {"place": float(len(pixels))})
    plan = BuildPlan(tmp_path / "work", tmp_path / "whole.safetensors", 24, 8, 4, 8, processes=1, save_every=2)
    build_vit.build(plan)

    class Stop(Exception):
        pass

    parts = BuildPlan(tmp_path / "parts", tmp_path / "parts.safetensors", 24, 8, 4, 8, processes=1, save_every=2)
    (tmp_path / "parts").mkdir()
    for file in (tmp_path / "work").glob("*-0-32.*"):
        (tmp_path / "parts" / file.name).write_bytes(file.read_bytes())
    original = build_vit.batch_at

    def stops(plan, pixels, step):
        if step == 3:
            raise Stop
        return original(plan, pixels, step)

    monkeypatch.setattr(build_vit, "batch_at", stops)
    with pytest.raises(Stop):
        build_vit.build(parts)
    monkeypatch.setattr(build_vit, "batch_at", original)
    build_vit.build(parts)
    assert "going on from step 2" in capsys.readouterr().out
    with safe_open(plan.output, "pt") as a, safe_open(parts.output, "pt") as b:
        assert set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys())  # noqa: SIM118
        assert not any(k.startswith("head") for k in a.keys())  # noqa: SIM118
    assert plan.output.stat().st_size < 4e6
    model = build(Backbone("miniature", 64, (0.5,) * 3, (0.5,) * 3, checkpoint=str(plan.output)), 16)
    assert model.patch_embed.proj.weight.shape == (MINIATURE_SHAPE["embed_dim"], 3, 8, 8)
    assert describe("miniature").mean == (0.5, 0.5, 0.5)


def test_the_miniatures_build_makes_it_too(tmp_path, capsys):
    words = ["build", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), "--stages", "vit"]
    words += ["--scenes", "24", "--processes", "1"]
    assert main([*words, "--vit-steps", "1"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'vit.safetensors'} 1.6" in said
    assert all(f"  {question}: " in said for question in build_vit.QUESTIONS)
    checkpoint = str(tmp_path / "out" / "vit.safetensors")
    build(Backbone("miniature", 64, (0.5,) * 3, (0.5,) * 3, checkpoint=checkpoint), 16)
    assert main([*words, "--vit-steps", "2"]) == 1
    assert "was trained with other settings" in capsys.readouterr().err
