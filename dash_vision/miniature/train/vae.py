"""The build's stage "vae": the autoencoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...runs.seeds import seed_everything
from .data import Settings, fresh_scene, load_pictures, psnr, rendered, save_model, to_tensor
from .fit import Fit, LossAt
from .networks import new_vae


def train_vae(settings: Settings) -> None:
    """vae/: the autoencoder, with the scaling factor that gives its latents unit variance."""
    if (settings.work / "vae" / "config.json").exists():
        return
    pictures = load_pictures(settings)
    vae = _new(settings)
    fit = Fit("vae", {"vae": vae}, settings.vae, settings.work, settings.seed, settings.device)
    fit.run(_loss_of(vae, pictures, fit, settings))
    fit.use_averages()
    vae.eval()
    if not settings.init:
        latents = _encoded(vae, to_tensor(pictures[:2000]))
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    save_model(vae, settings.work / "vae")
    print(f"vae: PSNR on 500 fresh renders {measured_psnr(vae):.2f} dB", flush=True)


def measured_psnr(vae: Any) -> float:
    """How near fresh renders come back, in dB."""
    fresh = rendered([fresh_scene(i) for i in range(500)])
    return psnr(reconstructed(vae, fresh), fresh)


@torch.no_grad()
def reconstructed(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures [N, 3, 64, 64] in -1..1 as the VAE gives them back, on the CPU: no denoiser can draw better ones."""
    latents = _encoded(vae, pictures)
    return torch.cat([vae.decode(part).sample.cpu() for part in latents.split(100)]).clamp(-1, 1)


def _new(settings: Settings) -> Any:
    """A VAE with weights from the seed; or the exported one, whose encoder is frozen."""
    seed_everything(settings.seed, "vae, weights")
    vae = new_vae()
    if settings.init:
        vae = type(vae).from_pretrained(settings.initial("pipeline/vae")).train()
        for encoding in (vae.encoder, vae.quant_conv):
            encoding.requires_grad_(False)
    # Its wide, shallow convolutions are faster in this memory format.
    return vae.to(settings.device).to(memory_format=torch.channels_last)


def _loss_of(vae: Any, pictures: Tensor, fit: Fit, settings: Settings) -> LossAt:
    """Distances of pictures and of their slopes, and a little of the latents' divergence from unit noise."""
    encode, decode = vae.encode, vae.decode
    if settings.compile:
        encode, decode = torch.compile(encode), torch.compile(decode)

    def loss_at(batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(pictures), (fit.plan.batch_size,), generator=generator)
        x = to_tensor(pictures[index]).to(settings.device, memory_format=torch.channels_last)
        with fit.runtime.autocast():
            posterior = encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(settings.device)
            y = decode(posterior.mean + posterior.std * noise).sample
        y = y.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        squared = F.mse_loss(y.detach(), x)
        return distance(y, x) + 1e-4 * divergence, {"psnr": 10 * torch.log10(4 / squared), "kl": divergence.detach()}

    return loss_at


def distance(pictures: Tensor, others: Tensor) -> Tensor:
    """What a decoded picture has to lose: distances of values and of slopes."""
    return F.l1_loss(pictures, others) + 2 * F.mse_loss(pictures, others) + 0.5 * slope_distance(pictures, others)


def slope_distance(pictures: Tensor, others: Tensor) -> Tensor:
    """Mean distance of the slopes: edges carry the subjects' small parts, and a plain distance forgives blurring."""
    across = F.l1_loss(pictures.diff(dim=-1), others.diff(dim=-1))
    return across + F.l1_loss(pictures.diff(dim=-2), others.diff(dim=-2))


@torch.no_grad()
def _encoded(vae: Any, pictures: Tensor) -> Tensor:
    """Latents of pictures [N, 3, 64, 64]: the means, unscaled, on the VAE's device."""
    return torch.cat([vae.encode(part.to(vae.device)).latent_dist.mean for part in pictures.split(250)])
