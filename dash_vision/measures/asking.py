"""Which pictures are drawn to measure an adapter: for the held-out pictures' captions, for the class, for others."""

from __future__ import annotations

from collections.abc import Sequence

from .names import names_class, rare_words
from .prompts import unrelated_prompts
from .yardstick import Asked

FEWEST, MOST = 4, 8  # pictures of the subject


def ask(captions: Sequence[str], instance: str, class_prompt: str, embedded: bool) -> tuple[Asked, list[list[int]]]:
    """What is drawn for held-out pictures with these captions, and for each of the subject's pictures the numbers of
    the held-out ones that its prompt describes.

    Each held-out picture's caption is drawn equally often, until there are FEWEST; of more than MOST held-out pictures
    the first ones' captions are drawn. Where the class prompt is the instance prompt or names no class, nothing is
    drawn of the class.
    """
    chosen = list(captions)[:MOST]
    again = -(-FEWEST // len(chosen))
    subject = tuple(caption for _ in range(again) for caption in chosen)
    own = [[i for i, caption in enumerate(captions) if caption == prompt] for prompt in subject]
    rare = rare_words(instance, class_prompt)
    said = tuple(" ".join(word for word in prompt.split() if word not in rare) for prompt in subject)
    known = class_prompt != instance and names_class(class_prompt)
    classes = (class_prompt,) * len(subject) if known else ()
    return Asked(subject, classes, unrelated_prompts(embedded, f"{instance} {class_prompt}"), said), own
