"""The measures of the miniature's report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dash_vision.miniature.train.report import nearest, retrieval

# --------------------------------------------------------------------------------------------------- the measures


def test_retrieval_counts_right_choices_in_both_directions() -> None:
    features = torch.eye(4)
    assert retrieval(features, features, ways=4) == (1.0, 1.0)
    swapped = features[[1, 0, 2, 3]]
    assert retrieval(features, swapped, ways=4) == (0.5, 0.5)


def test_nearest_is_zero_for_a_copy_and_the_plain_distance_otherwise() -> None:
    training = np.zeros((3, 64, 64, 3), np.uint8)
    training[1] = 100
    copy = torch.full((1, 3, 64, 64), 100 / 127.5 - 1)
    lighter = torch.full((1, 3, 64, 64), 130 / 127.5 - 1)
    assert nearest(torch.cat([copy, lighter]), training).tolist() == pytest.approx([0, 30], abs=0.1)
