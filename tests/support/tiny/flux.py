"""FLUX.1: double and single blocks, CLIP and T5."""

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from tests.support.tiny.parts import kl_vae, redraw
from tests.support.tiny.text import clip, t5
from tests.support.tiny.words import clip_tokenizer, t5_tokenizer


def save_flux(folder, seed=0, guidance_embeds=True):
    """A tiny FluxPipeline in `folder`: 16 latent channels, factor 2, grid 4.

    With guidance it is as dev, without it as schnell.
    """
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        vae=kl_vae(0.3611, 0.1159, seed),
        text_encoder=clip(tokenizer, 16, seed + 1),
        tokenizer=tokenizer,
        text_encoder_2=t5(tokenizer_2, 24, seed + 2),
        tokenizer_2=tokenizer_2,
        transformer=transformer(seed + 3, guidance_embeds),
    )
    pipeline.save_pretrained(folder)
    return folder


def transformer(seed, guidance_embeds):
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return redraw(model, seed)
