"""Write the corpus to a folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.malformed.corpus import corpus


def main(arguments: list[str] | None = None) -> int:
    """Write the corpus."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1 or Path(words[0]).exists():
        print("usage: python -m tests.malformed FOLDER, which must not be there yet", file=sys.stderr)
        return 2
    for case in corpus(Path(words[0])):
        print(f"{case.kind}: {case.name} ({case.expect}): {case.program} {shlex.join(case.words)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
