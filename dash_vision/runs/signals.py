"""SIGINT and SIGTERM as a request to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """`signal` is the number of the first SIGINT or SIGTERM that came, None before."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def pending(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal is not None


@contextmanager
def catching_signals() -> Iterator[StopRequest]:
    """A StopRequest that listens until the block ends; a second signal acts as it would have without the block.

    Outside the main thread signals cannot be caught: whoever started the thread handles them.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        signal.signal(number, before[number])

    for wanted in (signal.SIGINT, signal.SIGTERM):
        before[wanted] = signal.getsignal(wanted)
        signal.signal(wanted, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
