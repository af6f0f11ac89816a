"""Whole pipelines as folders, with random weights."""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from tests.support.models import sd_unet, sdxl_unet


def save_base(folder, xl=False, prediction_type="epsilon", seed=0):
    """A tiny Stable Diffusion (or SDXL) pipeline of the real classes with random weights, saved to `folder`.

    Pictures of 16 x 16 pixels, latents of 8 x 8.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModelWithProjection

    from dash_vision.miniature.world.vocabulary import write_tokenizer

    torch.manual_seed(seed)
    unet = sdxl_unet(seed) if xl else sd_unet(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )
    tokenizer = write_tokenizer(folder / "words", 12)
    parts = {"vae": vae, "unet": unet, "tokenizer": tokenizer}
    parts["scheduler"] = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        prediction_type=prediction_type,
    )
    if xl:
        # Widths 8 and 32 join to the UNet's 40; the second one's projection is its pooled 32.
        parts["text_encoder"] = CLIPTextModel(text_config(tokenizer, 8))
        parts["text_encoder_2"] = CLIPTextModelWithProjection(text_config(tokenizer, 32))
        parts["tokenizer_2"] = tokenizer
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        parts["text_encoder"] = CLIPTextModel(text_config(tokenizer, 24))
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder)
    return folder


def text_config(tokenizer, width):
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
