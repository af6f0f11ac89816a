"""Krea 2: a single-stream transformer that fuses several layers of Qwen3-VL, the autoencoder of Qwen-Image."""

from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from transformers import Qwen3VLConfig, Qwen3VLModel

from tests.support.tiny.parts import qwen_vae, redraw
from tests.support.tiny.qwen_image import vision_tokens
from tests.support.tiny.words import qwen_tokenizer

TEXT_WIDTH = 16


def save_krea2(folder, seed=0, is_distilled=False):
    """A tiny Krea2Pipeline in `folder`: 16 latent channels, factor 2, grid 4; one block; three text layers."""
    tokenizer = qwen_tokenizer()
    pipeline = Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        vae=qwen_vae(seed),
        text_encoder=qwen3_vl(tokenizer, seed + 1),
        tokenizer=tokenizer,
        transformer=transformer(seed + 2),
        text_encoder_select_layers=(1, 2, 3),
        is_distilled=is_distilled,
    )
    pipeline.save_pretrained(folder)
    return folder


def transformer(seed):
    model = Krea2Transformer2DModel(
        in_channels=64,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        timestep_embed_dim=32,
        text_hidden_dim=TEXT_WIDTH,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return redraw(model, seed)


def qwen3_vl(tokenizer, seed):
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **vision_tokens(tokenizer))
    return redraw(Qwen3VLModel(config), seed)
