"""Which pictures are drawn to measure an adapter: for the held-out pictures' captions, for the class, for others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .prompts import unrelated_prompts
from .yardstick import Asked

FEWEST, MOST = 4, 8  # pictures of the subject


def ask(
    captions: Sequence[str],
    instance: str,
    class_prompt: str,
    embedded: bool,
    rare: Collection[str],
    fewest: int = FEWEST,
    most: int = MOST,
) -> tuple[Asked, list[list[int]]]:
    """What is drawn for held-out pictures with these captions, and for each of the subject's pictures the numbers of
    the held-out ones that its prompt describes.

    Each held-out picture's caption is drawn equally often, until there are `fewest`; of more than `most` held-out
    pictures the first ones' captions are drawn. rare: words that stand for the subject and mean nothing.
    """
    chosen = list(captions)[:most]
    again = -(-fewest // len(chosen))
    subject = tuple(caption for _ in range(again) for caption in chosen)
    own = [[i for i, caption in enumerate(captions) if caption == prompt] for prompt in subject]
    said = tuple(" ".join(word for word in prompt.split() if word not in rare) for prompt in subject)
    unrelated = unrelated_prompts(embedded, f"{instance} {class_prompt}")
    return Asked(subject, (class_prompt,) * len(subject), unrelated, said), own
