"""A small network and its batches, for tests with several processes."""

import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))


def batch(step):
    return torch.randn(8, 10, generator=torch.Generator().manual_seed(step))
