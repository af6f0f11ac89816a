"""Where a run computes: device, precision, and the processes of `accelerate launch`."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.sharding import shard
from ..files.errors import InputError
from ..runs.runtime import fast_in_bf16, take_sharding

INTERRUPTED = 75  # EX_TEMPFAIL: not done, nothing wrong, run the same command again


class Interrupted(Exception):
    """The run was asked to stop, and has written its checkpoint."""


@dataclass(frozen=True)
class Runtime:
    """device of this process, bf16 autocast or not, and its place among `world` processes. sharded: the model is split
    over them (FSDP)."""

    device: torch.device
    bf16: bool = False
    rank: int = 0
    world: int = 1
    sharded: bool = False

    @property
    def main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model` under DistributedDataParallel if there are several processes; split over them, in place, for FSDP."""
        if self.world == 1:
            return model
        if self.sharded:
            try:
                shard(model, lambda name, module: re.search(r"(^|\.)blocks\.\d+$", name) is not None, self.device)
            except ValueError as error:
                raise InputError(str(error)) from None
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    def agreed(self, value: float) -> float:
        """The first process's value, on all of them."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return tensor.item()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process; all of them learn it at the same step."""
        return bool(self.total(torch.tensor([float(flag)], device=self.device)).item()) if self.world > 1 else flag

    def close(self) -> None:
        """Leave the process group, if there is one."""
        if self.world > 1:
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def make_runtime(device: str = "auto", mixed_precision: str = "auto") -> Runtime:
    """The runtime of this process. Raises InputError for a device that is not there, and as `take_sharding`."""
    sharded = take_sharding()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        # Without this, accelerate starts no process group where there is no GPU: each process would train by itself.
        state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
        chosen, rank, world = state.device, state.process_index, state.num_processes
    else:
        chosen, rank, world = _device(device), 0, 1
    bf16 = fast_in_bf16(chosen) if mixed_precision == "auto" else mixed_precision == "bf16"
    if chosen.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    return Runtime(chosen, bf16, rank, world, sharded and world > 1)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"there is no device {name!r} ({reason}); use --device auto") from None
    return device
