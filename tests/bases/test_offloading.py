"""Blocks that wait in the machine's memory compute what they would compute on the device, gradients included."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dash_vision import DashConfig
from dash_vision.bases.devices import placed
from dash_vision.bases.offloading import Offload, keeping_little
from dash_vision.files.errors import InputError
from tests.support.models import trained

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).tanh())


class Net(nn.Module):
    """Three blocks between two layers; checkpointed: None, or blocks that are computed again at once."""

    def __init__(self, checkpointed=None):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Conv2d(4, 4, 1), nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.first(x)
        if self.checkpointed is None:
            return self.last(nn.Sequential(*self.blocks)(x))
        for start in range(0, len(self.blocks), self.checkpointed):
            part = nn.Sequential(*self.blocks[start : start + self.checkpointed])
            x = checkpoint(part, x, use_reentrant=False)
        return self.last(x)


def adapted(checkpointed, offloaded):
    """A network with a launched adapter, and its Offload where it has one."""
    net = Net(checkpointed)
    offload = Offload(net, CPU, ["Block"]) if offloaded else None
    torch.manual_seed(5)
    trained(net, DashConfig(rank=2, dash_k=2, target=["linear", "conv"]))
    if offload is not None:
        offload.place(net)
    return net.train(), offload


def gradients(net):
    """Of the input and of all that is trained."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7)).requires_grad_()
    with keeping_little(net):
        y = net(x)
    y.square().sum().backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return found | {"x": x.grad}


@pytest.mark.parametrize("checkpointed", [None, 1, 3])
def test_gradients_are_those_of_the_whole_network_to_the_last_bit(checkpointed):
    """Also where several blocks are computed again at once, so that the last one comes when the first one has gone."""
    expected = gradients(adapted(checkpointed, offloaded=False)[0])
    net, _ = adapted(checkpointed, offloaded=True)
    for _ in range(2):
        found = gradients(net)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("checkpointed", [None, 1, 3])
def test_a_copy_that_has_gone_is_never_read_again(checkpointed, monkeypatch):
    """The machine's memory is written over with NaN while nothing computes: a gradient that read it would show."""
    expected = gradients(adapted(checkpointed, offloaded=False)[0])
    net, offload = adapted(checkpointed, offloaded=True)
    kept = {key: parameter.detach().clone() for key, parameter in offload._homes.items()}

    def spoilt(block, inputs, output):
        for parameter in offload._homes.values():
            parameter.data.fill_(torch.nan)

    def restored(*_):
        for key, parameter in offload._homes.items():
            parameter.data.copy_(kept[key])

    def fetch(*arguments, load=offload._copies):
        restored()
        return load(*arguments)

    def unpacked(given, unpack=offload.unpack):
        restored()
        return unpack(given)

    monkeypatch.setattr(offload, "_copies", fetch)
    monkeypatch.setattr(offload, "unpack", unpacked)
    for block in net.blocks:
        block.register_forward_hook(spoilt)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in gradients(net).items())


def test_weights_end_where_they_were_and_the_adapter_never_moves():
    net, offload = adapted(1, offloaded=True)
    before = {name: (id(p), p.data_ptr()) for name, p in net.named_parameters()}
    assert not any(".adapters." in name for name, p in net.named_parameters() if id(p) in offload._homes)
    seen = []
    net.blocks[1].register_forward_pre_hook(lambda *_: seen.extend(net.named_parameters()))
    gradients(net)
    moved = {name for name, parameter in seen if (id(parameter), parameter.data_ptr()) != before[name]}
    waiting = {f"blocks.1.{name}" for name, _ in net.blocks[1].named_parameters() if ".adapters." not in name}
    assert moved == waiting
    assert before == {name: (id(p), p.data_ptr()) for name, p in net.named_parameters()}


def test_a_block_that_fails_leaves_its_weights_where_they_were():
    net, offload = adapted(None, offloaded=True)
    before = [id(parameter) for parameter in net.parameters()]
    with pytest.raises(RuntimeError):
        net.blocks[0](torch.zeros(1, 3, 8, 8))
    assert before == [id(parameter) for parameter in net.parameters()]
    assert not offload._there


def test_no_weight_of_a_block_is_kept_for_the_backward_pass():
    net, offload = adapted(None, offloaded=True)
    copies = []
    load = offload._copies
    offload._copies = lambda block: copies.extend(load(block)) or copies[-len(offload._of(block)) :]
    x = torch.randn(2, 4, 8, 8)
    with keeping_little(net):
        y = net(x)
    addresses = {copy.data_ptr() for copy in copies}
    kept, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        nodes += [following for following, _ in node.next_functions if following is not None]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        kept |= {value.data_ptr() for value in saved if isinstance(value, torch.Tensor)}
    assert addresses
    assert not addresses & kept


def test_a_copy_of_the_network_shares_what_waits():
    net, _ = adapted(None, offloaded=True)
    clone = copy.deepcopy(net, {id(t): t for t in (*net.parameters(), *net.buffers())})
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(clone(x), net(x))


def test_an_offloaded_network_is_not_moved_as_a_whole():
    net, _ = adapted(None, offloaded=True)
    with placed([net], torch.device("meta")):
        assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}


def test_quantized_weights_are_refused_in_a_sentence():
    net = Net().requires_grad_(False)
    net.blocks[1].linear.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="give --offload model"):
        Offload(net, CPU, ["Block"])
