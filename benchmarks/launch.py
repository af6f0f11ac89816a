"""How long training stands still at the launch: as it is, with the decompositions made ahead in the background or read
from files, and beside a full SVD of each layer in turn, as the method's published code does it inside the step."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from dash_vision import Adapter, DashConfig, inject
from dash_vision.core.decompositions import Decompositions
from dash_vision.core.weights import weight_matrix

from .measure import Settings, Table, seconds
from .models import TARGETS, TITLES, Size, network, training_step


def _what(name: str) -> str:
    return "all block linears" if name == "vit" else "attention only"


WAYS = ("prepared", "files", "nothing", "svd", "thread")
_SVD = "a full SVD of each layer"


def measure(
    settings: Settings, models: list[str], size: Size, rank: int, k: int, wanted: Sequence[str] = WAYS
) -> list[Table]:
    """Seconds of the wanted ways to launch, and in training steps; "thread": of training beside the preparation."""
    return [table for name in models for table in _tables(name, settings, size, rank, k, wanted)]


def _tables(name: str, settings: Settings, size: Size, rank: int, k: int, wanted: Sequence[str]) -> list[Table]:
    model = network(name, size, settings)
    adapter = inject(model, DashConfig(rank=rank, dash_k=k, target=TARGETS[name][_what(name)]))
    with torch.no_grad():
        for _, w in adapter.weights():
            w.B.normal_(std=0.01)
    with tempfile.TemporaryDirectory() as folder:
        busy = time.process_time()
        adapter.prepare(folder)
        adapter.decompositions.wait()
        busy = time.process_time() - busy
        all_ways: dict[str, tuple[str, Callable[[], object], Callable[[], object]]] = {
            # by its word: its name, what comes before, and what training waits for
            "prepared": ("prepared in the background", partial(_prepare, adapter, folder), adapter.launch),
            "files": ("from files", partial(_rewind, adapter, folder), adapter.launch),
            "nothing": ("nothing ahead", partial(_rewind, adapter, None), adapter.launch),
            "svd": (_SVD, partial(_rewind, adapter, None), partial(full_svds, adapter)),
        }
        ways = {name: rest for word, (name, *rest) in all_ways.items() if word in wanted}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(settings.rounds):
            for way in list(ways) if number % 2 == 0 else list(reversed(ways)):
                before, stall = ways[way]
                before()
                gc.collect()
                times[way].append(seconds(stall, settings))
    step, _ = training_step(name, model, size, settings)
    step()
    one_step = statistics.median(seconds(step, settings) for _ in range(max(3, settings.rounds)))
    rows: list[list[str | float]] = []
    peer = statistics.median(times[_SVD]) if _SVD in times else None
    for way, found in times.items():
        middle = statistics.median(found)
        rows.append([way, middle, middle / one_step, "" if peer is None else peer / middle])
    title = (
        f"{TITLES[name]} ({size.of(name)}), {_what(name)}: {len(adapter.layers)} layers; a training step takes "
        f"{one_step:.3g} s, the decompositions {busy:.3g} s of processor time"
    )
    stalls = Table(title, ("launch", "stall, s", "in training steps", "times less than the full SVDs"), rows)
    return [stalls, *([_beside_the_thread(adapter, step, settings)] if "thread" in wanted else [])]


def _beside_the_thread(adapter: Adapter, step: Callable[[], None], settings: Settings) -> Table:
    """Wall time of training steps while the thread decomposes, and of as many without it."""

    def mean(steps: int) -> tuple[float, int]:
        """Seconds a step over at least `steps`, and until the thread is done; how many there were."""
        start, done = time.perf_counter(), 0
        while done < steps or adapter.decompositions.working:
            step()
            done += 1
        if settings.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / done, done

    _rewind(adapter, None)
    adapter.prepare()
    beside, count = mean(1)
    alone, _ = mean(count)
    title = f"Training steps, {count} of them, while the background thread decomposes the {len(adapter.layers)} weights"
    rows: list[list[str | float]] = [["beside the thread", beside, beside / alone], ["alone", alone, 1.0]]
    return Table(title, ("steps", "s a step (wall)", "of a step alone"), rows)


def _rewind(adapter: Adapter, folder: str | None) -> None:
    """Before the launch again, with nothing at hand but the files in `folder`."""
    for _, w in adapter.weights():
        w.indices.fill_(-1)
        w.dsigma.detach().zero_()  # training steps were timed in between
    adapter.decompositions = Decompositions(folder)


def _prepare(adapter: Adapter, folder: str) -> None:
    _rewind(adapter, folder)
    adapter.prepare(folder)
    adapter.decompositions.wait()


def full_svds(adapter: Adapter) -> None:
    """The dense formula: an SVD of every weight in float32 on its device, and all change rates by dense products."""
    with torch.no_grad():
        for module, w in adapter.weights():
            W = weight_matrix(adapter.layers[module].base).float()
            U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
            rates = torch.diag(U.T @ (w.scaling * w.B @ w.A) @ Vh.T).abs() / sigma
            chosen = torch.topk(rates, w.k).indices
            w.U.copy_(U[:, chosen])
            w.V.copy_(Vh[chosen])
