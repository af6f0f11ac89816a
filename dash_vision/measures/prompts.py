"""Ten prompts that have nothing to do with the subject: what an adapter does to them is drift."""

from __future__ import annotations

from ..miniature.world.scenes import KINDS, SETTINGS

COUNT = 10
_GENERAL = (
    "a bowl of ripe oranges on a kitchen table",
    "a lighthouse on a cliff at sunset",
    "a red bicycle leaning against a brick wall",
    "an old man reading a newspaper on a bench",
    "a steam train crossing a stone bridge",
    "a field of lavender under a cloudy sky",
    "a cup of coffee beside an open book",
    "a narrow street with lanterns at night",
    "a sailing boat on a calm lake",
    "a woman in a yellow raincoat holding an umbrella",
    "a snowy mountain range seen from a plane",
    "a violin lying on a wooden floor",
    "a market stall full of vegetables",
)
_COLOURS = ("blue", "red", "green", "yellow", "purple", "white")  # that the miniature knows


def unrelated_prompts(embedded: bool, subject: str) -> tuple[str, ...]:
    """COUNT prompts that the base can draw and that share no word of things with `subject`, such as "sks cat".

    embedded: they are of the miniature's small world, other classes in all kinds of places.
    """
    words = set(subject.lower().replace(",", " ").split())
    prompts = _of_the_miniature(words) if embedded else _GENERAL
    apart = [prompt for prompt in prompts if not words & _things(prompt)]
    return tuple((*apart, *(prompt for prompt in prompts if prompt not in apart))[:COUNT])


def _of_the_miniature(words: set[str]) -> tuple[str, ...]:
    """A prompt for each class that is not the subject's, and again in other places until there are enough."""
    kinds = [kind for kind in KINDS if not words & set(kind.split())]
    places = list(SETTINGS)
    return tuple(
        f"a photo of a {_COLOURS[n % len(_COLOURS)]} {kinds[n % len(kinds)]} {places[7 * n % len(places)]}"
        for n in range(COUNT)
    )


def _things(prompt: str) -> set[str]:
    return {word for word in prompt.split() if len(word) > 3}
