"""Prompts as CLIP takes them, wherever a family trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def clip_tokens(pipeline: Any, encoder: str, prompts: Sequence[str]) -> Tensor:
    """What the pipeline tells its text encoder of that name, as whole numbers [N, 1, tokens]; or [N, 2, tokens] with
    the mask of attention where the encoder's settings ask for it, as pipelines do for the first one."""
    tokenizer = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"))
    words = list(prompts)
    if hasattr(pipeline, "maybe_convert_prompt"):
        words = pipeline.maybe_convert_prompt(words, tokenizer)  # a textual inversion's word stands for several
    tokens = tokenizer(
        words,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    masked = encoder == "text_encoder" and getattr(pipeline.text_encoder.config, "use_attention_mask", False)
    return torch.stack([tokens.input_ids, tokens.attention_mask] if masked else [tokens.input_ids], 1)
