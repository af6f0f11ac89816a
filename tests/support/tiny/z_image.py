"""Z-Image: a single-stream transformer with refiners, Qwen3 text encoder, the autoencoder of FLUX.1."""

from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from tests.support.tiny.flux2 import TEXT_WIDTH, qwen3
from tests.support.tiny.parts import kl_vae, redraw
from tests.support.tiny.words import qwen_tokenizer


def save_z_image(folder, seed=0):
    """A tiny ZImagePipeline in `folder`: 16 latent channels, factor 2, grid 4; one layer and one of each refiner."""
    tokenizer = qwen_tokenizer()
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae(0.3611, 0.1159, seed),
        text_encoder=qwen3(tokenizer, layers=3, seed=seed + 1).model,
        tokenizer=tokenizer,
        transformer=transformer(seed + 2),
    )
    pipeline.save_pretrained(folder)
    return folder


def transformer(seed):
    model = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    return redraw(model, seed)
