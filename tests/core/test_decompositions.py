"""Decompositions made ahead: the same launch from a thread, from files, and from the weights themselves."""

import copy
import os
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
import torch
from torch import nn

import dash_vision.core.decompositions as decompositions
from dash_vision import DashConfig, inject
from dash_vision.core.directions import decompose, projections, singular_directions
from tests.support.models import trained

SHAPES = [(30, 30), (50, 20), (20, 50), (1, 9), (9, 1)]


@pytest.fixture
def counted(monkeypatch):
    """The shapes that were decomposed so far."""
    calls = []
    monkeypatch.setattr(decompositions, "decompose", lambda W: calls.append(tuple(W.shape)) or decompose(W))
    return calls


def untrained(**settings):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 16), nn.Conv2d(3, 8, 3))
    return trained(net, DashConfig(rank=2, dash_k=4, target=["0", "2", "3"], **settings), launch=False)


def buffers(adapter):
    adapter.launch()
    return adapter.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[key]) for key, t in a.items())


# -- half of a decomposition says all


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("deficient", [False, True])
def test_projections_and_directions_follow_from_the_shorter_side(shape, deficient):
    W = torch.randn(shape).double()
    if deficient:
        W[0] = 0
        W[:, 0] = 0
    A, B = torch.randn(3, shape[1]).double(), torch.randn(shape[0], 3).double()
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    expected = np.abs(np.diag(U.T @ (0.5 * B.numpy() @ A.numpy()) @ Vh.T))
    spectrum = decompose(W)
    sound = S > 1e-12  # the directions of equal singular values (zeros) are not unique
    np.testing.assert_allclose(spectrum.sigma, S, atol=1e-12)
    np.testing.assert_allclose(projections(spectrum, A, B, 0.5, W).numpy()[sound], expected[sound], atol=1e-8)
    for i in np.flatnonzero(sound)[::3]:
        u, sigma, v = singular_directions(W, spectrum, torch.tensor([i]))
        np.testing.assert_allclose(sigma * u @ v, S[i] * np.outer(U[:, i], Vh[i]), atol=1e-8)


def test_a_regular_weight_keeps_the_vectors_of_one_side_only():
    tall, wide = decompose(torch.randn(50, 20)), decompose(torch.randn(20, 50))
    assert tall.U is None
    assert tall.V.shape == (20, 20)
    assert wide.V is None
    assert wide.U.shape == (20, 20)


# -- in the background


@pytest.mark.parametrize("progress", ["none", "one", "all"])
def test_a_launch_does_not_depend_on_how_far_the_thread_came(progress, monkeypatch, counted):
    expected = buffers(untrained())
    adapter = untrained()
    del counted[:]
    if progress == "all":
        adapter.prepare()
        adapter.decompositions.wait()
    else:
        reached = threading.Event()

        def stopping(W):
            if len(counted) == (progress == "one") and threading.current_thread() is not threading.main_thread():
                reached.set()
                raise MemoryError  # the thread gives up here
            counted.append(tuple(W.shape))
            return decompose(W)

        monkeypatch.setattr(decompositions, "decompose", stopping)
        adapter.prepare()
        assert reached.wait(300)
    assert same(buffers(adapter), expected)
    assert sorted(counted) == [(8, 27), (16, 32), (32, 24)]  # each once, whoever did it


def test_the_thread_ends_where_memory_is_short(monkeypatch, counted):
    expected = buffers(untrained())
    del counted[:]
    total = psutil.virtual_memory().total
    assert decompositions.memory_is_short(total)
    assert not decompositions.memory_is_short(-total)
    monkeypatch.setattr(decompositions, "memory_is_short", lambda needed: True)
    adapter = untrained()
    adapter.prepare()
    adapter.decompositions.wait()
    assert counted == []
    assert same(buffers(adapter), expected)


def test_a_weight_that_changes_after_it_was_decomposed_is_decomposed_anew():
    other = untrained()
    adapter = untrained()
    adapter.prepare()
    adapter.decompositions.wait()
    for a in (adapter, other):
        with torch.no_grad():
            a.layers["0"].base.weight.mul_(torch.linspace(0.1, 2, 24))
    assert same(buffers(adapter), buffers(other))


