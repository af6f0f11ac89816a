"""Several gloo processes that do one job together."""

import os
import sys
import traceback
from multiprocessing import get_context

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def spread(job, world, folder, *more):
    """`job(rank, world, folder, *more)` on `world` processes.

    They are forked from a server that has imported what the job needs: importing torch takes longer than a job. They
    are not forked from this process, since autograd does not work in a fork of a process where it has used threads.
    """
    needed = ["torch.distributed.fsdp", "torch.distributed.tensor", "tests.support.networks", job.__module__]
    get_context("forkserver").set_forkserver_preload(needed)  # heeded when the server starts
    mp.start_processes(_start, (job, world, str(folder), *more), nprocs=world, start_method="forkserver")


def _start(rank, job, world, folder, *more):
    try:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}  # as launchers do
        # accelerate asks for these too; the processes find each other by a file.
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        job(rank, world, folder, *more)
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
