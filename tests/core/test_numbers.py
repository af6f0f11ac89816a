"""Numbers at their limits: dead layers, odd sizes, and updates that overflow."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dash_vision import DashConfig, DashSchedule, export_lora, inject, load_adapter


class Dying(nn.Module):
    """Two layers whose weights or inputs are all zero, between two that live."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.unfed = nn.Linear(6, 8), nn.Linear(5, 8)
        self.zero, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        nn.init.zeros_(self.zero.weight)

    def forward(self, x):
        fed = self.first(x) + self.unfed(x.new_zeros(len(x), 5))
        return self.last(torch.tanh(fed) + self.zero(fed))


@pytest.mark.parametrize(("rank", "k"), [(2, 3), (20, 20), (3, 0), (0, 2)])
def test_dead_layers_and_odd_sizes_train_save_load_and_export(tmp_path, rank, k):
    names = ["first", "unfed", "zero", "last"]
    model = Dying()
    with pytest.warns(UserWarning, match="dash_k") if k == 20 else torch.no_grad():
        adapter = inject(model, DashConfig(rank=rank, dash_k=k, target=names))
    torch.set_grad_enabled(True)
    x, y = torch.randn(16, 6), torch.randn(16, 4)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    schedule = DashSchedule(adapter, prelaunch_steps=3)
    losses = []
    for _ in range(8):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert schedule.launched == (k > 0)
    expected = model(x)
    adapter.save(tmp_path / "a.safetensors")
    again = Dying()
    load_adapter(again, tmp_path / "a.safetensors")
    assert torch.equal(again(x), expected)
    weights = load_file(export_lora(adapter, tmp_path / "peft", format="peft"))
    fresh = Dying()
    with torch.no_grad():  # by hand: W + B A
        for name in names:
            A, B = (weights[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
            getattr(fresh, name).weight += B @ A
    assert torch.allclose(fresh(x), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_update_that_overflows_is_refused_by_every_writer(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).to(dtype)
    adapter = inject(model, DashConfig(rank=2, dash_k=2, target=["0", "1"]))
    adapter.launch()
    with torch.no_grad():
        for _, weights in adapter.weights():
            weights.B.fill_(3e38)
            weights.dsigma.fill_(1.0)
    assert export_lora(adapter, tmp_path / "wide", format="peft").is_file()
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        export_lora(adapter, tmp_path / "half", format="peft", dtype=torch.float16)
    assert not (tmp_path / "half").exists()
    with torch.no_grad():
        next(w for _, w in adapter.weights()).A.fill_(float("inf"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        export_lora(adapter, tmp_path / "inf", format="peft")
