"""The embedded miniatures as bases: networks of their own size, with settings that suit them."""

from __future__ import annotations

from ..miniature import EMBEDDED, FLOW, MINIATURE, STEPS, pipeline_path
from ..miniature.world.scenes import SIZE
from .family import Defaults

__all__ = ["DEFAULTS", "EMBEDDED", "MINIATURE", "NOTE", "SIZE", "pipeline_path"]

# docs/individuals.md tells how they were chosen.
_USUAL = Defaults(
    learning_rate=1e-3,
    rank=16,
    max_train_steps=STEPS,
    train_batch_size=4,
    guidance_scale=2.0,
    num_inference_steps=25,
    lr_scheduler="cosine",
)
DEFAULTS = {MINIATURE: _USUAL, FLOW: _USUAL}
NOTE = (
    "it knows a small rendered world; for photographs name another base: --pretrained_model_name_or_path with a hub "
    "id or a folder (docs/bases.md lists the kinds), or a .safetensors file of SD 1.x, 2.x or SDXL"
)
