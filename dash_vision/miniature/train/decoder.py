"""The build's stage "decoder": the VAE's decoder is trained on, against a critic that tells its pictures from renders.

The distances of the stage "vae" are least for a blurred picture where latents leave something open. A critic that sees
patches (arXiv 1611.07004) does not let blurred pictures pass. The latents stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...runs.seeds import seed_everything
from .data import Settings, load_latents, load_pictures, save_model, to_tensor
from .fit import Fit, LossAt
from .vae import distance, measured_psnr

FOOLING = 0.01  # weight of what the critic says of a decoded picture
LIKENESS = 0.5  # weight of the distance in the critic's features
ALONE = 200  # steps that the critic is ahead: the decoder takes no part of it into its loss yet
NOISE = 0.05  # added to the latents, whose variance is 1: those that a denoiser leaves are not exact either


class Critic(nn.Module):
    """Pictures [N, 3, 64, 64] in -1..1 -> a number for each of 16 x 16 patches of 26 pixels, above 0 for renders."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2)),
                nn.Sequential(nn.Conv2d(32, 64, 4, 2, 1), nn.GroupNorm(8, 64), nn.LeakyReLU(0.2)),
                nn.Sequential(nn.Conv2d(64, 128, 3, 1, 1), nn.GroupNorm(8, 128), nn.LeakyReLU(0.2)),
            ]
        )
        self.verdict = nn.Conv2d(128, 1, 3, 1, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The verdicts [N, 1, 16, 16], and every stage's features."""
        features: list[Tensor] = []
        for stage in self.stages:
            pictures = stage(pictures)
            features.append(pictures)
        return self.verdict(pictures), features


def train_decoder(settings: Settings) -> None:
    """decoder/: the autoencoder of vae/ with its decoder trained on."""
    if (settings.work / "decoder" / "config.json").exists():
        return
    vae, fit, critic = _training(settings)
    fit.run(_loss_of(vae, critic, fit, settings))
    fit.use_averages()
    vae.eval()
    save_model(vae, settings.work / "decoder")
    print(f"decoder: PSNR on 500 fresh renders {measured_psnr(vae):.2f} dB", flush=True)


def _training(settings: Settings) -> tuple[Any, Fit, Critic]:
    """The VAE with a frozen encoder, the training before its first step, and the critic, with weights from the seed."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(settings.work / "vae").train()
    for encoding in (vae.encoder, vae.quant_conv):
        encoding.requires_grad_(False)
    seed_everything(settings.seed, "decoder, weights")
    critic = Critic()
    for network in (vae, critic):
        network.to(settings.device).to(memory_format=torch.channels_last)
    networks = {"vae": vae, "critic": critic}
    fit = Fit("decoder", networks, settings.decoder, settings.work, settings.seed, settings.device)
    return vae, fit, critic


def _loss_of(vae: Any, critic: Critic, fit: Fit, settings: Settings) -> LossAt:
    """What the decoder has to lose and what the critic has (hinge loss), in one sum: neither's part reaches the other's
    weights."""
    pictures, latents = load_pictures(settings), load_latents(settings)
    decode = torch.compile(vae.decode) if settings.compile else vae.decode
    size, device = fit.plan.batch_size, settings.device

    def loss_at(batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(pictures), (size,), generator=generator)
        x = to_tensor(pictures[index]).to(device, memory_format=torch.channels_last)
        z = latents[index].float()
        z = z + NOISE * torch.randn(z.shape, generator=generator)
        with fit.runtime.autocast():
            y = decode(z.to(device) / vae.config.scaling_factor).sample
            of_renders, features = critic(x)
            of_decoded, _ = critic(y.detach())
            unmoved = {name: parameter.detach() for name, parameter in critic.named_parameters()}
            fooled, own = functional_call(critic, unmoved, (y,))
        pairs = zip(own, features, strict=True)
        apart = torch.stack([F.l1_loss(a.float(), b.detach().float()) for a, b in pairs]).mean()
        of_critic = F.relu(1 - of_renders.float()).mean() + F.relu(1 + of_decoded.float()).mean()
        of_decoder = distance(y.float(), x)
        if batch >= ALONE:
            of_decoder = of_decoder + LIKENESS * apart - FOOLING * fooled.float().mean()
        squared = F.mse_loss(y.detach().float(), x)
        figures = {"psnr": 10 * torch.log10(4 / squared), "apart": apart.detach(), "critic": of_critic.detach()}
        return of_decoder + of_critic, figures

    return loss_at
