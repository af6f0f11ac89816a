"""FLUX.2: klein with a Qwen3 text encoder, dev with Mistral3."""

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.support.tiny.parts import flux2_vae, redraw
from tests.support.tiny.words import MISTRAL_CHAT, mistral_tokenizer, qwen_tokenizer

TEXT_WIDTH = 16


def save_flux2_klein(folder, seed=0, is_distilled=False):
    """A tiny Flux2KleinPipeline in `folder`: 8 latent channels, factor 2, grid 4; one double and one single block."""
    tokenizer = qwen_tokenizer()
    pipeline = Flux2KleinPipeline(
        scheduler=scheduler(),
        vae=flux2_vae(seed),
        text_encoder=qwen3(tokenizer, layers=28, seed=seed + 1),
        tokenizer=tokenizer,
        transformer=transformer(seed + 2, guidance_embeds=False),
        is_distilled=is_distilled,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_flux2_dev(folder, seed=0):
    """A tiny Flux2Pipeline in `folder`; its transformer takes guidance."""
    tokenizer = mistral_tokenizer()
    pipeline = Flux2Pipeline(
        scheduler=scheduler(),
        vae=flux2_vae(seed),
        text_encoder=mistral3(tokenizer, seed + 1),
        tokenizer=PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=MISTRAL_CHAT),
        transformer=transformer(seed + 2, guidance_embeds=True),
    )
    pipeline.save_pretrained(folder)
    return folder


def scheduler():
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def transformer(seed, guidance_embeds):
    model = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * TEXT_WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    return redraw(model, seed)


def qwen3(tokenizer, layers, seed):
    """The pipeline of klein reads the hidden states 9, 18 and 27, that of Z-Image the last but one."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return redraw(Qwen3ForCausalLM(config), seed)


def mistral3(tokenizer, seed):
    """The pipeline of dev reads the hidden states 10, 20 and 30."""
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 31,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "sliding_window": None,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 32,
        "patch_size": 16,
    }
    image = tokenizer.convert_tokens_to_ids("[IMG]")
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=image)
    return redraw(Mistral3ForConditionalGeneration(config), seed)
