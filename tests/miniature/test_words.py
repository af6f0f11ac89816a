"""The miniature's captions and its tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

from dash_vision.miniature.world import scenes, vocabulary
from tests.support.miniature import PROTOCOL_PLACES

# ------------------------------------------------------------------------------------------------------- the words


def test_captions_use_the_protocols_wording_and_known_words() -> None:
    words = set(vocabulary.world_words())
    rng = Random(0)
    starts, tokens, kinds = Counter[str](), Counter[str](), set()
    for _ in range(2000):
        scene = scenes.random_scene(rng)
        text = scenes.caption(scene, rng)
        assert set(text.lower().split()) <= words
        assert scene.subject.kind in text
        rest = text.removeprefix("a photo of ").removeprefix("a picture of ")
        assert rest.split()[0] in ("a", "an")
        starts[text[: len(text) - len(rest)]] += 1
        found = [token for token in scenes.RARE_TOKENS if f" {token} " in text]
        tokens.update(found)
        kinds.update((token, scene.subject.kind) for token in found)
    assert set(starts) == {"a photo of ", "a picture of ", ""}
    assert set(tokens) == set(scenes.RARE_TOKENS)
    assert 0.15 < sum(tokens.values()) / 2000 < 0.25
    assert len(kinds) > 0.8 * len(scenes.RARE_TOKENS) * len(scenes.KINDS)  # a rare token goes with everything


def test_a_caption_never_says_what_the_picture_does_not_show() -> None:
    rng = Random(1)
    for _ in range(500):
        scene = scenes.random_scene(rng)
        text = scenes.caption(scene, rng)
        assert all(place == scene.setting for place in scenes.SETTINGS if text.endswith(place))
        assert all(outfit == scene.outfit for outfit in scenes.OUTFITS if outfit in text)


def test_the_tokenizer_has_one_token_for_every_word_and_spells_the_rest(tmp_path: Path) -> None:
    tokenizer = vocabulary.write_tokenizer(tmp_path, 40)
    for word in vocabulary.world_words():
        ids = tokenizer(word).input_ids
        assert len(ids) == (5 if word == "two-tone" else 3), word  # start, the word, end; a hyphen is its own token
    for text in ("a photo of a sks cat in the snow", "zyzzyva über"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text
    assert vocabulary.write_tokenizer(tmp_path / "again", 40).get_vocab() == tokenizer.get_vocab()
    longest = max((f"a photo of a shiny red and white striped sks robot toy {p}" for p in PROTOCOL_PLACES), key=len)
    assert len(tokenizer(longest).input_ids) <= 40
