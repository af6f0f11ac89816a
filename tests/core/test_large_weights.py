"""Weights that are decomposed a few rows at a time, in little memory: as a float64 SVD has them."""

import numpy as np
import pytest
import torch
from torch import nn

import dash_vision.core.decompositions as decompositions
import dash_vision.core.directions as directions
from benchmarks.step import allocated_on_cpu
from dash_vision import DashConfig, inject
from dash_vision.core.directions import change_rates, decompose, memory_of, projections, singular_directions
from tests.support.models import trained

SHAPES = [(96, 96), (320, 96), (96, 320)]
LONG = torch.logspace(0, -6, 96, dtype=torch.float64)


@pytest.fixture(autouse=True)
def in_blocks(monkeypatch):
    """Some thirty rows at a time."""
    monkeypatch.setattr(directions, "_BLOCK", 30 * 96 * 8)


def with_spectrum(shape, sigma):
    """A matrix of these singular values, float64."""
    left, right = (torch.linalg.qr(torch.randn(side, len(sigma)).double()).Q for side in shape)
    return (left * sigma) @ right.T


def rates_of(W, A, B):
    """The change rates by the way of the launch, and by NumPy's SVD."""
    spectrum = decompose(W)
    U, S, Vh = np.linalg.svd(W.double().numpy(), full_matrices=False)
    moved = np.abs(np.sum((U.T @ B.numpy()) * (Vh @ A.numpy().T), axis=1))
    return projections(spectrum, A, B, 1.0, W) / (spectrum.sigma + 1e-6), moved / (S + 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_weight_in_blocks_is_decomposed_as_a_whole(shape, dtype, monkeypatch):
    W = torch.randn(shape).to(dtype)
    found = singular_directions(W)
    monkeypatch.undo()
    for part, whole in zip(found, singular_directions(W), strict=True):
        np.testing.assert_allclose(part, whole, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lowest", [1e-3, 1e-5, 1e-6])
def test_change_rates_of_ill_conditioned_weights_are_those_of_an_svd(shape, lowest):
    W = with_spectrum(shape, torch.logspace(0, np.log10(lowest), 96, dtype=torch.float64))
    assert not decompose(W).in_full
    A, B = torch.randn(4, shape[1]).double(), torch.randn(shape[0], 4).double()
    rates, expected = rates_of(W, A, B)
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-6 * expected.max())
    order = np.argsort(-expected)
    assert (np.diff(-expected[order[:9]]) > 1e-5 * expected.max()).all()  # told apart beyond rounding
    assert directions.top_directions(rates, 8).tolist() == order[:8].tolist()


def test_the_smallest_singular_values_keep_ten_digits():
    W = with_spectrum((320, 96), LONG)
    found = singular_directions(W)
    np.testing.assert_allclose(found.sigma, LONG, rtol=1e-9)
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(96), atol=1e-8)
    np.testing.assert_allclose(found.V @ found.V.T, np.eye(96), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_small_direction_that_an_update_moves_is_the_one_chosen(shape):
    U, _, V = singular_directions(with_spectrum(shape, LONG))
    W = (U * LONG) @ V
    assert change_rates(singular_directions(W), V[[90]], (U[:, [90]] * 1e-5)).argmax() == 90


@pytest.mark.parametrize("shape", SHAPES)
def test_a_singular_weight_takes_a_full_svd(shape):
    sigma = torch.cat([torch.linspace(2, 1, 60), torch.zeros(36)]).double()
    W = with_spectrum(shape, sigma)
    assert decompose(W).in_full
    U, S, V = singular_directions(W)
    np.testing.assert_allclose(S, sigma, atol=1e-13)
    for vectors in (U.T @ U, V @ V.T):
        np.testing.assert_allclose(vectors, np.eye(96), atol=1e-11)
    np.testing.assert_allclose((U * S) @ V, W, atol=1e-12)


def test_equal_singular_values_have_orthonormal_directions():
    W = with_spectrum((320, 96), torch.cat([torch.full((48,), 2.0), torch.full((48,), 1e-4)]).double())
    U, S, V = singular_directions(W)
    np.testing.assert_allclose(U.T @ U, np.eye(96), atol=1e-9)
    np.testing.assert_allclose(V @ V.T, np.eye(96), atol=1e-12)
    np.testing.assert_allclose((U * S) @ V, W, atol=1e-12)


def test_a_number_that_is_none_is_found_in_the_last_block():
    W = torch.randn(320, 96)
    W[319, 95] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        decompose(W)


@pytest.mark.parametrize("shape", [(900, 300), (300, 900)])
def test_a_decomposition_takes_the_memory_that_is_said(shape):
    W = torch.randn(shape, dtype=torch.bfloat16)
    most = allocated_on_cpu(lambda: decompose(W))
    assert 8 * 4 * 300**2 <= most <= memory_of(*shape)
    # Choosing by it never has the weight in float64.
    w = inject(nn.Sequential(nn.Linear(*shape[::-1])), DashConfig(rank=2, dash_k=2, target=["0"])).layers["0"]
    spectrum, w = decompose(W), w.weights("default")
    assert allocated_on_cpu(lambda: w.choose(W, w.factors(), spectrum, 1e-6, "change_rate", None)) < 8 * 900 * 300 / 3


def test_a_launch_says_how_many_weights_are_nearly_singular():
    net = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    with torch.no_grad():
        net[1].weight[3] = 0
    report = trained(net, DashConfig(rank=2, dash_k=4, target=["0", "1"]), launch=False).launch()
    assert report.in_full == 1
    assert "1 of the weights" in str(report)


@pytest.mark.parametrize(
    ("capability", "there"), [((8, 9), False), ((8, 6), False), ((12, 0), False), ((9, 0), True), ((8, 0), True)]
)
def test_gpus_that_are_slow_in_float64_leave_it_to_the_cpu(capability, there, monkeypatch):
    """NVIDIA's tables: an A100 (8.0) has half of its float32 speed in float64, an RTX 4090 (8.9) a sixty-fourth."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 0)
    assert decompositions.place_of(device) == (device if there else torch.device("cpu"))
    assert decompositions.place_of(torch.device("cpu")) == torch.device("cpu")
