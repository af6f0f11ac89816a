"""Small models of the real classes, shaped like Stable Diffusion 1.x and SDXL."""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dash_vision import inject


def trained(model, config, launch=True, scale=0.3, name="default"):
    """An adapter with random A, B and, launched, dsigma: what training leaves, without the training."""
    adapter = inject(model, config, name)
    generator = torch.Generator().manual_seed(11)
    values = {name: torch.randn(p.shape, generator=generator) * scale for name, p in adapter.named_parameters()}
    shifts = {name for name in values if name.endswith(".dsigma")}
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            p.copy_(torch.zeros(p.shape) if name in shifts else values[name])
        if launch and config.dash_k:
            adapter.launch()
            for name, p in adapter.named_parameters():
                p.copy_(3 * values[name] if name in shifts else values[name])
    return adapter


def sd_unet(seed=0):
    """SD-1.x-shaped: convolutional projections into the transformers, one text encoder."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def sdxl_unet(seed=0):
    """SDXL-shaped: linear projections, several transformer blocks, text-and-time conditioning."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=40,
        norm_num_groups=8,
    ).eval()


def unet_inputs(unet):
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 6, unet.config.cross_attention_dim, generator=generator),
    }
    if unet.config.addition_embed_type == "text_time":
        added = {
            "text_embeds": torch.randn(2, 32, generator=generator),
            "time_ids": torch.rand(2, 6, generator=generator),
        }
        inputs["added_cond_kwargs"] = added
    return inputs


def text_encoder():
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return CLIPTextModel(config).eval()


def stock_pipeline(unet, encoder=None):
    """A diffusers pipeline around `unet`, enough of one for load_lora_weights."""
    parts = {
        "vae": None,
        "text_encoder": encoder,
        "tokenizer": None,
        "unet": unet,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    if unet.config.addition_embed_type == "text_time":
        return StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
