"""The formulas of change rates and overlaps written out, and their nulls."""

import numpy as np
import pytest
import torch

from dash_vision.core.analysis import (
    LowRank,
    largest_share,
    matches,
    norm,
    null_pairs,
    null_rates,
    overlap,
    random_update,
    update_rates,
)
from dash_vision.core.directions import singular_directions
from dash_vision.core.loading import probe_weight
from tests.support.adapters import CONFIG, net
from tests.support.models import trained


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_rates_are_the_paper_s_formula_for_low_rank_and_dense_updates(shape):
    W, A, B = matrix(*shape), matrix(3, shape[1], seed=1), matrix(shape[0], 3, seed=2)
    directions = singular_directions(W)
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    expected = [abs(U[:, i] @ (B @ A).numpy() @ Vh[i]) / (S[i] + 1e-6) for i in range(min(shape))]
    assert update_rates(directions, LowRank(A, B)).tolist() == pytest.approx(expected, rel=1e-6)
    assert update_rates(directions, B @ A).tolist() == pytest.approx(expected, rel=1e-6)
    assert norm(LowRank(A, B)) == pytest.approx(np.linalg.norm((B @ A).numpy()))


def test_updates_of_another_layer_are_refused():
    directions = singular_directions(matrix(6, 8))
    for wrong in (matrix(8, 6), LowRank(matrix(2, 6), matrix(8, 2)), LowRank(matrix(2, 8), matrix(6, 3))):
        with pytest.raises(ValueError, match="does not fit a weight of 6 x 8"):
            update_rates(directions, wrong)


def test_overlap_counts_as_the_paper_does():
    true = torch.arange(40.0).flip(0)  # direction 0 is the truest
    predicted = torch.zeros(40)
    predicted[[0, 3, 7, 8, 15, 16, 30, 31]] = torch.arange(8.0) + 1
    # Of the true four {0..3} two are predicted; of the predicted eight five are among the true sixteen {0..15}.
    assert overlap(predicted, true) == (2 / 4, 5 / 8)
    assert overlap(true, true) == (1, 1)
    assert overlap(true, true.flip(0)) == (0, 0)
    assert overlap(torch.tensor([1.0, 2]), torch.tensor([2.0, 1])) == (1, 1)  # both of two directions
    with pytest.raises(ValueError, match="one length"):
        overlap(torch.ones(4), torch.ones(5))


def test_the_null_of_equal_singular_values_is_that_of_drawing_blindly():
    """With equal singular values nothing is favoured: the chance is that of 8 (or 16) of p."""
    p, draws = 64, 1000
    directions = singular_directions(torch.eye(p, dtype=torch.float64) * 2)
    found = [overlap(*pair) for pair in null_pairs(directions, (None, None), draws, seed=0)]
    # A hypergeometric count has mean 8 * 4 / p of 4 and 8 * 16 / p of 8; of 1000 draws it deviates by 0.006 at most.
    assert np.mean([o.recall for o in found]) == pytest.approx(8 / p, abs=0.02)
    assert np.mean([o.accuracy for o in found]) == pytest.approx(16 / p, abs=0.02)


def test_the_null_of_a_square_random_weight_is_far_above_chance():
    """Why every overlap needs its null: independent updates agree, because small singular values are favoured."""
    square = [overlap(*pair) for pair in null_pairs(singular_directions(matrix(256, 256)), (8, 8), 50, seed=1)]
    wide = [overlap(*pair) for pair in null_pairs(singular_directions(matrix(256, 1024)), (8, 8), 50, seed=1)]
    assert np.mean([o.recall for o in square]) > 0.5 > 0.3 > np.mean([o.recall for o in wide])


def test_ranks_match_where_the_directions_are_the_same():
    first = torch.tensor([9.0, 8, 7, 6, 5])  # directions in the order 0 1 2 3 4
    second = torch.tensor([1.0, 5, 0, 4, 3])  # 1 3 4 0 2
    found = matches(first, second, 3)
    assert [tuple(cell) for cell in found.nonzero().tolist()] == [(1, 0)]  # direction 1: second there, first here
    assert matches(first, second).int().tolist() == [
        [0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
    ]
    assert torch.equal(matches(first, first), torch.eye(5, dtype=torch.bool))


def test_the_null_of_rank_matches_is_blind_drawing_for_equal_singular_values():
    p = 32
    pairs = null_pairs(singular_directions(torch.eye(p, dtype=torch.float64)), (None, None), 2000, seed=0)
    null = torch.stack([matches(*pair) for pair in pairs])
    assert null.shape == (2000, 8, 8)
    assert null.double().mean().item() == pytest.approx(1 / p, abs=0.002)  # every cell alike: one of p


def test_null_rates_have_the_update_s_rank_and_norm():
    directions = singular_directions(matrix(20, 30))
    update = LowRank(matrix(2, 30, seed=3), matrix(20, 2, seed=4) * 7)
    drawn = null_rates(directions, update, 400, seed=5)
    assert drawn.shape == (400, 20)
    # E (u^T dW v)^2 = |dW|^2 / (out in) for a random dW: Gaussian factors have no preferred direction.
    projected = drawn * (directions.sigma + 1e-6)
    assert projected.square().mean().item() == pytest.approx(norm(update) ** 2 / 600, rel=0.1)
    random = random_update(directions, 2, torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_rank(random.B @ random.A) == 2


@pytest.mark.parametrize(("rank", "extra"), [(4, 0), (1, 3)])
def test_the_null_of_updates_that_began_with_one_a_shares_it(rank, extra):
    """Against NumPy: B A and C A, where the second may have `extra` rows more, as LoRA-Dash has."""
    W = matrix(48, 48)
    U, S, Vh = np.linalg.svd(W.numpy())
    rng = np.random.default_rng(1)

    def top(B, A, count):
        return set(np.argsort(-np.abs(np.einsum("oi,or,rj,ij->i", U, B, A, Vh, optimize=True)) / S)[:count])

    def simulated(shared):
        found = []
        for _ in range(600):
            A, C = rng.normal(size=(rank, 48)), rng.normal(size=(rank + extra, 48))
            C[:shared] = A[:shared]
            B, D = rng.normal(size=(48, rank)), rng.normal(size=(48, rank + extra))
            chosen = top(B, A, 8)
            found.append((len(chosen & top(D, C, 4)) / 4, len(chosen & top(D, C, 16)) / 8))
        return np.mean(found, axis=0)

    def drawn(shared):
        pairs = null_pairs(singular_directions(W), (rank, rank + extra), 600, 0, shared=shared)
        return np.mean([overlap(first, second) for first, second in pairs], axis=0)

    # The deviation of one overlap is below 0.25, of a difference of two means of 600 below 0.015.
    assert drawn(rank) == pytest.approx(simulated(rank), abs=0.045)
    assert drawn(0) == pytest.approx(simulated(0), abs=0.045)
    if not extra:
        assert drawn(rank).min() > 0.02 + drawn(0).min()


def test_the_largest_share_is_that_of_the_dense_update_to_within_its_cross_term():
    model = net()
    adapter, shares = trained(model, CONFIG), []
    for module, w in adapter.weights():
        low, shift = CONFIG.alpha / CONFIG.rank * w.B @ w.A, w.U * w.dsigma @ w.V
        shares.append(
            (low.square().sum() + shift.square().sum()).sqrt() / model.get_submodule(module).base.weight.norm()
        )
    probes = {module: probe_weight(layer) for module, layer in adapter.layers.items()}
    assert largest_share(adapter, probes) == pytest.approx(max(shares).item(), rel=1e-5)
