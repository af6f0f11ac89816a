"""Tiny pipelines of the real diffusers classes with random, seeded weights; each builds in about a second on one core.

Pictures of 16 x 16 pixels are the smallest that serve all: every autoencoder halves the picture, and all transformers
but SDXL's join 2 x 2 latents.
"""

import json
from pathlib import Path

from diffusers import DiffusionPipeline

from tests.support.tiny.flux import save_flux
from tests.support.tiny.flux2 import save_flux2_dev, save_flux2_klein
from tests.support.tiny.krea2 import save_krea2
from tests.support.tiny.qwen_image import save_qwen_image
from tests.support.tiny.sd3 import save_sd3
from tests.support.tiny.sdxl import save_sdxl_v
from tests.support.tiny.z_image import save_z_image


def save_sd3_without_t5(folder, seed=0):
    return save_sd3(folder, seed, with_t5=False)


# By name: the function that fills a folder and returns it.
PIPELINES = {
    "flux2-klein": save_flux2_klein,
    "flux2-dev": save_flux2_dev,
    "z-image": save_z_image,
    "qwen-image": save_qwen_image,
    "flux": save_flux,
    "sd3": save_sd3,
    "sd3-without-t5": save_sd3_without_t5,
    "krea2": save_krea2,
    "sdxl-v": save_sdxl_v,
}


def load_tiny(folder, **options):
    """The pipeline in `folder`; parts that it was saved without have to be named to diffusers."""
    index = json.loads((Path(folder) / "model_index.json").read_text())
    absent = {name: None for name, value in index.items() if value == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
