"""Stable Diffusion 3 and 3.5: prompts by two CLIPs and by T5, which may be absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..files.readers import SD3, About
from .family import AS_THE_PIPELINE, Conditions, PromptOptions, Target
from .flow_transformer import USUAL, FlowTransformer, beyond, presets, without

_ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|transformer_blocks\.\d+\.attn2\.(?:to_[qkv]|to_out\.0)"  # of 3.5 medium
)
_MLP = r"transformer_blocks\.\d+\.(?:ff|ff_context)\.net\.(?:0\.proj|2)"


class StableDiffusion3(FlowTransformer):
    """Conditions: "prompt_embeds" [N, tokens, width], "pooled_prompt_embeds" [N, width]."""

    name = "Stable Diffusion 3"
    pipeline_class = "StableDiffusion3Pipeline"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    trained_encoders = ("text_encoder", "text_encoder_2")
    optional = ("text_encoder_3",)
    defaults = replace(USUAL, guidance_scale=7.0, num_inference_steps=28)
    targets = presets(_ATTENTION, _MLP)
    units = ("JointTransformerBlock", "CLIPEncoderLayer")
    usual_length = 256
    about_base: About = SD3

    def target(self, pipeline: Any, name: str) -> Target:
        """See Family: in the last block nothing asks for the text's queries, which would never get a gradient."""
        last = int(pipeline.transformer.config.num_layers) - 1
        dead = rf"transformer_blocks\.{last}\.attn\.add_q_proj"
        return without(dead, self.targets[name]) if name in self.targets else name

    def resolution(self, pipeline: Any) -> int:
        """See Family."""
        return int(pipeline.transformer.config.sample_size) * self.factor(pipeline)

    def largest(self, pipeline: Any) -> int | None:
        """See Family: positions are the middle of a square table."""
        side = pipeline.transformer.config.pos_embed_max_size
        return None if side is None else int(side) * self.grid(pipeline)

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family: this transformer counts time in thousandths."""
        return network(
            hidden_states=noisy,
            timestep=1000 * times,
            encoder_hidden_states=conditions["prompt_embeds"],
            pooled_projections=conditions["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    # -- prompts

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device, length: int) -> Conditions:
        """See FlowTransformer."""
        options = {"do_classifier_free_guidance": False, "max_sequence_length": length}
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, device, **options)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def unread_by_clip(self, pipeline: Any, embeds: Tensor) -> Tensor:
        """See FlowTransformer: T5's states follow CLIP's, and are zeros where there is no T5."""
        return embeds[:, int(pipeline.tokenizer.model_max_length) :]

    def told_by_clip(self, encoders: Sequence[nn.Module], tokens: Sequence[Tensor], embeds: Tensor) -> Conditions:
        """See FlowTransformer: both CLIPs' penultimate states side by side, as wide as T5's by zeros."""
        said = [encoder(t, output_hidden_states=True) for encoder, t in zip(encoders, tokens, strict=True)]
        states = torch.cat([one.hidden_states[-2] for one in said], dim=-1)
        states = nn.functional.pad(states, (0, embeds.shape[-1] - states.shape[-1]))
        pooled = torch.cat([one[0] for one in said], dim=-1)
        return {"prompt_embeds": torch.cat([states, embeds], dim=-2), "pooled_prompt_embeds": pooled}

    def left_out(self, pipeline: Any, prompt: str, options: PromptOptions = AS_THE_PIPELINE) -> str:
        """See Family: what neither CLIP nor T5 reads. Each ends its text with a token of its own, CLIP begins with one
        too."""
        lengths = {"tokenizer": int(pipeline.tokenizer.model_max_length) - 2, "tokenizer_3": self.length(options) - 1}
        if pipeline.text_encoder_3 is None:
            del lengths["tokenizer_3"]
        ends = [beyond(getattr(pipeline, name), prompt, prompt, length) for name, length in lengths.items()]
        return min(ends, key=len)
