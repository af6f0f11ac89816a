"""SDXL with v-prediction and zero terminal SNR, as NoobAI's v-prediction model is."""

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from tests.support.models import sdxl_unet
from tests.support.tiny.parts import kl_vae, redraw
from tests.support.tiny.text import clip
from tests.support.tiny.words import clip_tokenizer


def save_sdxl_v(folder, seed=0):
    """A tiny StableDiffusionXLPipeline in `folder`: 4 latent channels, factor 2."""
    tokenizer = clip_tokenizer()
    # Widths 8 and 32 join to the UNet's 40; the second one's projection is its pooled 32.
    pipeline = StableDiffusionXLPipeline(
        scheduler=scheduler(),
        vae=kl_vae(0.13025, 0.0, seed, channels=4),
        text_encoder=clip(tokenizer, 8, seed + 1),
        tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, 32, seed + 2, projection=32),
        tokenizer_2=tokenizer,
        unet=redraw(sdxl_unet(seed), seed + 3),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def scheduler():
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )
