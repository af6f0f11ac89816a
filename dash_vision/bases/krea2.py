"""Krea 2: a single stream of picture and text, which is told several layers of Qwen3-VL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..files.readers import KREA2, About
from .family import Conditions, Defaults
from .flow_transformer import USUAL, latents_of, presets
from .qwen_vae import WithQwenVae

# The blocks that fuse the text's layers have layers of the same names.
_ATTENTION = r"transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_gate|to_out\.0)"
_MLP = r"transformer_blocks\.\d+\.ff\.(?:gate|up|down)"


class Krea2(WithQwenVae):
    """Conditions: "prompt_embeds" [N, tokens, layers, width], "prompt_embeds_mask" [N, tokens] of real tokens."""

    name = "Krea 2"
    pipeline_class = "Krea2Pipeline"
    defaults = replace(USUAL, learning_rate=3e-4, rank=32, guidance_scale=4.5, num_inference_steps=28)
    targets = presets(_ATTENTION, _MLP)
    units = ("Krea2TransformerBlock",)
    longest = 1024
    about_base: About = KREA2

    def note(self, pipeline: Any) -> str | None:
        """See Family."""
        if not pipeline.config.is_distilled:
            return None
        return (
            "this Krea 2 is distilled to a few steps, and training undoes that; train Krea 2 Raw, and draw with this "
            "one by --sample_with"
        )

    def suited(self, pipeline: Any) -> Defaults:
        """A distilled one draws in 8 steps, without guidance."""
        if not pipeline.config.is_distilled:
            return self.defaults
        return replace(self.defaults, guidance_scale=0.0, num_inference_steps=8)

    def mu(self, pipeline: Any, tokens: int) -> float:
        """See FlowTransformer: the pipeline shifts a distilled base by one number, whatever the size."""
        return 1.15 if pipeline.config.is_distilled else super().mu(pipeline, tokens)

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family."""
        embeds, (height, width) = conditions["prompt_embeds"], noisy.shape[2:]
        said = network(
            hidden_states=self.pack(noisy),
            encoder_hidden_states=embeds,
            timestep=times,
            position_ids=_positions(embeds.shape[1], height // self.patch, width // self.patch, noisy.device),
            encoder_attention_mask=conditions["prompt_embeds_mask"],
            return_dict=False,
        )[0]
        return latents_of(said, self.patch, (height, width))

    # -- prompts

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device, length: int) -> Conditions:
        """See FlowTransformer."""
        embeds, mask = pipeline.encode_prompt(prompts, device, max_sequence_length=length)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": mask}

    def prompt_text(self, pipeline: Any, prompt: str) -> tuple[Any, str, int]:
        """See FlowTransformer."""
        extra = pipeline.prompt_template_encode_start_idx - pipeline.prompt_template_encode_num_suffix_tokens
        return pipeline.tokenizer, pipeline.prompt_template_encode_prefix + prompt, extra


def _positions(tokens: int, height: int, width: int, device: torch.device) -> Tensor:
    """(0, row, column) of each token, text before the picture, [tokens + height * width, 3]."""
    ranges = [torch.arange(n, device=device, dtype=torch.float32) for n in (1, height, width)]
    return torch.cat([torch.zeros(tokens, 3, device=device), torch.cartesian_prod(*ranges)])
