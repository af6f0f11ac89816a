"""The families there are, and which of them a base is of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..files.errors import InputError
from .family import Family
from .flux import Flux
from .flux2 import Flux2Dev, Flux2Klein
from .krea2 import Krea2
from .qwen_image import QwenImage
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL
from .stable_diffusion import StableDiffusion
from .z_image import ZImage

_DIFFUSERS = "0.40"  # has the pipelines of all families; pyproject.toml asks for it too
FAMILIES: tuple[Family, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    Flux2Klein(),
    Flux2Dev(),
    ZImage(),
    QwenImage(),
    Flux(),
    StableDiffusion3(),
    Krea2(),
)


def family_of_tensors(keys: Collection[str]) -> Family | None:
    """The family of a single file that holds all networks of a base; None for another file."""
    return next((family for family in FAMILIES if family.owns(keys)), None)


def family_of(index: Any, name: str) -> Family:
    pipeline_class = index.get("_class_name")
    for family in FAMILIES:
        if family.pipeline_class == pipeline_class:
            class_of(family)  # before anything is fetched
            return family
    known = ", ".join(f"{f.name} ({f.pipeline_class})" for f in FAMILIES)
    raise InputError(f"the base {name} is a {pipeline_class}; dash-vision trains {known}")


def class_of(family: Family) -> Any:
    """The family's class of diffusers. Raises InputError where the installed version is older than that."""
    import diffusers

    found = getattr(diffusers, family.pipeline_class, None)
    if found is None:
        raise InputError(
            f"{family.name} needs diffusers >= {_DIFFUSERS}, and {diffusers.__version__} is installed, which has no "
            f'{family.pipeline_class}: pip install --upgrade "diffusers>={_DIFFUSERS}"'
        )
    return found
