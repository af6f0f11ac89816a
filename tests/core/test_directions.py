"""Singular directions, change rates and choices against NumPy and the dense formula."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dash_vision import DashConfig, inject
from dash_vision.core.directions import change_rates, singular_directions, top_directions
from tests.support import reference
from tests.support.layers import Net, arrays, frozen
from tests.support.models import trained


@pytest.mark.parametrize("shape", [(30, 30), (50, 20), (20, 50), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_directions_are_numpys_svd(shape, dtype):
    W = torch.randn(shape).to(dtype)
    U, sigma, V = singular_directions(W)
    _, expected, _ = np.linalg.svd(W.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(((U * sigma) @ V).numpy(), W.double().numpy(), atol=1e-9)
    identity = np.eye(min(shape))
    np.testing.assert_allclose((U.T @ U).numpy(), identity, atol=1e-7)
    np.testing.assert_allclose((V @ V.T).numpy(), identity, atol=1e-7)


@pytest.mark.parametrize("spectrum", [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1e-3, 1e-9, 1e-12], [1, 1, 1, 1]])
def test_poor_spectra_still_have_orthonormal_directions(spectrum):
    Q = torch.linalg.qr(torch.randn(9, 4).double()).Q
    R = torch.linalg.qr(torch.randn(4, 4).double()).Q
    W = (Q * torch.tensor(spectrum, dtype=torch.float64)) @ R
    U, sigma, V = singular_directions(W)
    np.testing.assert_allclose(sigma.numpy(), spectrum, atol=1e-14)
    np.testing.assert_allclose((U.T @ U).numpy(), np.eye(4), atol=1e-9)
    np.testing.assert_allclose((V @ V.T).numpy(), np.eye(4), atol=1e-9)


def test_directions_do_not_depend_on_autocast():
    W = torch.randn(16, 16)
    plain = singular_directions(W)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, singular_directions(W), strict=True))


@pytest.mark.parametrize("shape", [(30, 30), (24, 10), (10, 24)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_change_rates_and_choice_are_the_dense_formula(shape, eps):
    W, A, B = torch.randn(shape), torch.randn(4, shape[1]), torch.randn(shape[0], 4)
    rates = change_rates(singular_directions(W), A, B, 0.7, eps)
    dW = 0.7 * B.double().numpy() @ A.double().numpy()
    expected = reference.dense_rates(W.double().numpy(), dW, eps)
    np.testing.assert_allclose(rates.numpy(), expected, rtol=1e-6)
    assert top_directions(rates, 5).tolist() == np.argsort(-expected)[:5].tolist()


@pytest.mark.parametrize("selection", ["change_rate", "projection", "top", "bottom"])
def test_every_selection_takes_what_the_dense_formula_takes(selection):
    net = nn.Sequential(nn.Linear(40, 24))
    adapter = inject(net, DashConfig(rank=3, alpha=6, dash_k=5, target=["0"], selection=selection))
    with torch.no_grad():
        adapter.layers["0"].weights("default").B.normal_()
    adapter.launch()
    w, W = arrays(adapter, "0"), frozen(net[0])
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    moved = np.abs(np.diag(U.T @ reference.dense_update(w["A"], w["B"], 6, 3) @ Vh.T))
    order = {"change_rate": -moved / (S + 1e-6), "projection": -moved, "top": -S, "bottom": np.arange(24) < 19}
    expected = np.argsort(order[selection], kind="stable")[:5]
    assert w["indices"].astype(int).tolist() == expected.tolist()


def test_a_planted_direction_is_found():
    W = torch.randn(40, 40)
    U, sigma, V = singular_directions(W)
    A, B = V[[7, 21]].float(), (U[:, [7, 21]] * torch.tensor([3.0, 2.0]) * sigma[[7, 21]]).float()
    rates = change_rates((U, sigma, V), A, B, 1.0, 1e-6)
    assert top_directions(rates, 2).tolist() == [7, 21]
    np.testing.assert_allclose(rates[[7, 21]].numpy(), [3.0, 2.0], rtol=1e-5)


def test_equal_rates_go_to_the_larger_singular_values():
    assert top_directions(torch.zeros(6), 3).tolist() == [0, 1, 2]


def test_too_many_directions_or_nan_rates_are_refused():
    with pytest.raises(ValueError, match="dash_k=4"):
        top_directions(torch.zeros(3), 4)
    with pytest.raises(ValueError, match="eps"):
        top_directions(torch.tensor([1.0, float("inf")]), 1)


def test_a_half_precision_weight_is_decomposed_like_its_float_copy():
    net = nn.Sequential(nn.Linear(24, 24)).to(torch.bfloat16)
    twin = copy.deepcopy(net).float()
    a = trained(net, DashConfig(rank=3, dash_k=4, target=["0"]), launch=False)
    b = trained(twin, DashConfig(rank=3, dash_k=4, target=["0"]), launch=False)
    b.load_state_dict(a.state_dict())
    a.launch()
    b.launch()
    for key, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[key])


def test_launch_stores_what_the_dense_formula_chooses():
    net = Net()
    adapter = inject(net, DashConfig(rank=4, alpha=2, dash_k=3, target=["linear", "gpt", "conv"]))
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_()
        for _, w in adapter.weights():
            w.dsigma.zero_()
    report = adapter.launch()
    assert report.layers == 3
    for module, layer in adapter.layers.items():
        w, W = arrays(adapter, module), frozen(layer)
        rates = reference.dense_rates(W, reference.dense_update(w["A"], w["B"], 2, 4), 1e-6)
        chosen = np.argsort(-rates)[:3]
        assert w["indices"].astype(int).tolist() == chosen.tolist()
        _, S, _ = np.linalg.svd(W, full_matrices=False)
        for i, index in enumerate(chosen):
            np.testing.assert_allclose(W @ w["V"][i], S[index] * w["U"][:, i], atol=1e-5)


def test_directions_come_from_the_weight_before_a_cast():
    torch.manual_seed(2)
    exact = nn.Linear(24, 16)
    model = nn.Sequential(nn.Linear(24, 16))
    model.load_state_dict({f"0.{k}": v for k, v in exact.state_dict().items()})
    model.to(torch.bfloat16)
    adapter = inject(model, DashConfig(rank=2, dash_k=3, target=["0"]))
    adapter.layers["0"].precise_weight = exact.weight.detach
    with torch.no_grad():
        adapter.layers["0"].weights("default").B.normal_()
    adapter.launch()
    w = adapter.layers["0"].weights("default")
    U, _, Vh = torch.linalg.svd(exact.weight.detach().double(), full_matrices=False)
    for j, i in enumerate(w.indices.tolist()):  # up to the sign that both vectors share
        assert abs((U[:, i] @ w.U[:, j].double()).item()) == pytest.approx(1, abs=1e-6)
        assert abs((Vh[i] @ w.V[j].double()).item()) == pytest.approx(1, abs=1e-6)
