"""A tiny LLaMA, and sentences for it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "num_key_value_heads": 1, "vocab_size": 48, **settings}))


def sentences(count=32, length=8, seed=1):
    """[{"input_ids", "labels"}]; the next token follows from the last, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, 48, (count,), generator=generator)
    rows = [(start + 5 * torch.arange(length)) % 48 for start in starts]
    return [{"input_ids": row, "labels": row} for row in rows]
