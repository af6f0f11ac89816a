"""Tokenizers that need no files: bytes, the words of the pipelines' templates, and special tokens."""

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, PreTrainedTokenizerFast, Qwen2TokenizerFast, T5TokenizerFast

# Qwen-Image and Krea 2 put a template before every prompt and drop its 34 tokens afterwards, and Krea 2 counts 5 tokens
# behind the prompt. So these words have to be one token each, with a space before them (Ġ) or without.
TEMPLATE = [
    "system",
    "Describe",
    "user",
    "assistant",
    "Ġthe",
    "Ġimage",
    "Ġby",
    "Ġdetailing",
    "Ġcolor",
    "Ġshape",
    "Ġsize",
]
TEMPLATE += ["Ġtexture", "Ġquantity", "Ġtext", "Ġspatial", "Ġrelationships", "Ġof", "Ġobjects", "Ġand", "Ġbackground"]

QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
QWEN_SPECIAL += ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

QWEN_CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

MISTRAL_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>")
MISTRAL_SPECIAL += ("[IMG]", "[IMG_BREAK]", "[IMG_END]")

MISTRAL_CHAT = """<s>{% for message in messages %}\
{% set word = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}[{{ word }}]\
{% for block in message.content %}{{ block.text }}{% endfor %}[/{{ word }}]{% endfor %}"""


def byte_vocabulary(special):
    """Ids of the 256 bytes and of the special tokens, in this order."""
    return {token: number for number, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}


def with_words(vocabulary):
    """The vocabulary with the words of the template, and the merges that build each from its letters."""
    merges, vocabulary = [], dict(vocabulary)
    for word in TEMPLATE:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    return vocabulary, merges


def qwen_tokenizer():
    vocabulary, merges = with_words(byte_vocabulary(QWEN_SPECIAL))
    tokenizer = Qwen2TokenizerFast(vocab=vocabulary, merges=merges, eos_token="<|im_end|>", model_max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_SPECIAL)})
    tokenizer.chat_template = QWEN_CHAT
    return tokenizer


def clip_tokenizer():
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer():
    """Letters of ASCII instead of bytes: T5's model is a list of pieces with scores."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def mistral_tokenizer():
    backend = Tokenizer(BPE(vocab=byte_vocabulary(MISTRAL_SPECIAL), merges=[]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in MISTRAL_SPECIAL])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=4096, **names)
