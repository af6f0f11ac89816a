"""The miniature's tokenizer: byte-level BPE over the world's words, in the files that `CLIPTokenizer` reads."""

from __future__ import annotations

import json
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


def write_tokenizer(folder: Path, prompt_length: int) -> CLIPTokenizer:
    """Train the tokenizer and save it to a folder that `CLIPTokenizer.from_pretrained` loads.

    The merges are learned until every known word is one token; the 256 bytes are in the vocabulary, so any other text
    is spelled out and nothing is unknown.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    words = sorted(set(world_words()) | set(EVERYDAY.split()) | {"-", "two-tone"})
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(
        vocab_size=20000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False, special_tokens=[]
    )
    learner.train_from_iterator(words, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
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
