"""Small networks: one for tests with several processes, one with a layer of every kind."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    """One layer of every kind, 12 in and 20 out for the linear ones."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 20)
        self.bare = nn.Linear(12, 20, bias=False)
        self.gpt = Conv1D(20, 12)
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.point = nn.Conv2d(3, 8, 1)
        nn.init.normal_(self.gpt.bias)


def arrays(adapter, module):
    w = adapter.layers[module].weights(adapter.name)
    return {key: t.detach().double().numpy() for key, t in w.state_dict().items()}


def frozen(module):
    weight = module.base.weight.detach().double().numpy()
    return weight.T if isinstance(module.base, Conv1D) else weight.reshape(weight.shape[0], -1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))


def batch(step):
    return torch.randn(8, 10, generator=torch.Generator().manual_seed(step))
