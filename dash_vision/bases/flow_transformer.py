"""What the flow-matching transformers share: sizes, noise, prompts by the pipeline's own encoding, sampling."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..files.errors import InputError
from ..files.readers import About
from ..pictures.crops import CropInfo
from .clip import clip_tokens
from .devices import placed
from .family import (
    AS_THE_PIPELINE,
    CPU,
    Conditions,
    Defaults,
    Family,
    Generators,
    PromptOptions,
    Sampling,
    Target,
    moved,
)
from .flow import Flow, sampler_shift, sized_mu
from .noise import NoiseOptions

# A family says what differs: the guidance and the steps of the pictures are those of its own pipeline.
USUAL = Defaults(
    learning_rate=1e-4,
    rank=16,
    max_train_steps=750,
    train_batch_size=1,
    guidance_scale=4.0,
    num_inference_steps=50,
)


def presets(attention: str, mlp: str) -> Mapping[str, Target]:
    """A family's presets from two regular expressions: of the attention's layers, and of the MLPs' in its blocks."""
    both = f"{attention}|{mlp}"
    return {"attention": attention, "attention-mlp": both, "all-linear": both}


class FlowTransformer(Family):
    """A subclass says how prompts are encoded (`encode`), how latents are packed (`pack`, `unpack`), and calls the
    denoiser (`denoise`). One that trains CLIP also says what that tells (`told_by_clip`, `unread_by_clip`).

    patch: latents along a side of a token. usual_length, longest: tokens of a prompt that the pipeline reads by itself,
    and that it can read. about_base: what LoRA files say of the base. optional: text encoders that it may lack.
    guides_by_prompt: whether the pipeline draws with a second prompt, what is not wanted; else guidance is a number.
    """

    denoiser = "transformer"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    optional: tuple[str, ...] = ()
    single_files = False
    trained_encoders: tuple[str, ...] = ()
    light_text_encoders = False
    frozen_text = "diffusers loads no LoRA of its text encoders"
    default_target = "attention"
    targets: Mapping[str, Target]
    units: tuple[str, ...]
    layouts: tuple[str, ...] = ("diffusers",)
    other_programs = "Nobody has tried whether other programs read it."
    defaults: Defaults
    patch = 2
    usual_length = 512
    longest = 512
    about_base: About
    guides_by_prompt = True

    # -- loading

    def owns(self, keys: Collection[str]) -> bool:
        """No: a single file of such a base holds the transformer alone."""
        return False

    def loading_options(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def check(self, name: str, pipeline: Any) -> None:
        """See Family."""
        for part in ("vae", self.denoiser, *self.text_encoders):
            if getattr(pipeline, part) is None and part not in self.optional:
                raise InputError(
                    f"the base {name} was saved without its {part}, which {self.name} needs; give a complete folder or "
                    "hub id"
                )
        channels, taken = self.channels(pipeline), int(pipeline.transformer.config.in_channels)
        if taken not in (channels, channels * self.patch**2):
            raise InputError(
                f"the transformer of the base {name} takes {taken} channels, its VAE makes {channels}: a model for "
                "inpainting, depth or editing cannot be trained here; give a text-to-image base"
            )

    def about(self, pipeline: Any) -> About:
        """See Family."""
        return self.about_base

    def set_prediction(self, pipeline: Any, prediction_type: str) -> NoReturn:
        """See Family."""
        raise InputError(
            f"--prediction_type: {self.name} is trained by flow matching, there is no choice; leave it out"
        )

    # -- sizes

    def resolution(self, pipeline: Any) -> int:
        """1024 pixels, as the pipelines draw by themselves with a VAE of factor 8."""
        return 128 * int(pipeline.vae_scale_factor)

    def factor(self, pipeline: Any) -> int:
        """See Family."""
        return int(pipeline.vae_scale_factor)

    def grid(self, pipeline: Any) -> int:
        """Pixels along a side of a token."""
        return int(pipeline.vae_scale_factor) * self.patch

    def multiple(self, pipeline: Any) -> int:
        """See Family."""
        return self.grid(pipeline)

    def latent_shape(self, pipeline: Any, size: tuple[int, int]) -> tuple[int, int, int]:
        """See Family."""
        factor = self.factor(pipeline)
        return self.channels(pipeline), size[1] // factor, size[0] // factor

    def channels(self, pipeline: Any) -> int:
        """Channels of the latents."""
        return int(pipeline.vae.config.latent_channels)

    # -- the noise process

    def noise(self, pipeline: Any, options: NoiseOptions) -> Flow:
        """See Family."""
        grid, config = self.grid(pipeline), pipeline.scheduler.config

        def shift(size: tuple[int, int]) -> float:
            return sampler_shift(config, self.mu(pipeline, (size[0] // grid) * (size[1] // grid)))

        return Flow.of(pipeline.scheduler, shift, options)

    def mu(self, pipeline: Any, tokens: int) -> float:
        """The pipeline's mu for a picture of so many tokens, by which it shifts its steps."""
        return sized_mu(pipeline.scheduler.config, tokens)

    # -- prompts

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device, length: int) -> Conditions:
        """Prompts as the pipeline encodes them, in `length` tokens, by the names of its call's arguments."""
        raise NotImplementedError

    def prompt_text(self, pipeline: Any, prompt: str) -> tuple[Any, str, int]:
        """(tokenizer, the text that it is given for a prompt, tokens of it that are read beyond the length)."""
        raise NotImplementedError

    def check_prompts(self, pipeline: Any, options: PromptOptions) -> None:
        """See Family."""
        if options.length is not None and not 1 <= options.length <= self.longest:
            raise InputError(
                f"--max_sequence_length is {options.length}; {self.name} takes 1 to {self.longest} (by itself "
                f"{self.usual_length})"
            )
        if options.clip_skip is not None:
            raise InputError(
                f"--clip_skip is for Stable Diffusion 1.x, 2.x and SDXL, and this base is {self.name}; leave it out"
            )
        if options.guidance is not None and not self.guided(pipeline):
            raise InputError(
                f"--training_guidance_scale: {self.name} here is told no guidance (its transformer has no guidance "
                "embedding); leave it out"
            )

    def guided(self, pipeline: Any) -> bool:
        """See Family."""
        return bool(getattr(getattr(pipeline, self.denoiser).config, "guidance_embeds", False))

    def length(self, options: PromptOptions) -> int:
        """Tokens of a prompt that are read."""
        return options.length or self.usual_length

    @torch.no_grad()
    def encode_prompts(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> dict[str, Conditions]:
        """See Family; "guidance" [1] for a guidance-distilled denoiser."""
        cpu, found = torch.device("cpu"), {}
        scale = 1.0 if options.guidance is None else options.guidance
        told = {"guidance": torch.tensor([scale])} if self.guided(pipeline) else {}
        with placed(self._encoders(pipeline), device):
            for prompt in dict.fromkeys(prompts):
                conditions = self.encode(pipeline, [prompt], device, self.length(options))
                found[prompt] = moved(conditions, cpu, torch.float32) | told
        return found

    def _encoders(self, pipeline: Any) -> list[nn.Module]:
        return [e for e in (getattr(pipeline, name) for name in self.text_encoders) if e is not None]

    def left_out(self, pipeline: Any, prompt: str, options: PromptOptions = AS_THE_PIPELINE) -> str:
        """See Family."""
        tokenizer, text, extra = self.prompt_text(pipeline, prompt)
        return beyond(tokenizer, text, prompt, self.length(options) + extra)

    def picture_conditions(self, infos: Sequence[CropInfo], size: tuple[int, int]) -> Conditions:
        """Nothing."""
        return {}

    # -- trained text encoders

    def tokenize(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        device: torch.device = CPU,
        options: PromptOptions = AS_THE_PIPELINE,
    ) -> list[Tensor]:
        """See Family."""
        encoded = self.encode_prompts(pipeline, prompts, device, options)
        said = self.join([encoded[prompt] for prompt in prompts])
        guidance = [said["guidance"]] if "guidance" in said else []
        tokens = [clip_tokens(pipeline, name, prompts) for name in self._trainable()]
        return [*tokens, self.unread_by_clip(pipeline, said["prompt_embeds"]), *guidance]

    def _trainable(self) -> tuple[str, ...]:
        if not self.trained_encoders:
            raise InputError(f"the text encoders of {self.name} are not trained: {self.frozen_text}")
        return self.trained_encoders

    def unread_by_clip(self, pipeline: Any, embeds: Tensor) -> Tensor:
        """The part of the prompts' embeddings [N, tokens, width] that no trained encoder says."""
        return embeds

    def encode_tokens(
        self, encoders: Sequence[nn.Module], ids: Sequence[Tensor], options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """See Family."""
        names = self._trainable()
        tokens, (embeds, *guidance) = ids[: len(names)], ids[len(names) :]
        conditions = self.told_by_clip(encoders, [part[:, 0] for part in tokens], embeds)
        return conditions | ({"guidance": guidance[0]} if guidance else {})

    def told_by_clip(self, encoders: Sequence[nn.Module], tokens: Sequence[Tensor], embeds: Tensor) -> Conditions:
        """Conditions by the trained encoders, and by what the others say."""
        raise NotImplementedError

    def text_target(self, name: str, encoder: Any, options: PromptOptions = AS_THE_PIPELINE) -> Target:
        """See Family: the pooled state passes every layer."""
        return "clip-text"

    # -- pictures

    def encode_picture(self, pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See Family."""
        config, distribution = pipeline.vae.config, pipeline.vae.encode(pixels).latent_dist
        mean = (distribution.mean - config.shift_factor) * config.scaling_factor
        return mean, distribution.std * config.scaling_factor

    def decode(self, pipeline: Any, latents: Tensor) -> Tensor:
        """See Family."""
        config = pipeline.vae.config
        return pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample

    # -- the base's own sampler

    @torch.no_grad()
    def sampler_inputs(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """See Family."""
        length = self.length(options)
        inputs = self.encode(pipeline, list(prompts), device, length)
        if not self.guides_by_prompt:
            return inputs
        empty = self.encode(pipeline, [""] * len(prompts), device, length)
        return inputs | {f"negative_{name}": value for name, value in empty.items()}

    def sample(
        self, pipeline: Any, inputs: Mapping[str, Any], noise: Tensor, how: Sampling, generator: Generators
    ) -> Tensor:
        """See Family."""
        drawn = pipeline(
            **self.call_inputs(inputs),
            **self.guidance(how.guidance),
            width=how.size[0],
            height=how.size[1],
            num_inference_steps=how.steps,
            latents=self.pack(noise),
            generator=generator,
            output_type="latent",
        ).images
        return self.unpack(drawn, pipeline, how.size)

    def call_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Encoded prompts as the pipeline's call takes them."""
        return dict(inputs)

    def guidance(self, scale: float) -> dict[str, Any]:
        """The guidance as the pipeline's call takes it."""
        return {"guidance_scale": scale}

    def pack(self, latents: Tensor) -> Tensor:
        """Latents [N, C, h, w] as the pipeline takes them."""
        return latents

    def unpack(self, drawn: Tensor, pipeline: Any, size: tuple[int, int]) -> Tensor:
        """What the pipeline gives for output_type="latent" as latents [N, C, h, w]."""
        return drawn


def beyond(tokenizer: Any, text: str, prompt: str, length: int) -> str:
    """The end of a prompt that is beyond `length` tokens of a text which holds it; "" when none of it is."""
    ids = tokenizer(text, truncation=False, add_special_tokens=False, verbose=False).input_ids
    rest = str(tokenizer.decode(ids[length:]))
    # What a template puts before and after the prompt may be cut too; that is none of the prompt.
    after = text[text.rindex(prompt) + len(prompt) :]
    return rest.removesuffix(after)[-len(prompt) :].strip() if len(rest) > len(after) else ""


def without(dead: str, target: Target) -> str:
    """The regular expression `target` but for names that `dead` matches from their beginning to their end."""
    return f"(?!(?:{dead})$)(?:{target})"


def tokens_of(latents: Tensor, patch: int) -> Tensor:
    """Latents [N, C, h, w] -> tokens [N, (h / patch) (w / patch), C patch^2], each a square of latents by channels."""
    return nn.functional.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def latents_of(tokens: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `tokens_of`, for latents of `size`, (h, w)."""
    height, width = size
    square = tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch))
    return nn.functional.pixel_shuffle(square, patch)
