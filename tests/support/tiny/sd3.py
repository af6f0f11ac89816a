"""Stable Diffusion 3 and 3.5: joint blocks, two CLIPs with projection, T5 or none."""

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from tests.support.tiny.parts import kl_vae, redraw
from tests.support.tiny.text import clip, t5
from tests.support.tiny.words import clip_tokenizer, t5_tokenizer


def save_sd3(folder, seed=0, with_t5=True):
    """A tiny StableDiffusion3Pipeline in `folder`: 16 latent channels, factor 2, grid 4; two blocks as SD 3.5 has them.

    The first block has a second attention of the picture alone; the last drops the text.
    """
    tokenizer, tokenizer_3 = clip_tokenizer(), t5_tokenizer() if with_t5 else None
    pipeline = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae(1.5305, 0.0609, seed),
        text_encoder=clip(tokenizer, 8, seed + 1, projection=8),
        tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, 16, seed + 2, projection=16),
        tokenizer_2=tokenizer,
        text_encoder_3=t5(tokenizer_3, 32, seed + 3) if with_t5 else None,
        tokenizer_3=tokenizer_3,
        transformer=transformer(seed + 4),
    )
    pipeline.save_pretrained(folder)
    return folder


def transformer(seed):
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        out_channels=16,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return redraw(model, seed)
