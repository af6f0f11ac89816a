"""Numbers as pages show them."""

import pytest

from dash_vision.drawing.numbers import fixed, percent, shortest


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (-0.0004, 3, False, "0.000"),
        (-0.0004, 3, True, "0.000"),
        (0.0004, 3, True, "0.000"),
        (-0.0, 2, True, "0.00"),
        (-0.0006, 3, True, "-0.001"),
        (0.0006, 3, True, "+0.001"),
        (-0.4, 0, False, "0"),
        (12.345, 1, False, "12.3"),
        (float("-inf"), 2, True, "-inf"),
    ],
)
def test_what_rounds_to_zero_has_no_sign(value, digits, sign, text):
    assert fixed(value, digits, sign) == text


@pytest.mark.parametrize(("value", "text"), [(-0.0, "0"), (0.1 + 0.2, "0.3"), (1e-5, "1e-5"), (25.0, "25")])
def test_a_number_is_as_short_as_six_digits_take(value, text):
    assert shortest(value) == text


def test_shares_are_whole_percent():
    assert [percent(share) for share in (0.0, -0.001, 0.614, 1.0)] == ["0 %", "0 %", "61 %", "100 %"]
