"""CLIP and T5 text encoders for FLUX.1, Stable Diffusion 3 and SDXL."""

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tests.support.tiny.parts import redraw


def clip(tokenizer, width, seed, projection=None):
    """CLIPTextModel, or with a width of `projection` CLIPTextModelWithProjection."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return redraw((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)


def t5(tokenizer, width, seed):
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_ff=2 * width,
        d_kv=8,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    return redraw(T5EncoderModel(config), seed)
