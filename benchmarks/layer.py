"""Forward and backward of one adapted projection, beside the frozen layer alone, PEFT's LoRA and DoRA, and the formula
of LoRA-Dash as it is written: a dense update in every forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from dash_vision import DashConfig, inject

from .measure import Settings, Table, autocast, interleaved, milliseconds, ratio

# (tokens of one batch, in, out): ViT-B/16 with 8 pictures; one latent of SD 1.5 at 512 px, of SDXL at 1024 px.
SHAPES = {
    "ViT-B/16 qkv": (8 * 197, 768, 2304),
    "ViT-B/16 proj": (8 * 197, 768, 768),
    "ViT-B/16 fc1": (8 * 197, 768, 3072),
    "ViT-B/16 fc2": (8 * 197, 3072, 768),
    "SD 1.5 to_q, 320": (4096, 320, 320),
    "SD 1.5 to_q, 1280": (256, 1280, 1280),
    "SD 1.5 to_k of the text": (77, 768, 1280),
    "SDXL to_q, 640": (4096, 640, 640),
    "SDXL to_q, 1280": (1024, 1280, 1280),
    "SDXL to_k of the text": (77, 2048, 1280),
}


class DenseDash(nn.Module):
    """W x + ((alpha / r) B A + U diag(dsigma) V^T) x, with the dense update formed in every forward pass."""

    U: Tensor
    V: Tensor

    def __init__(self, base: nn.Linear, rank: int, k: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.B = nn.Parameter(torch.randn(base.out_features, rank) * 0.01)
        self.dsigma = nn.Parameter(torch.randn(k) * 0.01)
        U, _, V = torch.linalg.svd(base.weight.detach().float(), full_matrices=False)
        self.register_buffer("U", U[:, :k].clone())
        self.register_buffer("V", V[:k].clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return self.base(x) + F.linear(x, self.B @ self.A + self.U @ torch.diag(self.dsigma) @ self.V)


def candidates(tokens: int, in_: int, out: int, rank: int, k: int, settings: Settings) -> dict[str, Callable[[], None]]:
    """One forward and backward pass by name, each with a layer of its own on the same input."""
    torch.manual_seed(0)
    base = nn.Linear(in_, out)

    def copy() -> nn.Linear:
        layer = nn.Linear(in_, out)
        layer.load_state_dict(base.state_dict())
        return layer.to(settings.device, settings.dtype).requires_grad_(False)

    x = torch.randn(tokens, in_).to(settings.device, settings.dtype)
    upstream = torch.randn(tokens, out).to(settings.device, settings.dtype)
    models = {
        "LoRA-Dash": _dash(copy(), rank, k),
        "frozen": copy(),
        "PEFT LoRA": _peft(copy(), rank, dora=False),
        "PEFT DoRA": _peft(copy(), rank, dora=True),
        "dense formula": DenseDash(copy(), rank, k).to(settings.device),
    }
    return {name: _pass(model, x, upstream, settings) for name, model in models.items()}


def _dash(layer: nn.Module, rank: int, k: int) -> nn.Module:
    """A layer with our adapter, which is no longer zero, and launched where k is not 0."""
    model = nn.Sequential(layer)
    adapter = inject(model, DashConfig(rank=rank, dash_k=k, target=["0"]))
    with torch.no_grad():
        for _, w in adapter.weights():
            w.B.normal_(std=0.01)
        if k:
            adapter.launch()
        for p in adapter.parameters():
            p.normal_(std=0.01)
    return model


def _peft(layer: nn.Module, rank: int, dora: bool) -> nn.Module:
    """A layer with PEFT's adapter."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], use_dora=dora)
    model = inject_adapter_in_model(config, nn.Sequential(layer))
    cast_training_params(model)  # to float32, as diffusers' training scripts do, and PEFT's get_peft_model
    return model


def _pass(model: nn.Module, x: Tensor, upstream: Tensor, settings: Settings) -> Callable[[], None]:
    """A forward and backward pass of a model, gradient of the input included."""
    trained = [p for p in model.parameters() if p.requires_grad]
    inputs = x.clone().requires_grad_()

    def run() -> None:
        with autocast(settings):
            out = model(inputs)
        torch.autograd.backward(out, upstream)
        for tensor in [inputs, *trained]:
            tensor.grad = None

    return run


def measure(settings: Settings, rank: int, k: int, share: float, shapes: list[str]) -> list[Table]:
    """The table: this implementation over each of the others, shape by shape."""
    rows: list[list[str | float]] = []
    for name in shapes:
        tokens, in_, out = SHAPES[name]
        tokens = max(1, round(tokens * share))
        times = interleaved(candidates(tokens, in_, out, rank, k, settings), settings)
        peers = ("PEFT LoRA", "frozen", "PEFT DoRA", "dense formula")
        over = [ratio(times, "LoRA-Dash", peer) for peer in peers]
        rows.append([name, f"{tokens} x {in_} x {out}", milliseconds(times["LoRA-Dash"]), *over])
    columns = ("layer", "tokens x in x out", "LoRA-Dash, ms", "/ PEFT LoRA", "/ frozen", "/ PEFT DoRA", "/ dense")
    title = f"Forward and backward of one projection, rank {rank}, k = {k}; time over that of each other way"
    return [Table(title, columns, rows)]
