"""What a DreamBooth run takes of the machine's memory until it has made its first step, and how long that lasts.

    python -m benchmarks.host DIR --base sdxl              a base of published size, mixed precision
    python -m benchmarks.host DIR --base flux2-klein-4b --steps 0

The base's weights are random numbers in bfloat16, in files of 1 GB at most, which are written to DIR first (8 GB for
FLUX.2 klein 4B, whose text encoder is left narrow). A process of its own then trains on pictures of 64 pixels. Its
maximum resident set is set against the largest network as it is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import published
from .measure import Table

SHARD = 10**9  # bytes
_NARROW = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 28}
_STARTED = time.perf_counter()


def write(name: str, folder: Path) -> Path:
    """The base called `name` with weights in folder/name, unless it is there."""
    from dash_vision.bases.loading import load_base

    out, done = folder / name, folder / name / "weights-are-here"
    if done.exists():
        return out
    kind, networks = published.BASES[name]
    if name == "flux2-klein-4b":
        networks = {
            **networks,
            "text_encoder": ("kept", {**networks["text_encoder"][1], **_NARROW, "vocab_size": 2000}),
        }
        networks["text_encoder"][1].update(layer_types=["full_attention"] * 28, max_window_layers=28)  # type: ignore[attr-defined]
    with mock.patch.dict(published.BASES, {name: (kind, networks)}):
        published.write(name, folder)
    base = load_base(str(out), without_weights=True)
    torch.manual_seed(0)
    pool = torch.rand(2**22).mul_(0.04).bfloat16()
    for part, network in base.components().items():
        stem = (
            "model"
            if (out / part / "config.json").read_text().count("transformers_version")
            else "diffusion_pytorch_model"
        )
        _write_shards(out / part, stem, network.state_dict(), pool)
    done.touch()
    return out


def _write_shards(folder: Path, stem: str, tensors: Mapping[str, Tensor], pool: Tensor) -> None:
    """Random tensors of these shapes, in files of at most SHARD bytes, with their index."""
    shards = list(_shards(tensors))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        content = {name: _numbers(tensors[name].shape, pool, len(places) + i) for i, name in enumerate(names)}
        save_file(content, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(2 * t.numel() for t in tensors.values())}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    names, size = list[str](), 0
    for name, tensor in tensors.items():
        if names and size + 2 * tensor.numel() > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * tensor.numel()
    yield names


def _numbers(shape: torch.Size, pool: Tensor, turn: int) -> Tensor:
    """Numbers of the pool, from another place for each tensor; none is negative, as variances must not be."""
    wanted = math.prod(shape)
    return pool.roll(997 * turn).repeat(-(-wanted // len(pool)))[:wanted].view(shape).clone()


def train(folder: Path, pictures: Path, precision: str, steps: int) -> dict[str, Any]:
    """In this process: prepare a run on the base in `folder`, and make its first step."""
    from dash_vision.diffusion.config import DreamBoothConfig
    from dash_vision.diffusion.setup import prepare
    from dash_vision.runs.runtime import make_runtime

    with tempfile.TemporaryDirectory() as out:
        settings = DreamBoothConfig(
            pretrained_model_name_or_path=str(folder),
            instance_data_dir=str(pictures),
            instance_prompt="a photo of sks cat",
            output_dir=out,
            resolution=64,
            train_batch_size=1,
            gradient_checkpointing=True,
        )
        job = prepare(settings, make_runtime(precision, "cpu"), lambda line: print(line, file=sys.stderr))
        for step in range(steps):
            job.loss(step).backward()
        networks = job.base.components().values()
        kept = max(sum(p.numel() * p.element_size() for p in network.parameters()) for network in networks)
        job.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"kept": kept, "peak": peak, "seconds": time.perf_counter() - _STARTED}


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the base is written, and found again")
    parser.add_argument("--base", choices=("sd15", "sdxl", "flux2-klein-4b", "z-image"), default="sdxl")
    parser.add_argument("--pictures", type=Path, default=Path("cat"), metavar="DIR", help="to train on (default: cat)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="0 measures until the first step begins")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Write the base where it is not there, and measure a process that trains on it."""
    args = make_parser().parse_args()
    if args.here:
        print(json.dumps(train(args.folder, args.pictures, args.mixed_precision, args.steps)))
        return 0
    base = write(args.base, args.folder)
    words = ["--pictures", str(args.pictures), "--mixed_precision", args.mixed_precision, "--steps", str(args.steps)]
    command = [sys.executable, "-m", "benchmarks.host", str(base), "--here", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    kept, peak = found["kept"], found["peak"]
    cells = [kept / 1e9, peak / 1e9, (peak - 1e9) / kept, found["seconds"]]
    columns = ("base", "largest network, GB", "peak, GB", "(peak - 1 GB) / network", "s")
    print(Table(f"A run's own memory, {args.mixed_precision}, {args.steps} steps", columns, [[args.base, *cells]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
