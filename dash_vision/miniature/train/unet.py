"""The build's stage "unet": the denoiser, and the text encoder that conditions it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from ...runs.seeds import python_stream, seed_everything
from ..world.scenes import Scene
from .data import Settings, load_latents, load_tokenizer, noisy_batch, prompt_ids, save_model, training_scene
from .fit import Fit, LossAt
from .networks import new_text_encoder, new_unet, training_scheduler

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def train_unet(settings: Settings) -> None:
    """unet/ and text_encoder/, trained together."""
    if (settings.work / "unet" / "config.json").exists():
        return
    latents = load_latents(settings)
    scenes = [training_scene(i) for i in range(len(latents))]
    unet, text, fit, tokenizer = denoiser(settings)
    fit.run(_loss_of(unet, text, tokenizer, latents, scenes, fit, settings))
    save_unet(unet, text, fit, settings)


def save_unet(unet: Any, text: Any, fit: Fit, settings: Settings) -> None:
    """unet/ and text_encoder/ in the work folder, with the averages of their weights."""
    fit.use_averages()
    save_model(unet.eval(), settings.work / "unet")
    save_model(text.eval(), settings.work / "text_encoder")


def denoiser(settings: Settings) -> tuple[Any, Any, Fit, CLIPTokenizer]:
    """The UNet, its text encoder, their training before its first step, and the tokenizer."""
    tokenizer = load_tokenizer(settings)
    seed_everything(settings.seed, "unet, weights")
    unet = new_unet()
    text: Any = new_text_encoder(tokenizer)
    if settings.init:
        unet = type(unet).from_pretrained(settings.initial("pipeline/unet")).train()
        text = type(text).from_pretrained(settings.initial("pipeline/text_encoder")).train()
    unet.to(settings.device)
    text.to(settings.device)
    if settings.device == "cpu":
        # The backward pass of PyTorch's fused attention took 40% of a step on CPU; the plain product is faster there.
        unet.set_attn_processor(AttnProcessor())
        unet.to(memory_format=torch.channels_last)  # with torch.compile 50 pictures/s instead of 44 on 2 cores
        text.set_attn_implementation("eager")
    modules = {"unet": unet, "text_encoder": text}
    return unet, text, Fit("unet", modules, settings.unet, settings.work, settings.seed, settings.device), tokenizer


def _loss_of(
    unet: Any, text: Any, tokenizer: CLIPTokenizer, latents: Tensor, scenes: Sequence[Scene], fit: Fit, s: Settings
) -> LossAt:
    """v-prediction; each picture's loss is weighted by min(SNR, 5) / (SNR + 1) (arXiv 2303.09556); one caption in ten
    is empty, so that classifier-free guidance has its other half."""
    size, device = fit.plan.batch_size, s.device
    denoise = torch.compile(unet) if s.compile else unet
    scheduler = training_scheduler()
    signal = scheduler.alphas_cumprod

    def loss_at(batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rng = python_stream(s.seed, "unet, captions", batch)
        _, z, noise, spread, prompts = noisy_batch(latents, scenes, rng, size, generator)
        t = (spread * scheduler.config.num_train_timesteps).long()
        target = scheduler.get_velocity(z, noise, t).to(device)
        noisy = scheduler.add_noise(z, noise, t).to(device)
        with fit.runtime.autocast():
            states = text(prompt_ids(tokenizer, prompts).to(device)).last_hidden_state
            predicted = denoise(noisy, t.to(device), states).sample
        snr = signal[t] / (1 - signal[t])
        weight = (snr.clamp(max=5) / (snr + 1)).to(device)
        return (weight * (predicted.float() - target).square().flatten(1).mean(1)).mean(), {}

    return loss_at
