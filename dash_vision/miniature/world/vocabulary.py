"""The miniature's tokenizer: byte-level BPE over the world's words, in the files that `CLIPTokenizer` reads."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from .scenes import COLOURS, KINDS, MARKS, OUTFITS, PATTERNS, PROPERTIES, RARE_TOKENS, SETTINGS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"

# Everyday words of prompts, besides the world's own, so that they do not fall apart into letters.
EVERYDAY = """
a an the of in on at to and or with without from for by is are it its this that my your one two three some any no not
photo picture image painting drawing sketch style art render close up view side front back small big large tiny little
old new nice cute beautiful bright dark light good bad best high low quality detailed simple plain clean blurry
person man woman boy girl child people animal bird fish horse car house home tree flower grass field forest sea ocean
sky sun moon star cloud rain night day morning evening summer winter spring autumn street road city town room kitchen
table chair bed window door wall floor garden park river lake mountain hill sand stone rock wood metal glass paper
plastic gold silver grey gray shoe toy hat shirt scarf book cup plate ball box bag sitting standing lying running
sleeping playing wearing holding looking floating under over above below behind next near between around inside outside
"""


def world_words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [*SETTINGS, *OUTFITS, *PROPERTIES, *KINDS, *COLOURS, *PATTERNS, *MARKS, *RARE_TOKENS]
    phrases.append("a an and with a photo picture of")
    return sorted({word for phrase in phrases for word in phrase.lower().split()})


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pair encoding learned until every word is one token, in the order of learning.

    The most frequent pair is merged first and ties go by the alphabet, so the same words always give the same merges.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for parts in spelled for pair in pairwise(parts))
        if not counts:
            return merges
        first, second = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((first, second))
        for parts in spelled:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (first, second):
                    parts[i : i + 2] = [first + second]
                i += 1


def write_tokenizer(folder: Path, prompt_length: int) -> CLIPTokenizer:
    """Make the tokenizer and save it to a folder that `CLIPTokenizer.from_pretrained` loads.

    Every known word is one token; the 256 bytes are in the vocabulary, so any other text is spelled out and nothing is
    unknown.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    merges = learn_merges(" ".join([*world_words(), *EVERYDAY.split()]).replace("-", " ").split())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=prompt_length
    )
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
