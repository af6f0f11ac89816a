"""Loading a base by hub id, folder or single file: which family it is of, and a plain sentence where it cannot be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..files.errors import InputError
from .family import AS_THE_PIPELINE, Defaults, Family, PromptOptions
from .flux import Flux
from .flux2 import Flux2Dev, Flux2Klein
from .krea2 import Krea2
from .miniature import DEFAULTS, MINIATURE, NOTE, pipeline_path
from .noise import NoiseOptions, NoiseProcess
from .qwen_image import QwenImage
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL
from .stable_diffusion import StableDiffusion
from .z_image import ZImage

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


@dataclass
class Base:
    """A loaded base model: the stock pipeline, in float32 and on the CPU, and its family.

    name: as the user gave it, or MINIATURE. defaults: of settings. specification: the arguments of load_base that load
    it again from anywhere on this machine. note: what a user of it should know. prompt_options: how prompts are told to
    the denoiser, in training and when pictures are drawn.
    """

    name: str
    family: Family
    pipeline: Any
    defaults: Defaults
    specification: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    prompt_options: PromptOptions = AS_THE_PIPELINE

    @property
    def embedded(self) -> bool:
        """Whether it is the miniature, which this package carries."""
        return self.name == MINIATURE

    @property
    def denoiser(self) -> nn.Module:
        """The network that is trained."""
        return cast(nn.Module, getattr(self.pipeline, self.family.denoiser))

    @property
    def resolution(self) -> int:
        """The side in pixels that the denoiser was trained at."""
        return self.family.resolution(self.pipeline)

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return self.family.factor(self.pipeline)

    @property
    def grid(self) -> int:
        """Pixels that one cell of the denoiser's coarsest level covers: sizes of buckets are multiples of it."""
        return self.family.grid(self.pipeline)

    def noise(self, options: NoiseOptions | None = None) -> NoiseProcess:
        """The process that the base was trained on."""
        return self.family.noise(self.pipeline, options or NoiseOptions())

    def text_encoders(self) -> list[nn.Module]:
        """The text encoders in the family's order, without those that the base lacks."""
        encoders = [getattr(self.pipeline, name) for name in self.family.text_encoders]
        return [encoder for encoder in encoders if encoder is not None]

    def components(self) -> dict[str, nn.Module]:
        """Every network of the base by its name in the pipeline."""
        names = ("vae", self.family.denoiser, *self.family.text_encoders)
        found = {name: getattr(self.pipeline, name) for name in names}
        return {name: network for name, network in found.items() if network is not None}


def load_base(
    name: str | None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
    single_file_config: str | None = None,
    prediction_type: str | None = None,
    vae_revision: str | None = None,
    max_sequence_length: int | None = None,
) -> Base:
    """Load a base model by hub id, folder, or single .safetensors file; "miniature" or None is the embedded one.

    revision, variant: of a hub id's files. vae, vae_revision: another VAE and its revision. single_file_config: hub id
    or folder with the configuration of a single file. prediction_type: what the base predicts, where its files do not
    say it. max_sequence_length: tokens of a prompt that are read, where there is a choice. Weights are read from
    safetensors only, as float32. Raises InputError in plain words when there is no such base, it cannot be fetched, or
    is of a kind that this package does not train.
    """
    name = name or MINIATURE
    specification: dict[str, Any] = {
        "name": _absolute(name) if name != MINIATURE else name,
        "revision": revision,
        "variant": variant,
        "vae": _absolute(vae),
        "single_file_config": _absolute(single_file_config),
        "prediction_type": prediction_type,
        "vae_revision": vae_revision,
    }
    if max_sequence_length is not None:
        specification["max_sequence_length"] = max_sequence_length
    single_file_config, vae = _expanded(single_file_config), _expanded(vae)
    path = pipeline_path() if name == MINIATURE else Path(name).expanduser()
    if path.is_file():
        pipeline, family = _load_file(path, single_file_config)
    else:
        pipeline, family = _load_repository(str(path) if path.is_dir() else name, revision, variant)
    if vae is not None:
        pipeline.register_modules(vae=_load_vae(type(pipeline.vae), vae, vae_revision))
    if prediction_type is not None:
        family.set_prediction(pipeline, prediction_type)
    family.check(name, pipeline)
    options = PromptOptions(length=max_sequence_length)
    family.check_prompts(pipeline, options)
    base = Base(name, family, pipeline, family.suited(pipeline), specification, family.note(pipeline), options)
    if base.embedded:
        base.defaults, base.note = DEFAULTS, NOTE
    for network in base.components().values():
        network.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return base


