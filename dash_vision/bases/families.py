"""Model families: what a DreamBooth run has to ask of a base model, answered for each kind of base.

A family says how prompts become conditions, how pictures become latents, how the denoiser is called, and which
defaults suit it. SD 1.x / 2.x and SDXL differ in a few lines; another kind of base is another class here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files.errors import InputError
from ..pictures.crops import CropInfo

log = logging.getLogger(__name__)

Conditions = dict[str, Tensor]
"""What the denoiser is told, batch first: "prompt_embeds" [N, tokens, width]; SDXL also "text_embeds" [N, width]."""


@dataclass(frozen=True)
class Defaults:
    """Settings that depend on the base; a DreamBoothConfig's None is replaced by them."""

    learning_rate: float
    max_train_steps: int
    train_batch_size: int
    guidance_scale: float
    num_inference_steps: int


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x: one CLIP text encoder, its last hidden state."""

    name = "Stable Diffusion"
    pipeline_class = "StableDiffusionPipeline"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    defaults = Defaults(1e-4, 500, 1, 7.5, 30)

    def tokenize(self, pipeline: Any, prompts: Sequence[str]) -> list[Tensor]:
        """Token ids [N, tokens] for each text encoder."""
        tokenizers = [getattr(pipeline, name.replace("text_encoder", "tokenizer")) for name in self.text_encoders]
        return [
            tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer in tokenizers
        ]

    def left_out(self, pipeline: Any, prompt: str) -> str:
        """The end of a prompt that is beyond the tokenizer's length, as text; "" when all of it is read."""
        tokenizer = pipeline.tokenizer
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        return str(tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])).strip()

    def sampler_inputs(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """The pipeline's own encoding of prompts, and of none for guidance, as arguments of its call."""
        with_prompt, without = pipeline.encode_prompt(list(prompts), device, 1, True)
        return {"prompt_embeds": with_prompt, "negative_prompt_embeds": without}

    def encode_tokens(self, encoders: Sequence[nn.Module], ids: Sequence[Tensor]) -> Conditions:
        """Conditions of tokenized prompts, with gradients if the encoders have any."""
        return {"prompt_embeds": encoders[0](ids[0])[0]}

    def text_target(self, name: str, encoder: Any) -> str:
        """The layers of a text encoder to adapt, as DashConfig's target: those that the conditions depend on."""
        return "clip-text"

    def picture_conditions(self, infos: Sequence[CropInfo], size: tuple[int, int]) -> Conditions:
        """What the denoiser is told about the pictures themselves; nothing here."""
        return {}

    def denoise(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output for noisy latents [N, C, H, W] at `timesteps` [N]."""
        return unet(noisy, timesteps, encoder_hidden_states=conditions["prompt_embeds"]).sample


class StableDiffusionXL(StableDiffusion):
    """SDXL: two text encoders, their penultimate states joined, a pooled state, and sizes and crop as numbers."""

    name = "Stable Diffusion XL"
    pipeline_class = "StableDiffusionXLPipeline"
    text_encoders = ("text_encoder", "text_encoder_2")
    defaults = Defaults(1e-4, 500, 1, 5.0, 30)

    def sampler_inputs(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """See the base class."""
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return dict(zip(names, pipeline.encode_prompt(list(prompts), device=device), strict=True))

    def encode_tokens(self, encoders: Sequence[nn.Module], ids: Sequence[Tensor]) -> Conditions:
        """See the base class; "text_embeds" is the second encoder's projected state."""
        states = [encoder(i, output_hidden_states=True) for encoder, i in zip(encoders, ids, strict=True)]
        joined = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
        return {"prompt_embeds": joined, "text_embeds": states[-1][0]}

    def text_target(self, name: str, encoder: Any) -> str:
        """All but the first encoder's last layer, which the penultimate state does not pass: it would never get a
        gradient, and DDP would wait for one."""
        if name != "text_encoder":
            return "clip-text"
        used = "|".join(str(i) for i in range(int(encoder.config.num_hidden_layers) - 1))
        return rf"(?:.*\.)?layers\.(?:{used})\.self_attn\.(?:q_proj|k_proj|v_proj|out_proj)"

    def picture_conditions(self, infos: Sequence[CropInfo], size: tuple[int, int]) -> Conditions:
        """ "time_ids" [N, 6]: original height and width, crop's top and left, target height and width, in pixels."""
        width, height = size
        rows = [[*info.original_size, *info.crop_top_left, height, width] for info in infos]
        return {"time_ids": torch.tensor(rows, dtype=torch.float32)}

    def denoise(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """See the base class."""
        added = {"text_embeds": conditions["text_embeds"], "time_ids": conditions["time_ids"]}
        return unet(noisy, timesteps, encoder_hidden_states=conditions["prompt_embeds"], added_cond_kwargs=added).sample


FAMILIES = (StableDiffusion(), StableDiffusionXL())
MINIATURE = "the embedded miniature"
MINIATURE_DEFAULTS = Defaults(1e-3, 700, 4, 2.0, 25)


@dataclass
class Base:
    """A loaded base model: the stock pipeline, in float32 and on the CPU, and its family."""

    name: str
    family: StableDiffusion
    pipeline: Any
    defaults: Defaults

    @property
    def resolution(self) -> int:
        """The side in pixels that the denoiser was trained at."""
        return int(self.pipeline.unet.config.sample_size) * self.factor

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return int(2 ** (len(self.pipeline.vae.config.block_out_channels) - 1))

    @property
    def grid(self) -> int:
        """Pixels that one cell of the denoiser's coarsest level covers: sizes of buckets are multiples of it."""
        return self.factor * int(2 ** (len(self.pipeline.unet.config.block_out_channels) - 1))

    @property
    def prediction_type(self) -> str:
        """ "epsilon" or "v_prediction"."""
        return str(self.pipeline.scheduler.config.prediction_type)

    def text_encoders(self) -> list[nn.Module]:
        """The text encoders in the family's order."""
        return [getattr(self.pipeline, name) for name in self.family.text_encoders]

    def components(self) -> dict[str, nn.Module]:
        """Every network of the base by its name in the pipeline."""
        names = ("vae", "unet", *self.family.text_encoders)
        return {name: getattr(self.pipeline, name) for name in names}


def load_base(
    name: str | None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
    single_file_config: str | None = None,
    prediction_type: str | None = None,
    vae_revision: str | None = None,
) -> Base:
    """Load a base model by hub id, folder, or single .safetensors file; None is the embedded miniature.

    Weights are read from safetensors only, as float32. Raises InputError in plain words when there is no such base,
    it cannot be fetched, or is of a kind that this package does not train.
    """
    if name is None:
        from ..miniature import pipeline_path

        base = load_base(str(pipeline_path()))
        return replace(base, name=MINIATURE, defaults=MINIATURE_DEFAULTS)
    path = Path(name).expanduser()
    single_file_config, vae = _expanded(single_file_config), _expanded(vae)
    if path.is_file():
        pipeline, family = _load_file(path, single_file_config)
    else:
        pipeline, family = _load_repository(str(path) if path.is_dir() else name, revision, variant)
    if vae is not None:
        pipeline.register_modules(vae=_load_vae(vae, vae_revision))
    if prediction_type is not None:
        pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    base = Base(name, family, pipeline, family.defaults)
    _refuse_strangers(base)
    if base.prediction_type not in ("epsilon", "v_prediction"):
        raise InputError(
            f"the base {name} predicts {base.prediction_type!r}; dash-vision trains bases that predict epsilon or "
            "v_prediction"
        )
    for network in base.components().values():
        network.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return base


def _refuse_strangers(base: Base) -> None:
    """Raises InputError for relatives of the families that would train without an error, but for a wrong target."""
    unet, vae = base.pipeline.unet.config, base.pipeline.vae.config
    kind = type(base.pipeline.scheduler).__name__
    if int(unet.in_channels) != int(vae.latent_channels):
        raise InputError(
            f"the base {base.name} takes {unet.in_channels} input channels, its VAE makes {vae.latent_channels}: an "
            "inpainting or depth model cannot be trained here; give a text-to-image base"
        )
    if kind.startswith("EDM") or getattr(vae, "latents_mean", None) is not None:
        raise InputError(
            f"the base {base.name} has a noise process of its own ({kind}); dash-vision trains SD 1.x, 2.x and SDXL as "
            "they were published"
        )


def _load_repository(name: str, revision: str | None, variant: str | None) -> tuple[Any, StableDiffusion]:
    import diffusers

    where = {"revision": revision} if revision else {}
    with _plain_words(name):
        index = diffusers.DiffusionPipeline.load_config(name, **where)
    family = _family_of(str(index.get("_class_name")), name)
    # The checker and its pictures' preprocessor are of no use in training, and some copies of the bases lack them.
    unused: dict[str, Any] = {}
    if isinstance(family, StableDiffusion) and not isinstance(family, StableDiffusionXL):
        unused = {"safety_checker": None, "requires_safety_checker": False}
    with _plain_words(name), _without_bars() if Path(name).is_dir() else contextlib.nullcontext():
        pipeline = getattr(diffusers, family.pipeline_class).from_pretrained(
            name, variant=variant, torch_dtype=torch.float32, use_safetensors=True, **unused, **where
        )
    return pipeline, family


def _load_file(path: Path, config: str | None) -> tuple[Any, StableDiffusion]:
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


def _load_vae(name: str, revision: str | None) -> Any:
    from diffusers import AutoencoderKL

    where = {"revision": revision} if revision else {}
    with _plain_words(name):
        if Path(name).is_file():
            return AutoencoderKL.from_single_file(name, torch_dtype=torch.float32)
        return AutoencoderKL.from_pretrained(name, torch_dtype=torch.float32, use_safetensors=True, **where)


def _family_of(pipeline_class: str, name: str) -> StableDiffusion:
    for family in FAMILIES:
        if family.pipeline_class == pipeline_class:
            return family
    known = ", ".join(f"{f.name} ({f.pipeline_class})" for f in FAMILIES)
    raise InputError(f"the base {name} is a {pipeline_class}; dash-vision trains {known}")


def _family_of_file(path: Path) -> StableDiffusion:
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no complete .safetensors file ({error}); fetch it again") from None
    if any(key.startswith("conditioner.embedders.1.") for key in keys):
        return FAMILIES[1]
    if any(key.startswith("cond_stage_model.") for key in keys):
        return FAMILIES[0]
    raise InputError(
        f"{path} holds no Stable Diffusion 1.x, 2.x or SDXL checkpoint (its tensors are called {', '.join(keys[:2])}, "
        "...); for a LoRA, give its base model instead"
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


# -- encoding


@torch.no_grad()
def encode_prompts(base: Base, prompts: Sequence[str], device: torch.device) -> dict[str, Conditions]:
    """Prompt -> its conditions (batch of 1, on the CPU). The encoders are moved to `device` for it and back."""
    encoders = base.text_encoders()
    for encoder in encoders:
        encoder.to(device)
    result = {}
    for prompt in dict.fromkeys(prompts):
        ids = [i.to(device) for i in base.family.tokenize(base.pipeline, [prompt])]
        conditions = base.family.encode_tokens(encoders, ids)
        result[prompt] = {key: value.float().cpu() for key, value in conditions.items()}
    for encoder in encoders:
        encoder.to("cpu")
    return result


@torch.no_grad()
def encode_picture(base: Base, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of the latents' distribution [C, H, W] of one picture [3, height, width] in [-1, 1].

    Scaled as the denoiser expects them. Always float32: SDXL's own VAE overflows in half precision.
    """
    vae = base.pipeline.vae
    distribution = vae.encode(pixels[None].to(device, torch.float32)).latent_dist
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    mean = (distribution.mean - shift) * vae.config.scaling_factor
    std = distribution.std * vae.config.scaling_factor
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise InputError(
            "the VAE gave values that are not finite; for SDXL give the fp16-fix VAE by "
            "--pretrained_vae_model_name_or_path, or check the base's files"
        )
    return mean[0].cpu(), std[0].cpu()


@torch.no_grad()
def decode_latents(base: Base, latents: Tensor) -> Tensor:
    """Latents [N, C, H, W] of the denoiser -> pictures [N, 3, height, width] in [0, 1], float32 on the CPU.

    One at a time, and in tiles where the device's memory does not suffice for one.
    """
    vae = base.pipeline.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scaled = latents.to(device=vae.device, dtype=torch.float32) / vae.config.scaling_factor + shift
    pictures = torch.cat([_decode(vae, one[None]).cpu() for one in scaled])
    return (pictures / 2 + 0.5).clamp(0, 1)


def _decode(vae: Any, latents: Tensor) -> Tensor:
    try:
        return vae.decode(latents).sample
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        log.warning("not enough memory to decode a picture at once; decoding it in tiles")
    vae.enable_tiling()
    try:
        return vae.decode(latents).sample
    finally:
        vae.disable_tiling()
