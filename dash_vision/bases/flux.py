"""FLUX.1: double and single blocks, prompts by T5, their pooled state by CLIP, and a guidance scale for dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..files.readers import FLUX1, About
from .family import Conditions, Defaults
from .flow_transformer import USUAL, FlowTransformer, latents_of, presets, tokens_of

_ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|single_transformer_blocks\.\d+\.attn\.to_[qkv]"
)
# A single block has one matrix for the attention's output and the MLP's second layer: proj_out.
_MLP = (
    r"transformer_blocks\.\d+\.(?:ff|ff_context)\.net\.(?:0\.proj|2)"
    r"|single_transformer_blocks\.\d+\.(?:proj_mlp|proj_out)"
)


class Flux(FlowTransformer):
    """Conditions: "prompt_embeds" [N, tokens, width], "pooled_prompt_embeds" [N, width], and "guidance" [N] for dev."""

    name = "FLUX.1"
    pipeline_class = "FluxPipeline"
    text_encoders = ("text_encoder", "text_encoder_2")
    trained_encoders = ("text_encoder",)
    defaults = replace(USUAL, guidance_scale=3.5, num_inference_steps=28)
    targets = presets(_ATTENTION, _MLP)
    units = ("FluxTransformerBlock", "FluxSingleTransformerBlock", "CLIPEncoderLayer")
    layouts = ("diffusers", "kohya")
    other_programs = "`kohya/` has the same for ComfyUI, Forge and kohya's scripts, by the names of FLUX's own code."
    about_base: About = FLUX1
    guides_by_prompt = False

    def note(self, pipeline: Any) -> str | None:
        """See Family."""
        if self.guided(pipeline):
            return None
        return (
            "FLUX.1-schnell is distilled to a few steps, and training undoes that; train black-forest-labs/FLUX.1-dev, "
            "and draw with this one by --sample_with"
        )

    def suited(self, pipeline: Any) -> Defaults:
        """schnell draws in 4 steps, without guidance."""
        if self.guided(pipeline):
            return self.defaults
        return replace(self.defaults, guidance_scale=0.0, num_inference_steps=4)

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family."""
        prompt, (height, width) = conditions["prompt_embeds"], noisy.shape[2:]
        said = network(
            hidden_states=self.pack(noisy),
            timestep=times,
            guidance=conditions.get("guidance"),
            pooled_projections=conditions["pooled_prompt_embeds"],
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(prompt.shape[1], 3, device=noisy.device),
            img_ids=_positions(height // self.patch, width // self.patch, noisy.device),
            return_dict=False,
        )[0]
        return latents_of(said, self.patch, (height, width))

    # -- prompts

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device, length: int) -> Conditions:
        """See FlowTransformer."""
        embeds, pooled, _ = pipeline.encode_prompt(prompts, None, device, max_sequence_length=length)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def prompt_text(self, pipeline: Any, prompt: str) -> tuple[Any, str, int]:
        """See FlowTransformer: T5's text, which ends with a token of its own."""
        return pipeline.tokenizer_2, prompt, -1

    def told_by_clip(self, encoders: Sequence[nn.Module], tokens: Sequence[Tensor], embeds: Tensor) -> Conditions:
        """See FlowTransformer."""
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": encoders[0](tokens[0]).pooler_output}

    # -- packing

    def pack(self, latents: Tensor) -> Tensor:
        """See FlowTransformer."""
        return tokens_of(latents, self.patch)

    def unpack(self, drawn: Tensor, pipeline: Any, size: tuple[int, int]) -> Tensor:
        """See FlowTransformer."""
        factor = self.factor(pipeline)
        return latents_of(drawn, self.patch, (size[1] // factor, size[0] // factor))


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """(0, row, column) of each token, [height * width, 3]."""
    ranges = [torch.arange(n, device=device, dtype=torch.float32) for n in (1, height, width)]
    return torch.cartesian_prod(*ranges)
