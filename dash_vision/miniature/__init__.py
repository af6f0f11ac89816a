"""The embedded bases over a world of rendered scenes: a complete, small Stable Diffusion, and a flow-matching
transformer (Z-Image's classes) that shares its VAE.

`load_pipeline()` loads them; `dash_vision.miniature.world.scenes` draws the world that it knows. Importing this package
loads neither PyTorch nor diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline, ZImagePipeline
    from transformers import CLIPModel

MINIATURE = "miniature"  # what settings and records call the embedded models
FLOW = "miniature-flow"
EMBEDDED = {MINIATURE: "pipeline", FLOW: "flow"}  # base -> the folder of its weights
STEPS = 1000  # of a DreamBooth run on them, where the user gives no number
WEIGHTS = Path(__file__).parent / "weights"


def _weights(name: str) -> Path:
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the miniature's weights are missing: there is no folder {folder}; train them with "
            "`python -m dash_vision.miniature build --work DIR`, or reinstall dash-vision"
        )
    return folder


def pipeline_path(name: str = MINIATURE) -> Path:
    """The folder that `DiffusionPipeline.from_pretrained` loads: 64x64 pictures, float16 files. name: MINIATURE, a
    StableDiffusionPipeline, or FLOW, a ZImagePipeline.

    Raises FileNotFoundError, naming the command that makes it, where it is missing.
    """
    return _weights(EMBEDDED[name])


def clip_path() -> Path:
    """The folder that `CLIPModel` and `CLIPProcessor` load from: the pipeline's text encoder and a vision tower for it.

    Raises FileNotFoundError, naming the command that makes it, where it is missing.
    """
    return _weights("clip")


def load_pipeline(torch_dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """The miniature as a diffusers pipeline on the CPU, in `torch_dtype` (default: float32), without network.

    `load_pipeline()("a photo of a red cat in the snow").images[0]` is a 64x64 picture. Raises FileNotFoundError where
    the weights are missing.
    """
    from diffusers import StableDiffusionPipeline

    return _pipeline(StableDiffusionPipeline, MINIATURE, torch_dtype)


def load_flow_pipeline(torch_dtype: torch.dtype | None = None) -> ZImagePipeline:
    """The flow-matching miniature, as `load_pipeline`; it wants `height=64, width=64`."""
    from diffusers import ZImagePipeline

    return _pipeline(ZImagePipeline, FLOW, torch_dtype)


def _pipeline(kind: Any, name: str, torch_dtype: torch.dtype | None) -> Any:
    import torch

    pipeline = kind.from_pretrained(pipeline_path(name), local_files_only=True)
    if torch_dtype in (None, torch.float32):
        return pipeline
    # Cast afterwards: releases of diffusers disagree on the name of the argument that would do it while loading.
    return pipeline.to(torch_dtype)


def load_clip(dtype: torch.dtype | None = None) -> CLIPModel:
    """The miniature's CLIP on the CPU, in `dtype` (default: float32), without network.

    It takes pixels [N, 3, 64, 64] in -1..1 and prompts padded to 40 tokens, as `CLIPProcessor.from_pretrained` of
    `clip_path()` makes them. Raises FileNotFoundError where the weights are missing.
    """
    import torch
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(
        clip_path(), dtype=torch.float32 if dtype is None else dtype, local_files_only=True
    )
