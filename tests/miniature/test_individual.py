"""The individuals of the miniature world, and the command that draws them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from dash_vision.miniature.__main__ import main
from dash_vision.miniature.world import scenes, subjects
from tests.support.miniature import pixels
from tests.support.paths import ROOT

# cat/ holds the instance pictures of: individual --seed 16737 --kind cat --scene-seed 386 --size 256
EXAMPLE = {"seed": 16737, "kind": "cat"}
EXAMPLE_SCENES = 386
CAT = ROOT / "cat"


# ------------------------------------------------------------------------------------------------- the individuals


def test_an_individual_keeps_its_features_and_training_never_shows_its_mix() -> None:
    for seed in range(30):
        one = scenes.individual(seed)
        assert one == scenes.individual(seed)
        assert scenes.is_reserved(one)
        assert one.mark is not None
        seen = scenes.instance_scenes(one, 5, seed)
        held = scenes.heldout_scenes(one, seen, 15, seed)
        assert {scene.subject for scene in seen + held} == {one}
        assert len({scene.setting for scene in seen}) == 5
        assert {scene.setting for scene in seen}.isdisjoint(scene.setting for scene in held)
        assert len({scene.pose for scene in seen + held}) == 20
    assert len({scenes.individual(seed) for seed in range(30)}) == 30
    rng = Random(2)
    assert not any(scenes.is_reserved(scenes.random_subject(rng)) for _ in range(3000))


def test_an_individuals_colours_are_in_every_picture_of_it() -> None:
    cat = scenes.individual(**EXAMPLE)
    collar, mark = (scenes.COLOURS[name] for name in (cat.collar, cat.mark_colour))
    for scene in scenes.heldout_scenes(cat, [], 20, 3):
        picture = pixels(scene, 256)
        for colour, least in ((collar, 150), (mark, 60), (subjects.GOLD, 15)):
            assert (np.abs(picture - colour).max(2) <= 2).sum() >= least, (scene.setting, colour)


def test_the_folder_cat_holds_five_pictures_of_the_documented_individual() -> None:
    expected = scenes.instance_scenes(scenes.individual(**EXAMPLE), 5, EXAMPLE_SCENES)
    assert sorted(path.name for path in CAT.iterdir()) == [f"{i:02d}.png" for i in range(1, 6)]
    for i, scene in enumerate(expected, 1):
        with Image.open(CAT / f"{i:02d}.png") as picture:
            assert (picture.size, picture.mode) == ((256, 256), "RGB")
            # Pillow's releases may round edges differently.
            assert np.abs(np.asarray(picture).astype(int) - pixels(scene, 256)).mean() < 2


def test_the_command_individual_writes_instances_and_held_out_pictures(tmp_path: Path) -> None:
    assert main(["individual", str(tmp_path), "--seed", "7", "--heldout", "4"]) == 0
    assert sorted(p.name for p in (tmp_path / "instance").iterdir()) == [f"{i:02d}.png" for i in range(1, 6)]
    rows = [json.loads(line) for line in (tmp_path / "heldout" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["01.png", "02.png", "03.png", "04.png"]
    for row in rows:
        assert Image.open(tmp_path / "heldout" / row["file_name"]).size == (64, 64)
        assert row["text"] == f"a {row['kind']} {row['setting']}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["individual", "OUT", "--kind", "unicorn"],
        ["individual", "OUT", "--instances", "99"],
        ["individual", "OUT", "--heldout", "-1"],
        ["individual", "OUT", "--size", "5"],
        ["build", "--work", "OUT", "--stages", "sculpture"],
        ["build", "--work", "OUT", "--stages", "unet"],
        ["build", "--work", "OUT", "--stages", "data", "--scenes", "17"],
        ["build", "--work", "OUT", "--unet-steps", "0"],
        ["build", "--work", "OUT", "--init", "OUT"],
        ["report", "--work", "OUT", "--weights", "OUT"],
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_1(arguments: list[str], tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path) if word == "OUT" else word for word in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
