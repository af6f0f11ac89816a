"""Decompositions of frozen weights, at hand before the launch asks: from a background thread, from files.

A decomposition is the same whoever computes it and when (on one kind of device, with one number of threads), so that a
launch chooses the same directions, bit for bit, however far the thread came and whether a file was there.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files.container import Kind, checksum, read_container, write_container
from ..files.errors import InputError
from .directions import Spectrum, decompose, memory_of

# Names the folder of files; without it, and without an argument, none are written.
VARIABLE = "DASH_VISION_DIRECTIONS"
LIMIT = 20 * 10**9  # bytes in the folder; beyond it, files go that were not used for longest
DECOMPOSITION = Kind("decomposition", "a decomposition of a frozen weight", 2)
# Compute capabilities of GPUs that take twice to four times as long in float64 as in float32; all others of NVIDIA take
# 32 to 64 times as long. AMD's Instinct cards call themselves 9.x.
_FAST = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


Source = Callable[[], Tensor]
"""What reads a weight that is not kept."""


class _Ready(NamedTuple):
    weight: Tensor | Source  # as it was decomposed; keeps the storage alive so that its address cannot be reused
    version: int  # of the tensor: every change in place counts it up
    spectrum: Spectrum

    def is_of(self, weight: Tensor, source: Source | None) -> bool:
        """Whether it was made of this weight, as it is now."""
        if isinstance(self.weight, Tensor):
            return self.weight.data_ptr() == weight.data_ptr() and self.version == weight._version
        return self.weight == source


class Decompositions:
    """Gives the Spectrum of a layer's frozen weight: made ahead by a thread, read from a file, or computed now.

    cache: a folder of decompositions that later runs on the same weights read (default: $DASH_VISION_DIRECTIONS, else
    none). A weight takes 8 p^2 bytes there, p = min(out, in): 0.2 GB for all blocks of ViT-B/16, 0.8 GB for the
    attention of SD 1.5, 6 GB for that of SDXL. `start` holds as much in memory until the launch, and ends early where
    less than a quarter of the machine's memory would be left. While a weight is decomposed it takes
    `directions.memory_of` bytes more.

    in_full: how many of those given fell so low that they are full SVDs.
    """

    def __init__(self, cache: str | PathLike[str] | None = None) -> None:
        folder = cache or os.environ.get(VARIABLE)
        self.cache = Path(folder).expanduser() if folder else None
        self._ready: dict[str, _Ready] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.in_full = 0

    def start(self, weights: Mapping[str, Tensor | Source], device: torch.device) -> None:
        """Begin to decompose `weights` ([out, in], by name; or what reads them), in a thread that yields to all other
        work, for a model on `device`: see `place_of`. What is read is let go again, one weight at a time, and what is
        made is kept in the machine's memory."""
        work = (dict(weights), place_of(device), self.cache, self._ready, self._stop)
        self._thread = threading.Thread(target=_work_ahead, args=work, name="dash-decompositions")
        weakref.finalize(self, self._stop.set)  # the thread knows nothing of `self`, and ends after it
        self._thread.start()

    def stop(self) -> None:
        """Let the thread finish the weight it is at, and end it. What it has made stays at hand."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Until the thread has decomposed everything."""
        if self._thread is not None:
            self._thread.join()

    @property
    def working(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def of(self, name: str, weight: Tensor, device: torch.device, source: Source | None = None) -> Spectrum:
        """The Spectrum of `weight`, the one called `name`, of a model on `device`, and where `place_of` says. source:
        what has just read it.

        Raises ValueError as `decompose`.
        """
        place, ready = place_of(device), self._ready.get(name)
        if ready and ready.is_of(weight, source):
            spectrum = ready.spectrum.to(place)
        else:
            spectrum = read_or_decompose(weight.to(place), self.cache)
        self.in_full += spectrum.in_full
        return spectrum

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, of a model with its adapter say, starts without a thread."""
        return Decompositions, (self.cache,)


def place_of(device: torch.device) -> torch.device:
    """Where the weights of a model on `device` are decomposed: there where it computes in float64 in earnest, else on
    the CPU. GPUs made for playing have a sixty-fourth of their speed in it."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability in _FAST or (torch.version.hip and capability[0] == 9):
            return device
    return torch.device("cpu")


def _work_ahead(
    weights: dict[str, Tensor | Source],
    place: torch.device,
    cache: Path | None,
    ready: dict[str, _Ready],
    stop: threading.Event,
) -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own; those that it starts inherit it
        with suppress(OSError):  # 10: about a tenth of a core that training wants too; at 19 it would hardly come on
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    with nullcontext() if place.type == "cpu" else torch.cuda.stream(torch.cuda.Stream(place)):
        for name, weight in weights.items():
            if stop.is_set() or not threading.main_thread().is_alive():  # it is not: the program ends
                return
            try:
                matrix = weight if isinstance(weight, Tensor) else weight()
                if _is_short(place, memory_of(*matrix.shape), 8 * min(matrix.shape) ** 2):
                    return
                version = matrix._version
                spectrum = read_or_decompose(matrix.to(place), cache).to(torch.device("cpu"))
            except Exception:  # the launch will meet it again, and say so
                return
            ready[name] = _Ready(weight, version, spectrum)


def _is_short(place: torch.device, working: int, kept: int) -> bool:
    """Whether there is too little memory to take `working` bytes more for a while at a place, and to keep `kept`."""
    if place.type == "cpu":
        return memory_is_short(working + kept)
    free, total = torch.cuda.mem_get_info(place)
    return memory_is_short(kept) or free - working < total / 4


def memory_is_short(needed: int) -> bool:
    """Whether `needed` bytes more would leave less than a quarter of the machine's memory; False where the system does
    not say how large that is."""
    total, available = memory()
    return available - needed < total / 4


def memory() -> tuple[int, int]:
    """(all, available) bytes of the machine's memory.

    Linux says both in /proc/meminfo. Elsewhere half of the physical memory counts as available, and where that is not
    known either (Windows) the answer is (0, 2^62): nothing is ever short.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        pass
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0, 2**62
    return total, total // 2


# -- files: one for each weight, named after its content


def read_or_decompose(weight: Tensor, cache: Path | None) -> Spectrum:
    """`decompose(weight)`, from its file in `cache` if there is a sound one; else it is written there."""
    if cache is None:
        return decompose(weight)
    path = cache / f"{checksum(DECOMPOSITION.version, {'weight': weight})[:32]}.safetensors"
    found = _read(path)
    if found is not None:
        return found.to(weight.device)
    spectrum = decompose(weight)
    try:
        _write(path, spectrum)
    except OSError as error:
        warnings.warn(
            f"cannot keep a decomposition in {cache} ({error}); later runs will compute it again; "
            f"make room there, or name another folder in ${VARIABLE}",
            stacklevel=2,
        )
    return spectrum


def _read(path: Path) -> Spectrum | None:
    """What `_write` wrote; None for a file that is absent or damaged."""
    try:
        _, tensors = read_container(path, DECOMPOSITION)
        os.utime(path)  # used now
        return Spectrum(tensors.get("U"), tensors["sigma"], tensors.get("V"))
    except (OSError, InputError, KeyError):
        return None


def _write(path: Path, spectrum: Spectrum) -> None:
    tensors = {key: t for key, t in spectrum._asdict().items() if t is not None}
    write_container(path, DECOMPOSITION, None, tensors)
    files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in path.parent.glob("*.safetensors"))
    excess = sum(size for _, size, _ in files) - LIMIT
    for _, size, file in files:
        if excess <= 0:
            break
        file.unlink(missing_ok=True)
        excess -= size
