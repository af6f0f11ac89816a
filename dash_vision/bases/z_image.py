"""Z-Image: a single stream of picture and text, prompts by Qwen3 in as many tokens as they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..files.readers import Z_IMAGE, About
from .family import Conditions, Defaults
from .flow_transformer import USUAL, FlowTransformer, presets

# The refiners before them have layers of the same names.
_ATTENTION = r"layers\.\d+\.attention\.(?:to_[qkv]|to_out\.0)"
_MLP = r"layers\.\d+\.feed_forward\.w[123]"


class ZImage(FlowTransformer):
    """Conditions: "prompt_embeds", a list of [tokens, width]."""

    name = "Z-Image"
    pipeline_class = "ZImagePipeline"
    defaults = replace(USUAL, guidance_scale=5.0)
    targets = presets(_ATTENTION, _MLP)
    units = ("ZImageTransformerBlock",)
    other_programs = "ComfyUI reads it too."
    about_base: About = Z_IMAGE

    def note(self, pipeline: Any) -> str | None:
        """See Family."""
        if not _is_turbo(pipeline):
            return None
        return (
            "Z-Image-Turbo is distilled to a few steps, and training undoes that; train Tongyi-MAI/Z-Image, and draw "
            "with this one by --sample_with"
        )

    def suited(self, pipeline: Any) -> Defaults:
        """Turbo draws in 9 calls, without guidance."""
        return (
            replace(self.defaults, guidance_scale=0.0, num_inference_steps=9) if _is_turbo(pipeline) else self.defaults
        )

    def largest(self, pipeline: Any) -> int:
        """See Family: rows and columns have a table of positions each."""
        return min(int(length) for length in pipeline.transformer.config.axes_lens[1:]) * self.grid(pipeline)

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family: this transformer counts its time from the noise to the picture, and says the way back."""
        pictures = list(noisy[:, :, None].unbind())
        said = network(pictures, 1 - times, conditions["prompt_embeds"], return_dict=False)[0]
        return -torch.stack([one[:, 0] for one in said])

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device, length: int) -> Conditions:
        """See FlowTransformer."""
        # The pipeline writes into the list that it is given.
        found = pipeline.encode_prompt([*prompts], device, False, max_sequence_length=length)[0]
        return {"prompt_embeds": list(found)}

    def prompt_text(self, pipeline: Any, prompt: str) -> tuple[Any, str, int]:
        """See FlowTransformer."""
        said = [{"role": "user", "content": prompt}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return pipeline.tokenizer, pipeline.tokenizer.apply_chat_template(said, **options), 0

    def pack(self, latents: Tensor) -> Tensor:
        """The pipeline keeps latents in float32."""
        return latents.float()


def _is_turbo(pipeline: Any) -> bool:
    """By its name: nothing in the configuration tells it from the base for sure."""
    return "turbo" in str(pipeline.config.get("_name_or_path", "")).lower()
