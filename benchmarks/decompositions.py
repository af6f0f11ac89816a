"""What the decomposition of one weight takes of the machine's memory, and what choosing its directions takes.

    python -m benchmarks.decompositions [OUTxIN ...]

Each number is of a process of its own, on the CPU: by how much its largest resident set grows while it decomposes a
weight of random bfloat16 numbers in a file, or chooses directions when weight and decomposition are in memory. The
growth of the first includes the pages of the weight's file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dash_vision.bases.stored import tensors_in
from dash_vision.core.directions import decompose
from dash_vision.core.weights import DashWeights

from .measure import Table

SHAPES = [(12288, 3072), (4096, 16384), (6144, 24576)]
WEIGHT, SPECTRUM = "weight.safetensors", "spectrum.pt"  # in the folder that the processes share
RANK, K = 16, 8


def _grown(work: Callable[[], Any]) -> tuple[int, float, Any]:
    """(bytes by which the resident set grows at most, seconds, what it returns) of `work`. Linux only: getrusage would
    begin with what this process, and the one that started it, held before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the largest is what there is now
    before, start = _resident("VmRSS"), time.perf_counter()
    result = work()
    return _resident("VmHWM") - before, time.perf_counter() - start, result


def _resident(which: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024


def decomposing(folder: Path) -> tuple[int, float]:
    """In this process: (growth in bytes, seconds) of decomposing the weight in `folder`, which keeps the result."""
    read = tensors_in([folder / WEIGHT])["weight"]
    grown, seconds, spectrum = _grown(lambda: decompose(read()))
    torch.save(spectrum, folder / SPECTRUM)
    return grown, seconds


def choosing(folder: Path) -> tuple[int, float]:
    """In this process: the same of choosing K directions for an update of rank RANK, by the spectrum in `folder`."""
    read = tensors_in([folder / WEIGHT])["weight"]
    out, in_ = read.shape
    spectrum = torch.load(folder / SPECTRUM, weights_only=False)
    w = DashWeights(out, in_, RANK, scaling=1.0, k=K, dropout=0.0, device=torch.device("cpu"))
    weight = read().clone()
    factors = torch.randn(RANK, in_), torch.randn(out, RANK)
    return _grown(lambda: w.choose(weight, factors, spectrum, 1e-6, "change_rate", torch.Generator()))[:2]


PARTS = {"decomposing": decomposing, "choosing": choosing}


def measure(out: int, in_: int) -> list[str | float]:
    """A row of the table, each part in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        weight = torch.randn(out, in_, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
        save_file({"weight": weight}, Path(folder, WEIGHT))
        found = {}
        for part in PARTS:
            command = [sys.executable, "-m", "benchmarks.decompositions", "--here", part, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[part] = json.loads(done.stdout.splitlines()[-1])
    (decomposed, seconds), (chosen, _) = found["decomposing"], found["choosing"]
    return [f"{out} x {in_}", 2 * out * in_ / 2**20, decomposed / 2**20, seconds, chosen / 2**20]


def _shape(text: str) -> tuple[int, int]:
    out, _, in_ = text.partition("x")
    if not (out.isdigit() and in_.isdigit() and int(out) and int(in_)):
        raise argparse.ArgumentTypeError(f"it takes a size such as 12288x3072, got {text!r}")
    return int(out), int(in_)


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser("python -m benchmarks.decompositions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shapes", nargs="*", metavar="OUTxIN", type=_shape, help="sizes (default: large ones)")
    parser.add_argument("--here", nargs=2, metavar=("PART", "DIR"), help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    args = make_parser().parse_args(arguments)
    if args.here:
        part, folder = args.here
        print(json.dumps(PARTS[part](Path(folder))))
        return 0
    rows = [measure(*shape) for shape in args.shapes or SHAPES]
    columns = ("weight, bfloat16", "its file, MiB", "decomposing, MiB", "decomposing, s", "choosing directions, MiB")
    print(Table("Decompositions in float64", columns, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
