"""The miniature world: scenes follow from seeds and show what they are named after."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from PIL import Image

from dash_vision.miniature.world import scenes
from tests.support.miniature import PROTOCOL_PLACES, pixels

PROTOCOL_OUTFITS = [
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
]
PLAIN_CAT = scenes.Subject("cat", "orange", "white")
PLAIN_VASE = scenes.Subject("vase", "green", "white")


def changed(one: scenes.Scene, other: scenes.Scene) -> float:
    """Share of the pixels that clearly differ."""
    return float((np.abs(pixels(one) - pixels(other)).max(2) > 24).mean())


# ------------------------------------------------------------------------------------------------------- the world


def test_a_seed_decides_the_whole_picture() -> None:
    first, again, other = (scenes.random_scene(Random(seed)) for seed in ("a", "a", "b"))
    assert first == again != other
    assert (pixels(first) == pixels(again)).all()
    assert changed(first, other) > 0.2


def test_a_scene_is_the_same_at_any_size() -> None:
    for seed in range(5):
        scene = scenes.random_scene(Random(seed))
        small = scenes.render(scene, 128).resize((64, 64), Image.Resampling.BOX)
        assert np.abs(np.asarray(small).astype(int) - pixels(scene)).mean() < 6


def test_every_place_of_the_protocol_is_drawn_and_named() -> None:
    assert list(scenes.SETTINGS) == PROTOCOL_PLACES
    seen = []
    for place in PROTOCOL_PLACES:
        scene = scenes.Scene(PLAIN_CAT, place)
        assert scenes.describe(scene, token="sks", colour=False) == f"a sks cat {place}"
        assert changed(scene, scenes.Scene(PLAIN_CAT)) > 0.3
        seen.append(pixels(scene).reshape(-1, 3).mean(0).round().tolist())
    assert len({tuple(mean) for mean in seen}) == len(PROTOCOL_PLACES)


@pytest.mark.parametrize("kind", scenes.LIVE)
def test_every_outfit_of_the_protocol_is_drawn_and_named(kind: str) -> None:
    assert list(scenes.OUTFITS) == PROTOCOL_OUTFITS
    subject = scenes.Subject(kind, "orange", "white")
    bare = scenes.Scene(subject, "in the snow")
    for outfit in PROTOCOL_OUTFITS:
        dressed = scenes.Scene(subject, "in the snow", outfit=outfit)
        assert scenes.describe(dressed, token="sks", colour=False) == f"a sks {kind} {outfit} in the snow"
        assert 0.01 < changed(dressed, bare) < 0.3  # the animal changes, the place does not


def test_the_properties_of_the_protocol_are_drawn_and_named() -> None:
    assert "red" in scenes.COLOURS
    assert "purple" in scenes.COLOURS
    for kind in scenes.KINDS:
        subject = scenes.Subject(kind, "green", "white")
        for look in ("shiny", "wet", "cube shaped"):
            scene = scenes.Scene(subject, look=look)
            assert scenes.describe(scene, token="sks", colour=False) == f"a {look} sks {kind}"
            assert changed(scene, scenes.Scene(subject)) > 0.01
    assert scenes.describe(scenes.Scene(scenes.Subject("vase", "red", "white")), token="sks") == "a red sks vase"


@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_a_plain_subject_shows_its_colour(colour: str) -> None:
    wanted = np.array(scenes.COLOURS[colour])
    vase = scenes.Subject("vase", colour, "white" if colour != "white" else "red")
    found = np.abs(pixels(scenes.Scene(vase, "in the jungle")) - wanted).max(2) < 45  # the coat is lit from one side
    assert found.mean() > 0.03


@pytest.mark.parametrize(
    "make",
    [
        lambda: scenes.Scene(PLAIN_CAT, "on the moon"),
        lambda: scenes.Subject("unicorn", "red", "white"),
        lambda: scenes.Subject("cat", "mauve", "white"),
        lambda: scenes.Subject("cat", "red", "white", mark="anchor"),
        lambda: scenes.individual(1, "unicorn"),
        lambda: scenes.render(scenes.Scene(PLAIN_VASE, outfit="wearing a red hat")),
        lambda: scenes.render(scenes.Scene(PLAIN_VASE, look="sticky")),
        lambda: scenes.render(scenes.Scene(PLAIN_VASE), 4),
    ],
)
def test_what_the_world_does_not_know_is_refused_in_one_sentence(make) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+(known|live subjects wear|pixels)"):
        make()
