"""The three exceptions of the package, one for each thing a reader of the message can do.

InputError: what was given cannot be used; give something else. RunError: a run cannot go on; what it wrote is kept.
Stopped: a run was asked to stop; the same command resumes it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence


class InputError(ValueError):
    """Settings, files, pictures or models that cannot be used: what was found, what is accepted, what to do next."""


class RunError(RuntimeError):
    """A run that cannot go on: what happened, what is kept, what to try."""


class Stopped(Exception):
    """A run was asked to stop by signal number `signum`. The message says what was written before it stopped."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def signal(self) -> str:
        """The signal's name, such as "SIGINT"."""
        return signal.Signals(self.signum).name


def one_line(text: object) -> str:
    """`text` safe to print as one line: names in files may hold line feeds, terminal escapes and half characters."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def enumerated(parts: Sequence[str]) -> str:
    """ "a, b and c", of one part or more."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
