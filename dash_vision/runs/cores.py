"""How many threads compute, and how they wait for one another. Decided before torch is imported, which reads it then.

PyTorch's threads wait for each other several thousand times in a step. By default they spin while they do, so that one
busy neighbour on the machine, whose turn on a core the spinning threads wait out, makes a step 50 times slower.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def choose_threads(small: bool = False) -> None:
    """Say in the environment how torch is to use the cores. small: the work is, as the miniature's networks are, too
    little to gain from a second thread.

    What the user has set is left as it is; and so is a torch that is imported already, whose threads are its
    program's business.
    """
    if "torch" not in sys.modules:
        os.environ.update(choice(os.environ, cores(), small))


def choice(environment: Mapping[str, str], cores: int, small: bool = False) -> dict[str, str]:
    """The variables to set, where `environment` and its launcher's leave them open."""
    chosen = {} if "OMP_WAIT_POLICY" in environment else {"OMP_WAIT_POLICY": "PASSIVE"}
    if not _threads_are_given(environment) and (small or "OMP_NUM_THREADS" in environment):
        processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
        chosen["OMP_NUM_THREADS"] = "1" if small else str(max(1, cores // processes))
    return chosen  # without a number torch takes all cores


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads_are_given(environment: Mapping[str, str]) -> bool:
    """Whether the user has set OMP_NUM_THREADS, which accelerate launch and torchrun set to 1 by themselves."""
    given = environment.get("OMP_NUM_THREADS")
    launched = "ACCELERATE_MIXED_PRECISION" in environment or "LOCAL_WORLD_SIZE" in environment
    if given is None or not launched:
        return given is not None
    return given != "1" or is_in_environment_of(os.getppid(), "OMP_NUM_THREADS")


def is_in_environment_of(process: int, variable: str) -> bool:
    """Whether a process was started with a variable; False where the system does not tell."""
    try:
        content = Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False
    return any(entry.startswith(f"{variable}=".encode()) for entry in content.split(b"\0"))
