"""What the tiny pipelines share: seeded weights, and autoencoders whose latents have the expected statistics."""

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage
from torch.nn import functional as F

BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
    "mid_block_add_attention": False,
}


@torch.no_grad()
def redraw(module, seed):
    """Draw every weight of `module` anew, so that no layer that starts at zero hides what stands before it.

    Matrices have entries of variance 1 / fan-in; vectors move by a tenth from where they start.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(0.1 * noise)
    return module.eval()


def pictures(seed, number=8, size=32):
    """Pictures [number, 3, size, size] in -1 .. 1: blocks of colours."""
    coarse = torch.rand(number, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(2 * coarse - 1, scale_factor=4)


@torch.no_grad()
def calibrate(vae, last, encode, mean, std):
    """Give the latents `encode(vae)` of pictures the mean and deviation asked for, channel by channel.

    `last` is the convolution that puts out the mean and the logarithm of the variance, stacked. Its variance becomes
    as small as that of trained autoencoders.
    """
    channels = last.weight.shape[0] // 2
    last.weight[channels:] = 0
    last.bias[channels:] = -10
    now = encode(vae).transpose(0, 1).flatten(1)
    factor = torch.as_tensor(std) / now.std(1)
    last.weight[:channels] *= factor.reshape(-1, *[1] * (last.weight.ndim - 1))
    last.bias[:channels] = (last.bias[:channels] - now.mean(1)) * factor + torch.as_tensor(mean)
    return vae


def kl_vae(scaling_factor, shift_factor, seed=0, channels=16):
    """AutoencoderKL, factor 2, without the two 1 x 1 convolutions between (as FLUX.1, SD 3 and Z-Image have it)."""
    vae = AutoencoderKL(
        **BLOCKS,
        latent_channels=channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    redraw(vae, seed)
    mean, std = torch.full((channels,), shift_factor), torch.full((channels,), 1 / scaling_factor)
    return calibrate(vae, vae.encoder.conv_out, lambda v: v.encode(pictures(seed)).latent_dist.mode(), mean, std)


def flux2_vae(seed=0, channels=8):
    """AutoencoderKLFlux2, factor 2; its batch norm holds the statistics of the patched latents (4 x `channels`)."""
    vae = redraw(AutoencoderKLFlux2(**BLOCKS, latent_channels=channels), seed)
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(channels, generator=generator), 1 + torch.rand(channels, generator=generator)
    calibrate(vae, vae.quant_conv, lambda v: v.encode(pictures(seed)).latent_dist.mode(), mean, std)
    with torch.no_grad():
        patched = F.pixel_unshuffle(vae.encode(pictures(seed)).latent_dist.mode(), 2).transpose(0, 1).flatten(1)
    vae.bn.running_mean.copy_(patched.mean(1))
    vae.bn.running_var.copy_(patched.var(1))
    return vae


def qwen_vae(seed=0):
    """AutoencoderKLQwenImage, factor 2, 16 channels with the means and deviations of Qwen-Image's configuration."""
    vae = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False])
    redraw(vae, seed)
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return calibrate(vae, vae.quant_conv, lambda v: v.encode(pictures(seed)[:, :, None]).latent_dist.mode(), mean, std)
