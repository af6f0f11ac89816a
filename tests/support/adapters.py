"""A small network and the configuration of its adapter."""

import torch
from torch import nn

from dash_vision import DashConfig


def net(seed=0, width=12):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 6), nn.Sequential(nn.Linear(6, 6)))


CONFIG = DashConfig(rank=3, alpha=5, dash_k=4, target=["0", "2"])
