"""The miniature's vision transformer: its questions, its losses and its build."""

from functools import partial

import pytest
import torch
from safetensors import safe_open

from dash_vision.bases.backbones import MINIATURE_SHAPE, Backbone, build, describe
from dash_vision.classification.embedded import class_names
from dash_vision.miniature.__main__ import main
from dash_vision.miniature.train import vit as build_vit
from dash_vision.miniature.train.vit import BuildPlan, answers, question_loss, scene_at, split_answers, thumbnail_loss
from dash_vision.runs.tasks import TASKS


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
    batches = iter(range(4))

    def stops(plan, pixels, generator):
        if next(batches) == 3:
            raise Stop
        return original(plan, pixels, generator)

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


def test_the_miniatures_build_makes_it_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build_vit, "BuildPlan", partial(BuildPlan, heldout=60, batch_size=8))
    words = ["build", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), "--stages", "vit"]
    words += ["--scenes", "24", "--processes", "1"]
    assert main([*words, "--vit-steps", "1"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'vit.safetensors'} 1.6" in said
    assert all(f"  {question}: " in said for question in build_vit.QUESTIONS)
    checkpoint = str(tmp_path / "out" / "vit.safetensors")
    build(Backbone("miniature", 64, (0.5,) * 3, (0.5,) * 3, checkpoint=checkpoint), 16)
    assert main([*words, "--vit-steps", "2"]) == 2
    assert "was trained with other settings" in capsys.readouterr().err
