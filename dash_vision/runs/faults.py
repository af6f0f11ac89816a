"""The end of a command that did not go well: one sentence; for a fault of our own, a file to attach to a report; and
streams that no character and no closed pipe can stop.

Needs no torch.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..files.errors import one_line
from .versions import installed_versions

SECRETS = ("--hub_token", "--huggingface_token", "--wandb_api_key", "--token")
HIDDEN = "HIDDEN"
_TOKEN = re.compile(r"\b(?:hf|api_org|sk|ghp|github_pat)_\w{8,}")  # as the hub and others begin theirs
_PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "accelerate", "peft", "timm", "safetensors", "numpy")


# -- one sentence


def fail(message: object, status: int, program: str = "") -> int:
    """Print an error as one line; the status."""
    name = f"{program}: " if program else ""
    print(f"{name}error: {one_line(message)}{launcher_note()}", file=sys.stderr)
    return status


def launcher_note() -> str:
    """What to add to an error under accelerate launch, which prints a traceback of its own below it; "" elsewhere."""
    single = os.environ.get("WORLD_SIZE", "1") == "1"
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or not single:
        return ""
    return (
        " (the traceback below is accelerate launch's own; a single process needs no launcher: "
        f"python {Path(sys.argv[0]).name} ...)"
    )


# -- a fault of our own


def report(error: BaseException, folder: Path | None, arguments: Sequence[str]) -> str:
    """Write what a report of a fault needs to a file, in `folder` where that can be and else in the working directory;
    the sentence for the user. Tokens among the arguments are hidden everywhere in it."""
    text = _describe(error, arguments)
    name = f"dash-vision-fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    what = _without_tokens(one_line(f"{type(error).__name__}: {error}")[:200], arguments)
    for place in (*([folder] if folder and folder.is_dir() else []), Path.cwd(), Path(tempfile.gettempdir())):
        try:
            (place / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return (
            f"this is a fault of dash-vision itself ({what}); please report it with the file {place / name}, which "
            "holds what happened; what was written before is kept"
        )
    return f"this is a fault of dash-vision itself ({what}), and no report of it could be written; please report it"


def hidden(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with HIDDEN for every token."""
    shown: list[str] = []
    for word in arguments:
        flag, equals, _ = word.partition("=")
        if shown and shown[-1].replace("-", "_").strip("_") in _secret_names() and not word.startswith("--"):
            word = HIDDEN
        elif equals and flag.replace("-", "_").strip("_") in _secret_names():
            word = f"{flag}={HIDDEN}"
        shown.append(_TOKEN.sub(HIDDEN, word))
    return shown


def _secret_names() -> set[str]:
    return {name.strip("-") for name in SECRETS}


def _without_tokens(text: str, arguments: Sequence[str]) -> str:
    """`text` without anything that `hidden` hides in the arguments."""
    for given, shown in zip(arguments, hidden(arguments), strict=True):
        token = given if shown == HIDDEN else given.partition("=")[2] if shown.endswith(f"={HIDDEN}") else ""
        text = text.replace(token, HIDDEN) if token else text
    return _TOKEN.sub(HIDDEN, text)


def _describe(error: BaseException, arguments: Sequence[str]) -> str:
    lines = [
        "A fault of dash-vision. Please read this file before you send it: it holds paths of your machine.",
        "",
        f"program: {' '.join([Path(sys.argv[0]).name, *hidden(arguments)])}",
        f"folder: {Path.cwd()}",
        f"python {platform.python_version()}, {platform.platform()}",
        ", ".join(f"{name} {number}" for name, number in installed_versions(_PACKAGES).items()),
        *_devices(),
        "",
        *traceback.format_exception(error),
    ]
    return _without_tokens("\n".join(lines), arguments)


def _devices() -> list[str]:
    torch: Any = sys.modules.get("torch")  # what is not imported yet is not at fault
    if torch is None or not hasattr(torch, "get_num_threads"):
        return []
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return [f"devices: {', '.join(gpus) or 'no CUDA'}; {torch.get_num_threads()} threads"]


# -- streams


@contextmanager
def printable_streams() -> Iterator[None]:
    """While inside, whatever is printed is printed as far as it can be: a character that the console lacks as its
    code, nothing at all where the reader has gone. A run does not end for it."""
    before = sys.stdout, sys.stderr
    streams = [_Printable(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.settle()
        sys.stdout, sys.stderr = before


class _Printable:
    """A text stream that always takes what is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._gone = stream is None  # a program without a console has none

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As far as it can be written; its length."""
        try:
            if not self._gone:
                self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError:
            self._gone = True
        return len(text)

    def flush(self) -> None:
        """What is left of it."""
        try:
            if not self._gone:
                self._stream.flush()
        except OSError:
            self._gone = True

    def settle(self) -> None:
        """Let what is still buffered for a reader that has gone go nowhere, or the interpreter would complain."""
        self.flush()
        if self._gone and self._stream is not None:
            with suppress(OSError):  # a stream that is no file has nothing to complain of
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
