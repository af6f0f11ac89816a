"""Qwen-Image: streams of picture and text, prompts by Qwen2.5-VL, the autoencoder of a video model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..files.readers import QWEN_IMAGE, About
from .family import Conditions, Target
from .flow_transformer import USUAL, latents_of, presets, without
from .qwen_vae import WithQwenVae

_ATTENTION = r"transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_MLP = r"transformer_blocks\.\d+\.(?:img|txt)_mlp\.net\.(?:0\.proj|2)"


class QwenImage(WithQwenVae):
    """Conditions: "prompt_embeds", a list of [tokens, width]."""

    name = "Qwen-Image"
    pipeline_class = "QwenImagePipeline"
    defaults = USUAL
    targets = presets(_ATTENTION, _MLP)
    units = ("QwenImageTransformerBlock",)
    longest = 1024
    other_programs = "ComfyUI reads it too."
    about_base: About = QWEN_IMAGE

    def target(self, pipeline: Any, name: str) -> Target:
        """See Family: what the last block makes of the text goes nowhere, and would never get a gradient."""
        last = int(pipeline.transformer.config.num_layers) - 1
        dead = rf"transformer_blocks\.{last}\.(?:attn\.(?:add_q_proj|to_add_out)|txt_mlp\..*)"
        return without(dead, self.targets[name]) if name in self.targets else name

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family."""
        embeds, mask = _padded(conditions["prompt_embeds"])
        height, width = noisy.shape[2:]
        said = network(
            hidden_states=self.pack(noisy),
            timestep=times,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // self.patch, width // self.patch)]] * len(noisy),
            return_dict=False,
        )[0]
        return latents_of(said, self.patch, (height, width))

    # -- prompts

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device, length: int) -> Conditions:
        """See FlowTransformer."""
        alone = [pipeline.encode_prompt(prompt, device, max_sequence_length=length)[0][0] for prompt in prompts]
        return {"prompt_embeds": alone}

    def prompt_text(self, pipeline: Any, prompt: str) -> tuple[Any, str, int]:
        """See FlowTransformer."""
        return (
            pipeline.tokenizer,
            pipeline.prompt_template_encode.format(prompt),
            pipeline.prompt_template_encode_start_idx,
        )

    def call_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See FlowTransformer."""
        found: dict[str, Any] = {}
        for name, embeds in inputs.items():
            found[name], found[f"{name}_mask"] = _padded(embeds)
        found["max_sequence_length"] = max(found[name].shape[1] for name in inputs)
        return found

    def guidance(self, scale: float) -> dict[str, Any]:
        """See FlowTransformer: true guidance, with a prompt for what is left out."""
        return {"true_cfg_scale": scale}

    def guided_call(self, scale: float) -> dict[str, Any]:
        """See Family."""
        return {"negative_prompt": "", **self.guidance(scale)}


def _padded(embeds: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """([N, tokens, width], mask [N, tokens] of what is no padding); no mask where there is none."""
    lengths = [len(one) for one in embeds]
    if len(set(lengths)) == 1:
        return torch.stack(embeds), None
    places = torch.arange(max(lengths), device=embeds[0].device)
    mask = places < torch.tensor(lengths, device=places.device)[:, None]
    return pad_sequence(embeds, batch_first=True), mask
