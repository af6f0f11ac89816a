"""The networks that whole steps are measured on: random weights in the shapes of public models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import timm
import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dash_vision import Adapter, DashConfig, inject
from dash_vision.bases import quantization

from .exactness import SD15, SDXL, build
from .flows import FLOWS
from .measure import Settings, autocast

_UNET_ALL = r".*transformer_blocks\.\d+\.(?:attn[12]\.(?:to_q|to_k|to_v|to_out\.0)|ff\.net\.(?:0\.proj|2))"
_UNET_ATTENTION = r".*\.attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"
# What is adapted, as a regular expression that PEFT reads alike.
TARGETS = {
    "vit": {
        "all block linears": r"blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12])",
        "attention only": r"blocks\.\d+\.attn\.qkv",
    },
    "sd15": {"all block linears": _UNET_ALL, "attention only": _UNET_ATTENTION},
    "sdxl": {"all block linears": _UNET_ALL, "attention only": _UNET_ATTENTION},
} | {name: flow.targets() for name, flow in FLOWS.items()}
TITLES = {"vit": "ViT-B/16", "sd15": "SD 1.5 UNet", "sdxl": "SDXL UNet"} | {n: flow.title for n, flow in FLOWS.items()}


@dataclass(frozen=True)
class Size:
    """How much of the real thing to measure. width: share of a UNet's channels; depth: blocks of the ViT (of 12);
    side: of the latent, except for the ViT."""

    width: float = 1.0
    depth: int = 12
    batch: int = 8
    side: int = 64

    def of(self, name: str) -> str:
        """In words, for a table."""
        if name == "vit":
            return f"{self.depth} blocks, batch {self.batch}"
        if name in FLOWS:
            return f"{FLOWS[name].blocks}, latent {self.side} x {self.side}"
        return f"width x {self.width:g}, latent {self.side} x {self.side}"


def network(name: str, size: Size, settings: Settings) -> nn.Module:
    """The frozen network, in training mode."""
    with settings.device:  # random numbers by the billion are made faster there
        if name == "vit":
            torch.manual_seed(0)
            model: nn.Module = timm.create_model("vit_base_patch16_224", depth=size.depth, num_classes=100)
        elif name in FLOWS:
            model = FLOWS[name].network()
        else:
            model = build(SD15 if name == "sd15" else SDXL, size.width)
    if settings.dtype != torch.float32:
        model.to(settings.dtype)
    model = model.to(settings.device).requires_grad_(False).train()
    quantize(model, settings.quantize, settings.dtype)
    return model


def quantize(model: nn.Module, word: str, dtype: torch.dtype) -> None:
    """Keep the linear layers in few bits, as diffusers does for --quantize, but for those that bitsandbytes cannot have
    on a CPU. Raises InputError where the library is not installed."""
    quantization.check_installed(word, "--quantize")
    for name, layer in list(model.named_modules()) if word != "none" else ():
        if type(layer) is nn.Linear and layer.in_features % quantization.BLOCK == 0:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _quantized(layer, word, dtype))


def _quantized(layer: nn.Linear, word: str, dtype: torch.dtype) -> nn.Module:
    if word != "nf4":
        quantization.quantize_layer(layer, word)
        return layer.requires_grad_(False)
    import bitsandbytes as bnb

    out, in_, device = layer.out_features, layer.in_features, layer.weight.device
    made = bnb.nn.Linear4bit(in_, out, bias=layer.bias is not None, compute_dtype=dtype, quant_type="nf4")
    made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    quantized: nn.Module = made.to(device).requires_grad_(False)
    return quantized


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor, or of what a quantized one consists of."""
    if is_traceable_wrapper_subclass(tensor):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        return sum(bytes_of(part) for part in parts if isinstance(part, Tensor))
    state = getattr(tensor, "quant_state", None)  # of bitsandbytes
    return tensor.numel() * tensor.element_size() + (0 if state is None else bytes_of(state.absmax))


def example(name: str, model: nn.Module, size: Size, settings: Settings) -> dict[str, Any]:
    """Keyword arguments of one forward pass."""
    generator = torch.Generator().manual_seed(2)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(settings.device, settings.dtype)

    if name == "vit":
        return {"x": noise(size.batch, 3, 224, 224)}
    config: Any = model.config
    inputs: dict[str, Any] = {
        "sample": noise(1, 4, size.side, size.side),
        "timestep": torch.tensor([500], device=settings.device),
        "encoder_hidden_states": noise(1, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        times = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]).to(settings.device, settings.dtype)
        inputs["added_cond_kwargs"] = {"text_embeds": noise(1, 1280), "time_ids": times}
    return inputs


def dashed(model: nn.Module, target: str, rank: int, k: int) -> nn.Module:
    """`model` with a launched adapter."""
    set_launched(inject(model, DashConfig(rank=rank, dash_k=k, target=target)))
    return model


def set_launched(adapter: Adapter) -> None:
    """As after a launch; directions cost a step the same whichever they are, and these need no decompositions."""
    for _, w in adapter.weights():
        nn.init.orthogonal_(w.U)
        nn.init.orthogonal_(w.V)
        w.indices.copy_(torch.arange(w.k))


def peft_lora(model: nn.Module, target: str, rank: int) -> nn.Module:
    """`model` with PEFT's LoRA, in float32 whatever the model is in: so diffusers' training scripts and PEFT's
    get_peft_model have it. On bitsandbytes' layers it has its own for them, as in a model that was loaded so."""
    if any(getattr(parameter, "quant_state", None) is not None for parameter in model.parameters()):
        cast(Any, model).is_loaded_in_4bit = True
    adapted: nn.Module = inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=target), model)
    cast_training_params(adapted)
    return adapted


def _require_grad_before_the_blocks(name: str, model: nn.Module) -> None:
    """An adapter's backward pass ends at its first layer: it does not go through the ViT's patches or the UNet's first
    convolution, and neither should that of the frozen network."""
    firsts = {"vit": "blocks.0"} | {name: flow.first for name, flow in FLOWS.items()}
    first = model.get_submodule(firsts.get(name, "down_blocks.0"))
    streams = ("hidden_states", "encoder_hidden_states") if name in FLOWS else ("hidden_states",)

    def mark(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A block's first argument is what it changes; further ones are masks, positions and times.
        args = tuple(a.detach().requires_grad_() if i == 0 else a for i, a in enumerate(args))
        return args, {k: v.detach().requires_grad_() if k in streams else v for k, v in kwargs.items()}

    first.register_forward_pre_hook(mark, with_kwargs=True)


def training_step(
    name: str,
    model: nn.Module,
    size: Size,
    settings: Settings,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Callable[[], None], torch.optim.Optimizer | None]:
    """A whole step: forward, backward, AdamW; for a model without parameters to train, the gradient of what goes into
    its blocks instead. around: gives what the forward pass is made in."""
    if name in FLOWS:
        call = FLOWS[name].call(model, size.side, settings.device, settings.dtype)
    else:
        call = partial(model, **example(name, model, size, settings))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    if optimizer is None:
        _require_grad_before_the_blocks(name, model)

    def step() -> None:
        with autocast(settings), around():
            out = call()
        (out if isinstance(out, Tensor) else out[0]).float().square().mean().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step, optimizer
