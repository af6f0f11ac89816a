"""Devices, precision and processes of a VTAB run."""

from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist

from dash_vision.classification.drop_path import DropPaths
from dash_vision.files.errors import InputError
from dash_vision.runs.runtime import make_runtime, usual_precision
from tests.support.processes import spread
from tests.support.vtab import COUNTS, cpu, fit, job_of, write_task


def test_a_device_that_is_not_there_is_explained():
    with pytest.raises(InputError, match="there is no device 'cuda:77'"):
        make_runtime(device="cuda:77")
    with pytest.raises(InputError, match="there is no device 'abacus'"):
        make_runtime(usual_precision("abacus"), "abacus")


def test_half_precision_is_used_where_the_processor_is_made_for_it(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for amx, avx512 in ((True, True), (True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        assert usual_precision("cpu") == ("bf16" if amx or avx512 else "no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # accelerate launch's setting
    assert usual_precision("cpu") is None


def test_bf16_autocast_trains_and_keeps_float32_weights(data):
    job = job_of(data, cpu("bf16"))
    fit(job, 2)
    assert job.curve[-1].val_loss > 0
    assert {p.dtype for p in job.tuned.trainable().values()} == {torch.float32}


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
    job = job_of(Path(folder), cpu(), **_SHARED, train_batch_size=6, processes=world)
    fit(job, 3)
    weights = {name: p.detach() for name, p in job.tuned.trainable().items()}
    torch.save((weights, [(s.train_loss, s.val_loss) for s in job.curve]), f"{folder}/{rank}.pt")
    dist.barrier()


_SHARED = {"drop_path": 0.5, "prelaunch_steps": 4}


def test_two_processes_compute_what_one_does(tmp_path):
    # Batches of 12, 12 and 1 images: in the last one, one process has nothing to do.
    write_task(tmp_path / "data", counts={**COUNTS, "train800": 25})
    alone = job_of(tmp_path, **_SHARED, train_batch_size=12)
    fit(alone, 3)
    spread(_work, 2, tmp_path)
    for rank in range(2):
        weights, losses = torch.load(tmp_path / f"{rank}.pt")
        for name, parameter in alone.tuned.trainable().items():
            torch.testing.assert_close(weights[name], parameter.detach(), atol=2e-5, rtol=1e-3)
        for (train, val), score in zip(losses, alone.curve, strict=True):
            assert (train, val) == pytest.approx((score.train_loss, score.val_loss), rel=1e-4)
