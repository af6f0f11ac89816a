"""How far the outputs of stock loaders are from those of the trained model.

UNets of the public SD 1.5 and SDXL configurations (channels scaled by --width, random weights) get an adapter with
random A, B and dsigma of the size that training gives, launched. Its exports are loaded by diffusers into the same
frozen weights.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from dash_vision import Adapter, DashConfig, export_lora, inject

SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def build(config: dict[str, Any], width: float) -> nn.Module:
    """The UNet with its channels scaled, seeded."""
    channels = tuple(int(c * width) // 32 * 32 for c in config["block_out_channels"])
    heads = config["attention_head_dim"]
    if isinstance(heads, tuple):
        heads = tuple(max(1, int(h * width)) for h in heads)
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(**{**config, "block_out_channels": channels, "attention_head_dim": heads})
    return unet.eval()


def train_at_random(unet: nn.Module, rank: int, k: int) -> Adapter:
    """A launched adapter: B of a hundredth of A's size, dsigma of a tenth, as after some hundred steps."""
    adapter = inject(unet, DashConfig(rank=rank, dash_k=k))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            if name.endswith(".B"):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.01)
        adapter.launch()
        for name, p in adapter.named_parameters():
            if name.endswith(".dsigma"):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return adapter


@torch.no_grad()
def output(unet: Any) -> Tensor:
    """The UNet's answer to fixed inputs: float32 [2, 4, 16, 16]."""
    generator = torch.Generator().manual_seed(2)
    inputs: dict[str, Any] = {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": torch.tensor([20, 700]),
        "encoder_hidden_states": torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator),
    }
    if unet.config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, 1280, generator=generator),
            "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2),
        }
    return unet(**inputs).sample


@contextmanager
def stock(unet: Any) -> Iterator[Any]:
    """A stock pipeline around the UNet, with nothing else in it."""
    parts: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None, "unet": unet}
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    if unet.config.addition_embed_type == "text_time":
        yield StableDiffusionXLPipeline(**parts, scheduler=scheduler, text_encoder_2=None, tokenizer_2=None)
    else:
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        yield StableDiffusionPipeline(**parts, scheduler=scheduler, **extra)


def measure(config: dict[str, Any], width: float, rank: int, k: int) -> dict[str, float]:
    """Largest absolute difference from the trained model's output, by way of loading."""
    unet = build(config, width)
    base = output(unet)
    adapter = train_at_random(unet, rank, k)
    trained = output(unet)
    found = {"the base, for scale": (base - trained).abs().max().item()}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Callable[[], Path]] = {
            "pipe.load_lora_weights": lambda: export_lora(adapter, Path(folder) / "a"),
            "pipe.load_lora_weights, fp16 file": lambda: export_lora(adapter, Path(folder) / "b", dtype=torch.float16),
            "kohya file": lambda: export_lora(adapter, Path(folder) / "c", format="kohya"),
        }
        paths = {name: write() for name, write in files.items()}
        adapter.merge()
        found["merged weights"] = (output(unet) - trained).abs().max().item()
        adapter.remove()
        if not torch.equal(output(unet), base):
            raise RuntimeError("remove() did not give the base back")
        with stock(unet) as pipeline:
            for name, path in paths.items():
                pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
                found[name] = (output(unet) - trained).abs().max().item()
                pipeline.unload_lora_weights()
    return found


def report(width: float, rank: int, k: int) -> None:
    """Print the table."""
    diffusers.utils.logging.set_verbosity_error()  # it remarks on every text encoder that an adapter leaves alone
    print(
        f"max abs difference of the UNet's output from the trained model's; rank {rank}, k = {k}, width x {width:g}, "
        f"float32, {platform.machine()}; torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"peft {peft.__version__}"
    )
    columns = {"SD 1.5": measure(SD15, width, rank, k), "SDXL": measure(SDXL, width, rank, k)}
    print(f"\n| loaded by | {' | '.join(columns)} |\n| --- | {' | '.join('---:' for _ in columns)} |")
    for name in columns["SDXL"]:
        print(f"| {name} | {' | '.join(f'{column[name]:.1e}' for column in columns.values())} |")
