"""Qwen-Image: a double-stream transformer, Qwen2.5-VL text encoder, a video autoencoder."""

from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.support.tiny.parts import qwen_vae, redraw
from tests.support.tiny.words import qwen_tokenizer

TEXT_WIDTH = 16


def save_qwen_image(folder, seed=0):
    """A tiny QwenImagePipeline in `folder`: 16 latent channels, factor 2, grid 4; two blocks."""
    tokenizer = qwen_tokenizer()
    pipeline = QwenImagePipeline(
        scheduler=scheduler(),
        vae=qwen_vae(seed),
        text_encoder=qwen2_5_vl(tokenizer, seed + 1),
        tokenizer=tokenizer,
        transformer=transformer(seed + 2),
    )
    pipeline.save_pretrained(folder)
    return folder


def scheduler():
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )


def transformer(seed):
    model = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return redraw(model, seed)


def qwen2_5_vl(tokenizer, seed):
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": TEXT_WIDTH}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **vision_tokens(tokenizer))
    return redraw(Qwen2_5_VLForConditionalGeneration(config), seed)


def vision_tokens(tokenizer):
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