def test_merging_while_the_thread_works_changes_no_launch():
    expected = buffers(untrained())
    adapter = untrained()
    adapter.prepare()
    adapter.merge()
    adapter.unmerge()
    assert same(buffers(adapter), expected)


def test_nothing_is_prepared_where_no_launch_comes(counted):
    adapter = untrained()
    adapter.launch()
    del counted[:]
    adapter.prepare()
    inject(nn.Sequential(nn.Linear(4, 4)), DashConfig(rank=2, dash_k=0, target=["0"])).prepare()
    assert counted == []


def test_a_resumed_dash_ends_the_preparation():
    done, adapter = untrained(), untrained()
    done.launch()
    adapter.prepare()
    thread = adapter.decompositions._thread
    adapter.load_state_dict(done.state_dict())
    assert not thread.is_alive()
    assert same(adapter.state_dict(), done.state_dict())


def test_a_prepared_model_can_be_copied_and_dropped():
    adapter = untrained()
    adapter.prepare()
    twin = copy.deepcopy(adapter.model).dash_adapters["default"]
    assert same(buffers(twin), buffers(adapter))


def test_a_program_ends_while_its_thread_works():
    program = (
        "from torch import nn; from dash_vision import DashConfig, inject;"
        "model = nn.Sequential(*[nn.Linear(400, 400) for _ in range(500)]);"
        "inject(model, DashConfig(target=r'\\d+')).prepare(); print('end')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "end", "")


# -- on disk


def test_a_later_run_on_the_same_weights_reads_them(tmp_path, monkeypatch, counted):
    expected = buffers(untrained())
    monkeypatch.setenv(decompositions.VARIABLE, str(tmp_path / "new" / "folder"))
    assert same(buffers(untrained()), expected)
    del counted[:]
    assert same(buffers(untrained()), expected)
    adapter = untrained()
    adapter.prepare()
    adapter.decompositions.wait()
    assert same(buffers(adapter), expected)
    assert counted == []
    with torch.no_grad():
        adapter = untrained()
        adapter.layers["2"].base.weight[0, 0] += 1
    adapter.launch()
    assert counted == [(16, 32)]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_file_is_written_anew(damage, tmp_path, counted):
    W = torch.randn(12, 20)
    expected = decompositions.read_or_decompose(W, tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-100] ^= 64
    path.write_bytes({"cut": good[:-40], "flip": bytes(flipped), "empty": b"", "foreign": b"GIF89a" * 99}[damage])
    again = decompositions.read_or_decompose(W, tmp_path)
    assert len(counted) == 2
    assert torch.equal(again.U, expected.U)
    assert path.read_bytes() == good
    decompositions.read_or_decompose(W, tmp_path)
    assert len(counted) == 2


def test_a_folder_that_cannot_be_written_stops_no_launch(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.warns(UserWarning, match="cannot keep a decomposition"):
        found = decompositions.read_or_decompose(torch.randn(4, 6), file)
    assert found.sigma.shape == (4,)


def test_the_folder_does_not_outgrow_its_limit(tmp_path, monkeypatch):
    weights = [torch.randn(30, 30) for _ in range(4)]
    for age, W in enumerate(weights[:3]):
        decompositions.read_or_decompose(W, tmp_path)
        newest = max(tmp_path.iterdir(), key=os.path.getmtime)
        os.utime(newest, (1000 + age, 1000 + age))
    size = newest.stat().st_size
    decompositions.read_or_decompose(weights[0], tmp_path)  # used again
    monkeypatch.setattr(decompositions, "LIMIT", 3 * size)
    decompositions.read_or_decompose(weights[3], tmp_path)
    kept = [decompositions._read(tmp_path / f.name).sigma for f in tmp_path.iterdir()]
    assert sorted(s[0].item() for s in kept) == sorted(decompose(weights[i]).sigma[0].item() for i in (0, 2, 3))
