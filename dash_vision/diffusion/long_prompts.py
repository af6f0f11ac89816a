"""Captions beyond the length of CLIP, read in chunks as kohya's trainer reads them (--max_token_length).

A chunk is a whole input of the text encoder, [begin] 75 tokens [end]. Of the chunks' states the denoiser gets the first
begin, every chunk's 75, and the last end: 77 states become 227 for three chunks. A pooled state is the first chunk's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..bases.devices import placed
from ..bases.family import AS_THE_PIPELINE, Conditions, Family, PromptOptions
from ..files.errors import InputError

_STATES = "prompt_embeds"  # what the denoiser attends to; the other conditions of a prompt are pooled


def count_chunks(family: Family, pipeline: Any, tokens: int | None) -> int:
    """Chunks that hold so many tokens; 1 for None. Raises InputError for a base that is not read in chunks."""
    if tokens is None:
        return 1
    if not takes_chunks(family, pipeline):
        raise InputError(
            f"--max_token_length is for bases whose text encoders are all CLIP, which those of {family.name} are not; "
            "leave it out"
        )
    return math.ceil(tokens / min(tokenizer.model_max_length - 2 for tokenizer in _tokenizers(family, pipeline)))


def takes_chunks(family: Family, pipeline: Any) -> bool:
    """Whether captions of the base can be read in chunks: its text encoders are all CLIP."""
    from transformers import CLIPTokenizer

    tokenizers = _tokenizers(family, pipeline)
    return bool(tokenizers) and all(isinstance(tokenizer, CLIPTokenizer) for tokenizer in tokenizers)


def tokenize_chunks(family: Family, pipeline: Any, prompt: str, chunks: int) -> list[Tensor]:
    """What `Family.tokenize` gives for each text encoder, with the chunks of one prompt in place of prompts:
    [chunks, 1, tokens], or [chunks, 2, tokens] with the mask of attention."""
    rows = [_chunk(t, pipeline.maybe_convert_prompt(prompt, t), chunks) for t in _tokenizers(family, pipeline)]
    kinds = [ids.shape[1] for ids in family.tokenize(pipeline, [prompt])]
    return [row[:, :kind] for row, kind in zip(rows, kinds, strict=True)]


def left_out(family: Family, pipeline: Any, prompt: str, chunks: int) -> str:
    """The end of a prompt that is beyond its chunks, as text; "" when all of it is read."""
    tokenizer = _tokenizers(family, pipeline)[0]
    prompt = pipeline.maybe_convert_prompt(prompt, tokenizer)
    return str(tokenizer.decode(_ids(tokenizer, prompt)[chunks * (tokenizer.model_max_length - 2) :])).strip()


@torch.no_grad()
def encode_chunks(
    family: Family,
    pipeline: Any,
    prompts: Sequence[str],
    chunks: int,
    device: torch.device,
    options: PromptOptions = AS_THE_PIPELINE,
) -> dict[str, Conditions]:
    """Prompt -> its conditions (a batch of 1, float32, on the CPU). Encoders are on `device` only for it."""
    encoders = [getattr(pipeline, name) for name in family.text_encoders]
    result = {}
    with placed(encoders, device):
        for prompt in dict.fromkeys(prompts):
            ids = [i.to(device) for i in tokenize_chunks(family, pipeline, prompt, chunks)]
            conditions = join_chunks(family.encode_tokens(encoders, ids, options), chunks)
            result[prompt] = {key: value.float().cpu() for key, value in conditions.items()}
    return result


def join_chunks(conditions: Conditions, chunks: int) -> Conditions:
    """Conditions of N prompts from those of their chunks, [N * chunks, ...]; the chunks of a prompt follow each
    other."""
    if chunks == 1:
        return conditions
    joined = {key: value[::chunks] for key, value in conditions.items()}
    states = conditions[_STATES].unflatten(0, (-1, chunks))  # [N, chunks, tokens, width]
    middle = states[:, :, 1:-1].flatten(1, 2)
    joined[_STATES] = torch.cat([states[:, 0, :1], middle, states[:, -1, -1:]], dim=1)
    return joined


def _tokenizers(family: Family, pipeline: Any) -> list[Any]:
    names = (name.replace("text_encoder", "tokenizer") for name in family.text_encoders)
    return [getattr(pipeline, name, None) for name in names]


def _ids(tokenizer: Any, prompt: str) -> list[int]:
    return list(tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def _chunk(tokenizer: Any, prompt: str, chunks: int) -> Tensor:
    """Token ids and their mask, [chunks, 2, tokens]."""
    ids, length = _ids(tokenizer, prompt), tokenizer.model_max_length
    rows = []
    for start in range(0, chunks * (length - 2), length - 2):
        row = [tokenizer.bos_token_id, *ids[start : start + length - 2], tokenizer.eos_token_id]
        padding = length - len(row)
        rows.append([[*row, *[tokenizer.pad_token_id] * padding], [*[1] * len(row), *[0] * padding]])
    return torch.tensor(rows)
