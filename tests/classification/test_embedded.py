"""The embedded tasks: drawn the same everywhere, and labelled with what is to be seen."""

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch

from dash_vision.classification import embedded
from dash_vision.classification.cache import whole
from dash_vision.classification.data import load_task
from dash_vision.classification.embedded import class_names, draw, labels
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
