"""What the transformers of the flow-matching bases say, by calling them as their stock pipelines do.

Each function takes the stock pipeline, noisy latents [N, C, h, w] of the denoiser, noise levels [N], prompts of equal
length, a guidance scale and how many tokens of a prompt are read. It gives the direction from the picture to the noise,
[N, C, h, w].
"""

import torch

from tests.support.tiny import load_tiny
from tests.support.tiny.parts import redraw

LENGTH = 32
# SD 3 adds positions to its tokens from a table that is spread over `sample_size`. The tiny base's four tokens have
# nearly equal ones, so that it cannot say which part of a picture belongs where while all is noise.
SD3 = {"num_attention_heads": 6, "caption_projection_dim": 96, "sample_size": 128, "num_layers": 1}
WIDER = {
    "z-image": {"dim": 96, "n_heads": 6, "n_kv_heads": 6},
    "krea2": {"num_attention_heads": 6, "num_key_value_heads": 3},
    "sd3": SD3,
    "sd3-without-t5": SD3,
}


def save_wide(source, folder, name):
    """The tiny pipeline in `source` with a transformer at least three times as wide: one as narrow as a token has no
    room for the noise and the picture at once, and cannot learn to tell them apart."""
    pipeline = load_tiny(source)
    old = pipeline.transformer
    wide = {**old.config, **WIDER.get(name, {"num_attention_heads": 6})}
    pipeline.register_modules(transformer=redraw(type(old).from_config(wide), 1))
    pipeline.save_pretrained(folder)
    return folder


def flux2(pipeline, noisy, levels, prompts, guidance=1.0, length=LENGTH):
    embeds, text_ids = pipeline.encode_prompt(prompts, max_sequence_length=length)
    ids = pipeline._prepare_latent_ids(noisy)
    guidance = torch.full([len(prompts)], guidance) if pipeline.transformer.config.guidance_embeds else None
    said = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy),
        timestep=levels * 1000 / 1000,
        guidance=guidance,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=ids,
    ).sample
    return pipeline._unpack_latents_with_ids(said, ids)


def z_image(pipeline, noisy, levels, prompts, guidance=1.0, length=LENGTH):
    embeds, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=length)
    said = pipeline.transformer([z[:, None] for z in noisy], (1000 - 1000 * levels) / 1000, embeds).sample
    return -torch.stack([one[:, 0] for one in said])


def qwen_image(pipeline, noisy, levels, prompts, guidance=1.0, length=LENGTH):
    embeds, mask = pipeline.encode_prompt(prompts, max_sequence_length=length)
    n, channels, height, width = noisy.shape
    said = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, n, channels, height, width),
        timestep=levels * 1000 / 1000,
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, height // 2, width // 2)]] * n,
    ).sample
    factor = pipeline.vae_scale_factor
    return pipeline._unpack_latents(said, height * factor, width * factor, factor)[:, :, 0]


def flux(pipeline, noisy, levels, prompts, guidance=1.0, length=LENGTH):
    embeds, pooled, text_ids = pipeline.encode_prompt(prompts, None, max_sequence_length=length)
    n, channels, height, width = noisy.shape
    said = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, n, channels, height, width),
        timestep=levels * 1000 / 1000,
        guidance=torch.full([n], guidance) if pipeline.transformer.config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(n, height // 2, width // 2, "cpu", torch.float32),
    ).sample
    factor = pipeline.vae_scale_factor
    return pipeline._unpack_latents(said, height * factor, width * factor, factor)


def sd3(pipeline, noisy, levels, prompts, guidance=1.0, length=LENGTH):
    options = {"do_classifier_free_guidance": False, "max_sequence_length": length}
    embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, **options)
    return pipeline.transformer(
        hidden_states=noisy, timestep=1000 * levels, encoder_hidden_states=embeds, pooled_projections=pooled
    ).sample


def krea2(pipeline, noisy, levels, prompts, guidance=1.0, length=LENGTH):
    embeds, mask = pipeline.encode_prompt(prompts, max_sequence_length=length)
    n, channels, height, width = noisy.shape
    said = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, n, channels, height, width),
        encoder_hidden_states=embeds,
        timestep=levels,
        position_ids=pipeline.prepare_position_ids(embeds.shape[1], height // 2, width // 2, "cpu"),
        encoder_attention_mask=mask,
    ).sample
    factor = pipeline.vae_scale_factor
    return pipeline._unpack_latents(said, height * factor, width * factor)[:, :, 0]


# By the name of the tiny pipeline.
VELOCITIES = {
    "flux2-klein": flux2,
    "flux2-dev": flux2,
    "z-image": z_image,
    "qwen-image": qwen_image,
    "flux": flux,
    "sd3": sd3,
    "sd3-without-t5": sd3,
    "krea2": krea2,
}
