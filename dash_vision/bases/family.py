"""A family of base models: everything that training and sampling ask of a base, answered in one file for each kind.

A new family is a file with a subclass of `Family` and one entry in `families.FAMILIES`. No other module knows a
pipeline's networks by name, how its prompts and pictures are encoded, or by what process it makes noise of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..files.errors import InputError
from ..files.readers import About
from ..pictures.crops import CropInfo
from .noise import NoiseOptions, NoiseProcess

Conditions = dict[str, Any]
"""What the denoiser is told beside the noisy latents, by a name that the family chooses; a batch first."""
Generators = torch.Generator | list[torch.Generator]
Target = str | list[str]
"""DashConfig's target: a preset of the core, module-name suffixes, or a regular expression."""


@dataclass(frozen=True)
class PromptOptions:
    """What a run may choose about how prompts are told to the denoiser; None leaves it to the family.

    length: tokens of a prompt that are read. guidance: the scale that a guidance-distilled denoiser is told in
    training. clip_skip: last layers of CLIP that are left out, as diffusers' pipelines count them.
    """

    length: int | None = None
    guidance: float | None = None
    clip_skip: int | None = None


AS_THE_PIPELINE = PromptOptions()
CPU = torch.device("cpu")


def moved(conditions: Mapping[str, Any], device: torch.device, dtype: torch.dtype | None = None) -> Conditions:
    """Conditions on a device; what is no whole number in `dtype`. A condition is a tensor or a list of tensors."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(one) for one in value]
        return value.to(device, dtype if value.is_floating_point() else None)

    return {key: move(value) for key, value in conditions.items()}


@dataclass(frozen=True)
class Defaults:
    """Settings that suit a base; a setting that the user left out is replaced by them."""

    learning_rate: float
    rank: int
    max_train_steps: int
    train_batch_size: int
    guidance_scale: float
    num_inference_steps: int
    lr_scheduler: str = "constant"


@dataclass(frozen=True)
class Marks:
    """What a single file says of its noise process: prediction_type, None where it says nothing; and whether it was
    trained up to pure noise, a terminal signal-to-noise ratio of zero (arXiv 2305.08891)."""

    prediction_type: str | None = None
    zero_terminal_snr: bool = False


class Family(Protocol):
    """What is asked of a kind of base. `pipeline` is always the stock diffusers pipeline.

    name: for users. pipeline_class: of diffusers. denoiser, text_encoders: names of the pipeline's networks; the
    denoiser's is also the prefix of its layers in LoRA files. single_files: whether a single file holds all networks of
    such a base, not the denoiser alone. trained_encoders: those of the text encoders that can be trained too;
    frozen_text: why none can. light_text_encoders: whether they stay in memory while none of them is trained. defaults:
    of settings. targets: presets of layers to adapt, by the name that users give; default_target is one of these.
    units: class names of the blocks whose weights FSDP puts together at a time. layouts: formats of files.lora that
    tools read for this family. other_programs: a sentence about who else reads which of them.

    Latents are [N, C, h, w] everywhere: a family whose denoiser takes packed ones packs them in `denoise` and `sample`.
    """

    name: str
    pipeline_class: str
    denoiser: str
    text_encoders: tuple[str, ...]
    single_files: bool
    trained_encoders: tuple[str, ...]
    light_text_encoders: bool
    frozen_text: str
    defaults: Defaults
    targets: Mapping[str, Target]
    default_target: str
    units: tuple[str, ...]
    layouts: tuple[str, ...]
    other_programs: str

    # -- loading

    def owns(self, keys: Collection[str]) -> bool:
        """Whether a single file with tensors of these names is a base of this family."""

    def loading_options(self) -> dict[str, Any]:
        """What from_pretrained of the pipeline's class takes beside the name."""

    def check(self, name: str, pipeline: Any) -> None:
        """Raises InputError for a relative that would train without an error, but for a wrong target."""

    def about(self, pipeline: Any) -> About:
        """What a LoRA file says of its base, for the programs that read one."""

    def marks(self, file: Any, configured: bool) -> Marks:
        """What a single file says of its noise process. file: as safetensors.safe_open gives it. configured: whether
        the user gave a configuration for it. Raises InputError for a process that this family does not have."""
        return Marks()

    def note(self, pipeline: Any) -> str | None:
        """What a user of this base should know before training it; None where there is nothing."""
        return None

    def suited(self, pipeline: Any) -> Defaults:
        """The defaults, as they suit this very base."""
        return self.defaults

    def target(self, pipeline: Any, name: str) -> Target:
        """DashConfig's target of a preset, for this very base; a name that is no preset is one already."""
        return self.targets.get(name, name)

    def set_prediction(self, pipeline: Any, prediction_type: str) -> None:
        """Say what the base predicts, where its files do not. Raises InputError where there is no such choice."""

    def set_zero_terminal_snr(self, pipeline: Any) -> None:
        """Say that the base was trained up to pure noise. Raises InputError where there is no such choice."""
        raise InputError(
            f"--zero_terminal_snr is of bases that predict v; {self.name} has no such choice: leave it out"
        )

    def serve_zero_terminal_snr(self, name: str, pipeline: Any) -> None:
        """See to it that samples are drawn up to pure noise where the base's files say that it was trained so. name: of
        the base. Raises InputError for files that contradict themselves."""
        return

    # -- sizes

    def resolution(self, pipeline: Any) -> int:
        """The side in pixels that the denoiser was trained at."""

    def factor(self, pipeline: Any) -> int:
        """Pixels per latent along a side."""

    def grid(self, pipeline: Any) -> int:
        """Pixels that one cell of the denoiser's coarsest level covers: sizes of buckets are multiples of it."""

    def multiple(self, pipeline: Any) -> int:
        """The pipeline samples in multiples of so many pixels along a side."""

    def largest(self, pipeline: Any) -> int | None:
        """Pixels along a side that the denoiser has positions for; None where it computes them for any number."""
        return None

    def latent_shape(self, pipeline: Any, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of `size`, (width, height) in pixels."""

    # -- the noise process

    def noise(self, pipeline: Any, options: NoiseOptions) -> NoiseProcess:
        """The process that the base was trained on. Raises InputError for options that it does not have."""

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """What the denoiser says of noisy latents [N, C, h, w] at `times` [N] of the noise process, in the terms of
        that process's target."""

    # -- prompts

    def guided(self, pipeline: Any) -> bool:
        """Whether the denoiser is told a guidance scale, because it was distilled from guidance."""
        return False

    def check_prompts(self, pipeline: Any, options: PromptOptions) -> None:
        """Raises InputError for options that this base does not have, or out of its range."""

    def encode_prompts(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> dict[str, Conditions]:
        """Prompt -> its conditions (a batch of 1, float32, on the CPU). Encoders are on `device` only for it."""

    def left_out(self, pipeline: Any, prompt: str, options: PromptOptions = AS_THE_PIPELINE) -> str:
        """The end of a prompt that is beyond what is read of one, as text; "" when all of it is read."""

    def picture_conditions(self, infos: Sequence[CropInfo], size: tuple[int, int]) -> Conditions:
        """What the denoiser is told about the pictures themselves, as tensors [N, ...]; size: (width, height)."""

    def join(self, conditions: Sequence[Conditions]) -> Conditions:
        """Conditions of several prompts as one batch: tensors of one shape side by side, lists one after another."""
        found: Conditions = {}
        for key in conditions[0]:
            values = [one[key] for one in conditions]
            found[key] = [*chain(*values)] if isinstance(values[0], list) else torch.cat(values)
        return found

    # -- trained text encoders

    def tokenize(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        device: torch.device = CPU,
        options: PromptOptions = AS_THE_PIPELINE,
    ) -> list[Tensor]:
        """What `encode_tokens` takes, each [N, ...] on the CPU: whole numbers for each encoder that is trained, then
        what the others say, which are on `device` only for it."""

    def encode_tokens(
        self, encoders: Sequence[nn.Module], ids: Sequence[Tensor], options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """Conditions of tokenized prompts, with gradients if the encoders have any: those of
        `trained_encoders`."""

    def text_target(self, name: str, encoder: Any, options: PromptOptions = AS_THE_PIPELINE) -> Target:
        """The layers of a text encoder to adapt: those that the conditions depend on."""

    # -- pictures

    def encode_picture(self, pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) of the latents' distribution for pictures [N, 3, height, width] in [-1, 1] on the
        VAE's device, scaled as the denoiser expects them; a deviation of 0 where the family takes the mode."""

    def decode(self, pipeline: Any, latents: Tensor) -> Tensor:
        """Latents of the denoiser, float32 on the VAE's device -> pictures [N, 3, height, width] in [-1, 1]."""

    # -- the base's own sampler

    def sampler_inputs(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """The pipeline's own encoding of prompts, and of none for guidance, as arguments of its call."""

    def guided_call(self, scale: float) -> dict[str, Any]:
        """What a user's call of the pipeline takes beside a prompt, for guidance of that scale."""
        return {"guidance_scale": scale}

    def sample(
        self, pipeline: Any, inputs: Mapping[str, Any], noise: Tensor, how: Sampling, generator: Generators
    ) -> Tensor:
        """Latents [N, C, h, w] by the pipeline's sampler from `noise` of that shape. generator: of a sampler that adds
        noise on the way, one for each picture or one for all."""


@dataclass(frozen=True)
class Sampling:
    """How to sample. size: (width, height) in pixels. batch_size: pictures at once. makes_room: the denoiser leaves the
    device while prompts are encoded and pictures decoded."""

    steps: int
    guidance: float
    size: tuple[int, int]
    batch_size: int = 4
    makes_room: bool = False
