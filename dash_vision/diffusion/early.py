"""What can be looked at before torch is imported and a base is loaded: pictures, the output folder, sizes, a token."""

from __future__ import annotations

import json
from pathlib import Path

from ..bases.quantization import check_installed
from ..files.errors import InputError
from ..miniature import EMBEDDED, MINIATURE, STEPS, pipeline_path
from ..pictures.listing import list_folder
from .checkpoints import starting_point
from .config import DreamBoothConfig, check_lengths
from .heldout import check_holdout
from .hub import check_token
from .prompts import derive_prompts


def look(settings: DreamBoothConfig) -> None:
    """Raises InputError for what a run could not use, as far as that can be told in a moment; setup looks closer."""
    if not settings.dataset_name:
        listing = list_folder(settings.instance_data_dir, captions=settings.use_captions)
        if settings.holdout is not None:
            check_holdout(settings.holdout, listing)
        derive_prompts(settings)
    starting_point(Path(settings.output_dir).expanduser(), settings.resume_from_checkpoint, settings.overwrite)
    _check_resolution(settings)
    if settings.pretrained_model_name_or_path in (None, *EMBEDDED) and settings.num_train_epochs is None:
        check_lengths(settings, settings.max_train_steps or STEPS)
    for flag in ("quantize", "quantize_text_encoder"):
        check_installed(getattr(settings, flag), f"--{flag}")
    if settings.push_to_hub:
        check_token(settings)


def _check_resolution(settings: DreamBoothConfig) -> None:
    """Latents are a whole number of pixels: what the VAE's configuration says, where it lies on this machine."""
    factor = _pixels_per_latent(settings.pretrained_model_name_or_path or MINIATURE)
    if settings.resolution is not None and factor and settings.resolution % factor:
        raise InputError(f"--resolution is {settings.resolution}; this base takes multiples of {factor}")


def _pixels_per_latent(base: str) -> int | None:
    folder = pipeline_path(base) if base in EMBEDDED else Path(base).expanduser()
    try:
        configuration = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        return 2 ** (len(configuration["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):  # on the hub, in a single file, of another kind
        return None
