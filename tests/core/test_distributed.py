"""Two gloo processes: equal directions on every rank, DDP without find_unused_parameters, failure on all ranks."""

import os
import sys
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from dash_vision import DashConfig, DashSchedule, inject
from tests.support.networks import batch, net

WORLD = 2


def train(model, adapter, schedule, shard):
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.5)
    for step in range(8):
        optimizer.zero_grad()
        model(batch(step)[shard]).square().mean().backward()
        optimizer.step()
        schedule.step()


def _trains(rank, folder):
    model = net()
    adapter = inject(model, DashConfig(rank=2, dash_k=3, target=["0", "2", "4"]))
    wrapped = nn.parallel.DistributedDataParallel(model)
    decomposed = []
    import dash_vision.core.decompositions as decompositions

    original = decompositions.decompose
    decompositions.decompose = lambda W: decomposed.append(tuple(W.shape)) or original(W)
    train(wrapped, adapter, DashSchedule(adapter, prelaunch_steps=4), slice(rank * 4, rank * 4 + 4))
    torch.save((adapter.state_dict(), decomposed), f"{folder}/{rank}.pt")


def _fails(rank, folder):
    model = net()
    adapter = inject(model, DashConfig(rank=2, dash_k=3, target=["0", "2", "4"]))
    if rank == 1:
        with torch.no_grad():
            for _, w in adapter.weights():
                w.B.fill_(float("nan"))
    try:
        adapter.launch()
        message = "no error"
    except ValueError as error:
        message = str(error)
    with open(f"{folder}/{rank}.txt", "w") as file:
        file.write(message)


def _run(rank, job, folder):
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
        job(rank, folder)
        dist.destroy_process_group()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


@pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")
def test_two_processes_train_like_one(tmp_path):
    mp.start_processes(_run, (_trains, str(tmp_path)), nprocs=WORLD, start_method="fork")
    (first, done0), (second, done1) = (torch.load(tmp_path / f"{r}.pt") for r in range(WORLD))
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert len(done0) >= 1
    assert len(done1) >= 1
    assert len(done0) + len(done1) == 3

    model = net()
    adapter = inject(model, DashConfig(rank=2, dash_k=3, target=["0", "2", "4"]))
    train(model, adapter, DashSchedule(adapter, prelaunch_steps=4), slice(None))
    for key, tensor in adapter.state_dict().items():
        torch.testing.assert_close(tensor, first[key], atol=1e-5, rtol=0, msg=key)


@pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")
def test_a_failure_on_one_rank_is_an_error_on_all(tmp_path):
    mp.start_processes(_run, (_fails, str(tmp_path)), nprocs=WORLD, start_method="fork")
    messages = [(tmp_path / f"{r}.txt").read_text() for r in range(WORLD)]
    assert messages[0] == messages[1]
    assert "NaN" in messages[0]