def find_family(name: str) -> Family:
    """The family of the base of that hub id, folder or single file, which is not loaded. Raises as `load_base`."""
    import diffusers

    path = Path(name).expanduser()
    if path.is_file():
        return _family_of_file(path)
    with _plain_words(name):
        index = diffusers.DiffusionPipeline.load_config(str(path) if path.is_dir() else name)
    return _family_of(str(index.get("_class_name")), name)


def _load_repository(name: str, revision: str | None, variant: str | None) -> tuple[Any, Family]:
    import diffusers

    where = {"revision": revision} if revision else {}
    with _plain_words(name):
        index = diffusers.DiffusionPipeline.load_config(name, **where)
    family = _family_of(str(index.get("_class_name")), name)
    # diffusers wants to be told of parts that a base was saved without.
    absent = {part: None for part, kind in index.items() if kind == [None, None]}
    options = absent | family.loading_options()
    with _plain_words(name), _without_bars() if Path(name).is_dir() else contextlib.nullcontext():
        pipeline = getattr(diffusers, family.pipeline_class).from_pretrained(
            name, variant=variant, torch_dtype=torch.float32, use_safetensors=True, **options, **where
        )
    return pipeline, family


def _load_file(path: Path, config: str | None) -> tuple[Any, Family]:
    import diffusers

    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a .safetensors file; other formats can run code when they are opened: convert it first"
        )
    family = _family_of_file(path)
    with _plain_words(str(path)), _without_bars():
        pipeline = getattr(diffusers, family.pipeline_class).from_single_file(
            str(path), torch_dtype=torch.float32, **({"config": config} if config else {})
        )
    return pipeline, family


def _expanded(name: str | None) -> str | None:
    """ "--flag=~/folder" reaches us unexpanded."""
    return str(Path(name).expanduser()) if name and name.startswith("~") else name


def _absolute(name: str | None) -> str | None:
    """A path from the root; a hub id as it is."""
    if name is None or not Path(name).expanduser().exists():
        return name
    return str(Path(name).expanduser().resolve())


def _load_vae(kind: Any, name: str, revision: str | None) -> Any:
    where = {"revision": revision} if revision else {}
    with _plain_words(name):
        if Path(name).is_file():
            return kind.from_single_file(name, torch_dtype=torch.float32)
        return kind.from_pretrained(name, torch_dtype=torch.float32, use_safetensors=True, **where)


def _family_of(pipeline_class: str, name: str) -> Family:
    for family in FAMILIES:
        if family.pipeline_class == pipeline_class:
            return family
    known = ", ".join(f"{f.name} ({f.pipeline_class})" for f in FAMILIES)
    raise InputError(f"the base {name} is a {pipeline_class}; dash-vision trains {known}")


def _family_of_file(path: Path) -> Family:
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no complete .safetensors file ({error}); fetch it again") from None
    for family in FAMILIES:
        if family.owns(keys):
            return family
    raise InputError(
        f"{path} holds no checkpoint of {' or '.join(f.name for f in FAMILIES)} (its tensors are called "
        f"{', '.join(keys[:2])}, ...); for a LoRA, give its base model instead"
    )


@contextlib.contextmanager
def _plain_words(name: str) -> Iterator[None]:
    """A failure to load `name` as one sentence with the next step."""
    from huggingface_hub import constants

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        folder = Path(name).expanduser()
        first = " ".join(str(error).split())[:300] or type(error).__name__
        if folder.is_dir() and not (folder / "model_index.json").is_file():
            reason = "it has no model_index.json, so it is no diffusers model folder; give the folder that holds one"
        elif folder.is_file():
            reason = (
                f"{first}; a single file holds no configuration: that comes from the hub, or from a local folder by "
                "--single_file_config"
            )
        elif folder.exists():
            reason = f"{first}; check that the folder is complete"
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            reason = "there is no such folder; check the path"
        elif constants.HF_HUB_OFFLINE:
            reason = (
                "there is no such folder here, and it is not in the hub cache while HF_HUB_OFFLINE is set; unset it, "
                "or give a local folder"
            )
        else:
            reason = (
                f"there is no such folder here and the hub gave: {first}; check the name, the network, and for gated "
                "models `hf auth login`"
            )
        raise InputError(
            f"cannot load the base {name}: {reason}; without --pretrained_model_name_or_path the run trains on the "
            "embedded miniature"
        ) from None


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of the libraries: reading local files takes a moment. Downloads keep theirs."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers.utils.logging.enable_progress_bar()
        transformers.utils.logging.enable_progress_bar()
