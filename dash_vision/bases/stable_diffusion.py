"""Stable Diffusion 1.x and 2.x: a UNet under DDPM, one CLIP text encoder, its last hidden state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..files.errors import InputError
from ..files.readers import SD1, SD2, UNKNOWN, About
from ..pictures.crops import CropInfo
from .devices import placed
from .family import AS_THE_PIPELINE, Conditions, Defaults, Family, PromptOptions, Sampling, Target
from .noise import DDPM, NoiseOptions

_PREDICTIONS = ("epsilon", "v_prediction")
_SHORT = 32  # latents along a side up to which plain attention is the faster one on a CPU


class StableDiffusion(Family):
    """Conditions: "prompt_embeds" [N, tokens, width]."""

    name = "Stable Diffusion"
    pipeline_class = "StableDiffusionPipeline"
    denoiser = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    trains_text_encoders = True
    frozen_text = ""
    defaults = Defaults(
        learning_rate=1e-4,
        rank=4,
        max_train_steps=500,
        train_batch_size=1,
        guidance_scale=7.5,
        num_inference_steps=30,
    )
    targets: Mapping[str, Target] = {"attention": "unet-attention", "cross-attention": "unet-cross-attention"}
    default_target = "attention"
    units = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")
    layouts = ("diffusers", "kohya")
    other_programs = "`kohya/` has the same for ComfyUI and A1111."

    # -- loading

    def owns(self, keys: Collection[str]) -> bool:
        """See Family."""
        return any(key.startswith("cond_stage_model.") for key in keys)

    def loading_options(self) -> dict[str, Any]:
        """The checker and its pictures' preprocessor are of no use in training, and some copies lack them."""
        return {"safety_checker": None, "requires_safety_checker": False}

    def check(self, name: str, pipeline: Any) -> None:
        """See Family."""
        unet, vae = pipeline.unet.config, pipeline.vae.config
        kind = type(pipeline.scheduler).__name__
        if int(unet.in_channels) != int(vae.latent_channels):
            raise InputError(
                f"the base {name} takes {unet.in_channels} input channels, its VAE makes {vae.latent_channels}: an "
                "inpainting or depth model cannot be trained here; give a text-to-image base"
            )
        if kind.startswith("EDM") or getattr(vae, "latents_mean", None) is not None:
            raise InputError(
                f"the base {name} has a noise process of its own ({kind}); dash-vision trains SD 1.x, 2.x and SDXL as "
                "they were published"
            )
        prediction = str(pipeline.scheduler.config.prediction_type)
        if prediction not in _PREDICTIONS:
            raise InputError(
                f"the base {name} predicts {prediction!r}; dash-vision trains bases that predict epsilon or "
                "v_prediction"
            )

    def about(self, pipeline: Any) -> About:
        """See Family. The width of the text encoder tells 1.x from 2.x, and both from a base of another size."""
        kind = {768: SD1, 1024: SD2}.get(pipeline.unet.config.cross_attention_dim, UNKNOWN)
        return replace(kind, prediction=self._prediction(pipeline))

    def note(self, pipeline: Any) -> str | None:
        """See Family: consistency models are told their guidance, Turbo is known by its name."""
        turbo = "turbo" in str(pipeline.config._name_or_path).lower()
        if not turbo and getattr(pipeline.unet.config, "time_cond_proj_dim", None) is None:
            return None
        return (
            "this base is distilled to a few steps, and training undoes that; train the base that it was distilled "
            "from, and draw with this one by --sample_with"
        )

    @staticmethod
    def _prediction(pipeline: Any) -> str:
        """As ModelSpec calls it."""
        return "v" if pipeline.scheduler.config.prediction_type == "v_prediction" else "epsilon"

    def set_prediction(self, pipeline: Any, prediction_type: str) -> None:
        """See Family."""
        pipeline.scheduler.register_to_config(prediction_type=prediction_type)

    # -- sizes

    def resolution(self, pipeline: Any) -> int:
        """See Family."""
        return int(pipeline.unet.config.sample_size) * self.factor(pipeline)

    def factor(self, pipeline: Any) -> int:
        """See Family."""
        return int(2 ** (len(pipeline.vae.config.block_out_channels) - 1))

    def grid(self, pipeline: Any) -> int:
        """See Family."""
        return self.factor(pipeline) * int(2 ** (len(pipeline.unet.config.block_out_channels) - 1))

    def multiple(self, pipeline: Any) -> int:
        """See Family."""
        return 8

    def latent_shape(self, pipeline: Any, size: tuple[int, int]) -> tuple[int, int, int]:
        """See Family."""
        factor = self.factor(pipeline)
        return int(pipeline.unet.config.in_channels), size[1] // factor, size[0] // factor

    # -- the noise process

    def noise(self, pipeline: Any, options: NoiseOptions) -> DDPM:
        """See Family."""
        options.only("DDPM", ["snr_gamma"])
        return DDPM.of(pipeline.scheduler, options.snr_gamma)

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family."""
        return network(noisy, times, encoder_hidden_states=conditions["prompt_embeds"]).sample

    def prepare(self, network: nn.Module, device: torch.device, latent_side: int) -> None:
        """On the CPU the backward pass of PyTorch's fused attention is slow for short sequences: it took 40% of the
        miniature's training step, the plain product a tenth of that."""
        if device.type == "cpu" and latent_side <= _SHORT:
            from diffusers.models.attention_processor import AttnProcessor

            network.set_attn_processor(AttnProcessor())  # type: ignore[operator]

    # -- prompts

    def check_prompts(self, pipeline: Any, options: PromptOptions) -> None:
        """See Family: there is nothing to choose."""
        if options.length is not None:
            raise InputError(
                f"--max_sequence_length: {self.name} always reads {pipeline.tokenizer.model_max_length} tokens of a "
                "prompt; leave it out"
            )
        if options.guidance is not None:
            raise InputError(f"--training_guidance_scale: {self.name} is told no guidance; leave it out")

    @torch.no_grad()
    def encode_prompts(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> dict[str, Conditions]:
        """See Family."""
        encoders = [getattr(pipeline, name) for name in self.text_encoders]
        result = {}
        with placed(encoders, device):
            for prompt in dict.fromkeys(prompts):
                ids = [i.to(device) for i in self.tokenize(pipeline, [prompt])]
                conditions = self.encode_tokens(encoders, ids)
                result[prompt] = {key: value.float().cpu() for key, value in conditions.items()}
        return result

    def left_out(self, pipeline: Any, prompt: str, options: PromptOptions = AS_THE_PIPELINE) -> str:
        """See Family."""
        tokenizer = pipeline.tokenizer
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        return str(tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])).strip()

    def picture_conditions(self, infos: Sequence[CropInfo], size: tuple[int, int]) -> Conditions:
        """Nothing."""
        return {}

    # -- trained text encoders

    def tokenize(self, pipeline: Any, prompts: Sequence[str]) -> list[Tensor]:
        """See Family."""
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

    def encode_tokens(self, encoders: Sequence[nn.Module], ids: Sequence[Tensor]) -> Conditions:
        """See Family."""
        return {"prompt_embeds": encoders[0](ids[0])[0]}

    def text_target(self, name: str, encoder: Any) -> Target:
        """See Family."""
        return "clip-text"

    # -- pictures

    def encode_picture(self, pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See Family."""
        vae = pipeline.vae
        distribution = vae.encode(pixels).latent_dist
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        mean = (distribution.mean - shift) * vae.config.scaling_factor
        return mean, distribution.std * vae.config.scaling_factor

    def decode(self, pipeline: Any, latents: Tensor) -> Tensor:
        """See Family."""
        vae = pipeline.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return vae.decode(latents / vae.config.scaling_factor + shift).sample

    # -- the base's own sampler

    def sampler_inputs(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """See Family."""
        with_prompt, without = pipeline.encode_prompt(list(prompts), device, 1, True)
        return {"prompt_embeds": with_prompt, "negative_prompt_embeds": without}

    def sample(
        self, pipeline: Any, inputs: Mapping[str, Any], noise: Tensor, how: Sampling, generator: torch.Generator
    ) -> Tensor:
        """See Family."""
        return pipeline(
            **inputs,
            width=how.size[0],
            height=how.size[1],
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            latents=noise,
            generator=generator,
            output_type="latent",
        ).images
