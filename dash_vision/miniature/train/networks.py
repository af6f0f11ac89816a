"""The miniatures' networks: the classes of Stable Diffusion, of CLIP and of Z-Image, with small configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    Qwen3Config,
    Qwen3Model,
)

# The functions below return Any where a class of diffusers hides its methods from type checkers.

PROMPT_LENGTH = 40
WIDTH = 128  # of the text encoder, hence of the UNet's cross-attention
SHARED = 128  # of CLIP's joint space
FLOW_SHIFT = 1.0  # of the sampling steps towards the noise
NOISE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


def new_vae() -> Any:
    """An AutoencoderKL: [N, 3, 64, 64] in -1..1 <-> latents [N, 4, 16, 16]; 1.4 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def new_unet() -> Any:
    """A UNet2DConditionModel: v for latents [N, 4, 16, 16] under prompt states [N, 40, 128]; 8.8 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 192),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # in this class: the number of heads
        norm_num_groups=16,
    )


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The text tower: 3 layers of width 128 over 40 tokens."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=PROMPT_LENGTH,
        projection_dim=SHARED,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Prompt ids [N, 40] -> states [N, 40, 128]; 3 layers."""
    return CLIPTextModel(text_config(tokenizer))


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of the same text tower and a vision tower over 64-pixel pictures in patches of 8; under 2 M parameters."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=SHARED,
    )
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=SHARED
    )
    return CLIPModel(config)


def training_scheduler() -> Any:
    """A DDPMScheduler: the noise schedule that the UNet is trained with."""
    return DDPMScheduler(**NOISE)


def sampling_scheduler() -> Any:
    """A DDIMScheduler: what the shipped pipeline samples with."""
    # "trailing" begins at the last, noisiest step, which the pure noise that sampling begins with comes closest to.
    return DDIMScheduler(**NOISE, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing")


# -- the flow-matching miniature


def new_flow_transformer() -> Any:
    """A ZImageTransformer2DModel: patches of 2 on latents [4, 1, 16, 16], 64 tokens beside 32 of the prompt; 8.8 M
    parameters. Six blocks, and one refiner each of the picture and of the prompt."""
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=256,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=WIDTH,
        axes_dims=[16, 24, 24],
        axes_lens=[1024, 64, 64],
    )


def flow_tokenizer(folder: Path) -> CLIPTokenizer:
    """The miniature's tokenizer with the template that ZImagePipeline asks for: the prompt alone."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


def new_flow_text_encoder(tokenizer: CLIPTokenizer) -> Any:
    """Prompt ids [N, tokens] -> states [N, tokens, 128] of the layer before the last one, the third; Z-Image's
    pipeline does not ask for the fourth one's."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=WIDTH // 4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3Model(config)


def flow_scheduler() -> Any:
    """A FlowMatchEulerDiscreteScheduler: what the shipped flow-matching pipeline samples with."""
    return FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)
