"""Random numbers: everything that is random in a run follows from its seed, a name and a count.

Nothing about a generator has to be saved for a resume: the stream of (seed, "instance slot", 17) is the same in every
process, before and after a stop, and unrelated to every other stream.
"""

from __future__ import annotations

from random import Random

import numpy as np
import torch


def seed_of(seed: int, name: str, *numbers: int) -> int:
    """One 64-bit seed for (seed, name, numbers), by NumPy's SeedSequence; numbers are 0 or more."""
    words = np.random.SeedSequence([seed, *name.encode(), 256, *numbers]).generate_state(2, np.uint32)
    return int(words[0]) << 32 | int(words[1])


def stream(seed: int, name: str, *numbers: int) -> torch.Generator:
    """A CPU generator of its own for every (seed, name, numbers)."""
    return torch.Generator().manual_seed(seed_of(seed, name, *numbers))


def python_stream(seed: int, name: str, *numbers: int) -> Random:
    """`stream` for code that draws by Python's `random`: the miniature's renderer and its captions."""
    return Random(seed_of(seed, name, *numbers))


def seed_everything(seed: int, name: str, *numbers: int) -> None:
    """Seed torch's default generators, which dropout and new weights are drawn from, for (seed, name, numbers)."""
    torch.manual_seed(seed_of(seed, name, *numbers))
