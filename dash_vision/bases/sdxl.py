"""SDXL: two text encoders, their penultimate states joined, a pooled state, and sizes and crop as numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..files.errors import InputError
from ..files.readers import SDXL, About
from ..pictures.crops import CropInfo
from .family import AS_THE_PIPELINE, Conditions, Defaults, PromptOptions, Target
from .stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """Conditions: "prompt_embeds" [N, tokens, width], "text_embeds" [N, width], "time_ids" [N, 6]."""

    name = "Stable Diffusion XL"
    pipeline_class = "StableDiffusionXLPipeline"
    text_encoders = ("text_encoder", "text_encoder_2")
    light_text_encoders = False  # the second one has 0.7 billion numbers
    trained_encoders = ("text_encoder", "text_encoder_2")
    defaults = Defaults(
        learning_rate=1e-4,
        rank=4,
        max_train_steps=500,
        train_batch_size=1,
        guidance_scale=5.0,
        num_inference_steps=30,
    )

    gives: Mapping[str, tuple[str | None, ...]] = {**StableDiffusion.gives, "addition_embed_type": ("text_time",)}

    def owns(self, keys: Collection[str]) -> bool:
        """See Family."""
        return any(key.startswith("conditioner.embedders.1.") for key in keys)

    def loading_options(self) -> dict[str, Any]:
        """As of Stable Diffusion, which has a checker more."""
        return {"feature_extractor": None, "image_encoder": None}

    def about(self, pipeline: Any) -> About:
        """See Family."""
        return replace(SDXL, prediction=self._prediction(pipeline))

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family."""
        added = {"text_embeds": conditions["text_embeds"], "time_ids": conditions["time_ids"]}
        return network(noisy, times, encoder_hidden_states=conditions["prompt_embeds"], added_cond_kwargs=added).sample

    def picture_conditions(self, infos: Sequence[CropInfo], size: tuple[int, int]) -> Conditions:
        """ "time_ids" [N, 6]: original height and width, crop's top and left, target height and width, in pixels."""
        width, height = size
        rows = [[*info.original_size, *info.crop_top_left, height, width] for info in infos]
        return {"time_ids": torch.tensor(rows, dtype=torch.float32)}

    def _check_denoiser(self, name: str, pipeline: Any) -> None:
        """Also that the numbers beside the prompt are size, crop and target: the refiner has others."""
        super()._check_denoiser(name, pipeline)
        unet, pooled = pipeline.unet.config, int(pipeline.text_encoder_2.config.projection_dim)
        if int(unet.projection_class_embeddings_input_dim) != 6 * int(unet.addition_time_embed_dim) + pooled:
            raise InputError(
                f"the base {name} asks for other numbers beside the prompt than sizes and crop, as SDXL's refiner "
                "does; give the base model"
            )

    def skipped(self, options: PromptOptions) -> int:
        """See StableDiffusion: the last layer's states are never read."""
        return 1 + super().skipped(options)

    def _encode(self, pipeline: Any, prompt: str, device: torch.device, options: PromptOptions) -> Conditions:
        """See StableDiffusion."""
        told = {"do_classifier_free_guidance": False, "clip_skip": options.clip_skip}
        states = pipeline.encode_prompt([prompt], device=device, **told)
        return {"prompt_embeds": states[0], "text_embeds": states[2]}

    def encode_tokens(
        self, encoders: Sequence[nn.Module], ids: Sequence[Tensor], options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """See Family; "text_embeds" is the second encoder's projected state."""
        states = [encoder(i[:, 0], output_hidden_states=True) for encoder, i in zip(encoders, ids, strict=True)]
        joined = torch.cat([state.hidden_states[-1 - self.skipped(options)] for state in states], dim=-1)
        return {"prompt_embeds": joined, "text_embeds": states[-1][0]}

    def text_target(self, name: str, encoder: Any, options: PromptOptions = AS_THE_PIPELINE) -> Target:
        """As of Stable Diffusion; of the second encoder all layers, which its pooled state passes."""
        return "clip-text" if name != "text_encoder" else super().text_target(name, encoder, options)

    def sampler_inputs(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """See Family."""
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        states = pipeline.encode_prompt(list(prompts), device=device, clip_skip=options.clip_skip)
        return dict(zip(names, states, strict=True))
