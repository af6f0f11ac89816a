"""The DreamBooth protocol's backbones, and its 25 prompts for objects and for live subjects ("{}": the subject)."""

from __future__ import annotations

PICTURES_PER_PROMPT = 4

_PLACES = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
_OBJECTS = (
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
)
_OUTFITS = (
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
)
_PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")


def _prompts(settings: tuple[str, ...]) -> tuple[str, ...]:
    return (*(f"a {{}} {setting}" for setting in settings), *(f"a {word} {{}}" for word in _PROPERTIES))


PROMPT_LISTS = {"object": _prompts(_PLACES + _OBJECTS), "live": _prompts(_PLACES + _OUTFITS)}
LIVE = {"cat", "dog", "kitten", "puppy"}  # the protocol's live subjects are cats and dogs


def prompt_list(class_name: str) -> str:
    """Which list a class such as "fluffy cat" gets: "live" for cats and dogs, else "object"."""
    words = class_name.lower().split()
    return "live" if words and words[-1] in LIVE else "object"
