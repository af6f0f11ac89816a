"""Which pictures of a run are drawn to measure it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..measures.asking import ask
from ..measures.yardstick import Asked
from .plan import Plan
from .prompts import rare_words


def asked_of(plan: Plan, captions: Sequence[str], embedded: bool) -> tuple[Asked, list[list[int]]]:
    """See measures.asking. captions: of the held-out pictures. Where the class prompt is the instance prompt, there is
    nothing to draw of the class alone."""
    prompts = plan.prompts
    asked, own = ask(captions, prompts.instance, prompts.class_, embedded, rare_words(prompts))
    if prompts.class_ == prompts.instance:
        asked = dataclasses.replace(asked, class_=())
    return asked, own
