"""Devices, precision and processes of a VTAB run."""

import os
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dash_vision.classification.drop_path import DropPaths
from dash_vision.classification.runtime import Runtime, make_runtime
from dash_vision.files.errors import InputError
from tests.support.vtab import trainer_of


def test_a_device_that_is_not_there_is_explained(monkeypatch):
    with pytest.raises(InputError, match="there is no device 'cuda:77'"):
        make_runtime("cuda:77")
    with pytest.raises(InputError, match="there is no device 'abacus'"):
        make_runtime("abacus")
    assert make_runtime("cpu", "no") == Runtime(torch.device("cpu"))
    for amx, avx512 in ((True, True), (True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        assert make_runtime("cpu").bf16 is (amx or avx512)
        assert make_runtime("cpu", "bf16").bf16


def test_bf16_autocast_trains_and_keeps_float32_weights(data):
    trainer = trainer_of(data, Runtime(torch.device("cpu"), bf16=True))
    trainer.fit(2)
    assert trainer.curve[-1].val_loss > 0
    assert {p.dtype for p in trainer.tuned.trainable().values()} == {torch.float32}


def test_stochastic_depth_is_timms_and_independent_of_the_number_of_processes():
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(7, 3, 32, 32, generator=draws)
    model = timm.create_model("vtab_tiny", num_classes=4, drop_path_rate=0.6).train()
    torch.manual_seed(5)
    expected = model(images)
    paths = DropPaths(model)
    assert len(paths.paths) == 2  # of the last block; the first one's probability is 0
    for world in (1, 2, 3, 8):
        for rank in range(world):
            torch.manual_seed(5)
            paths.draw(7, rank, world, torch.device("cpu"))
            if rank < 7:
                found = model(images[rank::world])
                torch.testing.assert_close(found, expected[rank::world], atol=1e-6, rtol=1e-5)
            else:
                assert torch.isfinite(model(images[:1])).all()
    plain = timm.create_model("vtab_tiny", num_classes=4).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(images), plain(images))


def _work(rank, world, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    trainer = trainer_of(Path(folder), Runtime(torch.device("cpu"), rank=rank, world=world), **_SHARED)
    trainer.fit(3)
    weights = {name: p.detach() for name, p in trainer.tuned.trainable().items()}
    torch.save((weights, [(s.train_loss, s.val_loss) for s in trainer.curve]), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# Batches of 23 and 1: in the last one, one process has nothing to do.
_SHARED = {"batch_size": 23, "drop_path": 0.5, "prelaunch_steps": 3}


def test_two_processes_compute_what_one_does(data):
    alone = trainer_of(data, **_SHARED)
    alone.fit(3)
    mp.spawn(_work, (2, str(data)), nprocs=2)
    for rank in range(2):
        weights, losses = torch.load(data / f"{rank}.pt")
        for name, parameter in alone.tuned.trainable().items():
            torch.testing.assert_close(weights[name], parameter.detach(), atol=2e-5, rtol=1e-3)
        for (train, val), score in zip(losses, alone.curve, strict=True):
            assert (train, val) == pytest.approx((score.train_loss, score.val_loss), rel=1e-4)
