"""What a merge into few bits keeps of an update."""

import pytest
import torch

from dash_vision.bases.rounding import rounded, surviving
from tests.support.quantized import WORDS, need


def whole_numbers(W):
    return W.round()


@pytest.mark.parametrize(
    ("update", "share"),
    [
        ([1.0, 1.0, -2.0, 3.0], 1.0),  # whole steps stay
        ([0.4, -0.4, 0.4, 0.4], 0.0),  # less than half a step is lost
        ([1.0, 1.0, 0.4, 0.4], 1 / 1.16),  # R = [1, 1, 0, 0]: 2^2 / (2 * (2 + 2 * 0.16))
        ([0.6, 0.6, 0.6, 0.6], 1.0),  # all of it grows by the same factor: no share is lost
        ([3.0, 0.6, 0.0, 0.0], 9.6**2 / (10 * 9.36)),  # R = [3, 1, 0, 0]
        ([0.0, 0.0, 0.0, 0.0], 0.0),
    ],
)
def test_the_share_that_survives_is_that_of_the_formula(update, share):
    W = torch.tensor([[5.0, -3.0], [2.0, 0.0]])
    assert surviving(W, torch.tensor(update).view(2, 2), whole_numbers) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("word", WORDS)
def test_a_large_update_survives_and_a_tiny_one_does_not(word):
    need(word)
    torch.manual_seed(0)
    W, direction = torch.randn(48, 96), torch.randn(48, 96)

    def share(size):
        return surviving(W, size * direction, lambda weight: rounded(weight, word))

    assert share(3.0) > 0.95
    assert share(1e-4) < 0.05
    assert share(1e-4) < share(1e-2) < share(1.0)


def test_rounding_to_int8_is_to_127ths_of_a_rows_largest_weight():
    need("int8")
    W = torch.tensor([[127.0, 3.4, -7.6, 0.2], [-254.0, 3.4, 1.2, 0.2]])
    expected = torch.tensor([[127.0, 3.0, -8.0, 0.0], [-254.0, 4.0, 2.0, 0.0]])
    torch.testing.assert_close(rounded(W, "int8"), expected, rtol=1e-2, atol=1e-2)


def test_the_blocks_of_nf4_are_those_of_the_layer():
    need("nf4")
    import bitsandbytes as bnb

    W = torch.randn(32, 128)
    kept = bnb.nn.Params4bit(W.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False).to("cpu")
    torch.testing.assert_close(rounded(W, "nf4"), bnb.functional.dequantize_4bit(kept.data, kept.quant_state))
