"""Blocks that wait in the machine's memory, on a GPU: what it takes, and what comes of it."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dash_vision import DashConfig
from dash_vision.bases.offloading import Offload, keeping_little
from tests.support import gpu
from tests.support.models import trained

pytestmark = pytest.mark.gpu
BLOCKS, TOKENS = 8, 16
WIDTH = 1024 if gpu.DEVICE == "cuda" else 32
BLOCK = 8 * WIDTH**2 * 4  # bytes of a block's weights


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, checkpointed):
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.checkpointed = checkpointed

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


def run(checkpointed, offloaded):
    """(gradients of three passes by name, bytes beyond the network's own place, what the passes take at most)."""
    gc.collect()
    net = Net(checkpointed).requires_grad_(False)
    offload = Offload(net, torch.device(gpu.DEVICE), ["Block"]) if offloaded else None
    trained(net, DashConfig(rank=2, dash_k=2, target=["up"]), scale=0.1)
    if offload is None:
        net.to(gpu.DEVICE)
    else:
        offload.place(net)
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(7)).to(gpu.DEVICE).requires_grad_()

    def passes():
        for _ in range(3):
            with keeping_little(net):
                y = net(x)
            y.square().mean().backward()

    taken = gpu.peak(passes)
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None} | {"x": x.grad}, taken


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_the_same_and_the_memory_falls(checkpointed):
    with gpu.exact():
        before = torch.cuda.memory_allocated()
        expected, whole = run(checkpointed, offloaded=False)
        found, taken = run(checkpointed, offloaded=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert torch.equal(found[name], gradient), name
    if gpu.DEVICE == "cuda":
        gc.collect()
        assert torch.cuda.memory_allocated() - before < BLOCK  # no block is left there
        assert whole < BLOCK  # of the passes: the network is there already
        assert taken < whole + 3.2 * BLOCK  # one at work, the next one, and one that is just let go
