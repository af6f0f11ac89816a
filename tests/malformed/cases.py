"""A case of the corpus."""

from __future__ import annotations

from dataclasses import dataclass

REFUSED, SKIPPED, EITHER = "refused", "skipped", "either"
EIGHTHS = range(8)
CANARY = "canary"  # a file with this name appears where something of the corpus was executed


@dataclass(frozen=True)
class Case:
    """One malformed file. program: dreambooth, vtab, dash_vision or eval; named: what the output has to say."""

    kind: str
    name: str
    program: str
    words: tuple[str, ...]
    named: str
    expect: str = REFUSED
