"""What a base is, in digests: equal digests are the same base, wherever it was loaded from.

A network's digest reads every byte of its weights. The names of tensors are left out of it, since libraries have
changed them between releases, and so are settings that equal the library's defaults, since new releases add more.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DIGITS = 16
# Of configurations: where a network came from, and what loading chose. Neither changes what it computes.
_PROVENANCE = {
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "model_type",
    "return_dict",
    "id2label",
    "quantization_config",
}
_PROBE = "a photo of sks dog, 2 cats (red:1.2) & ÄÖ"


def of_network(network: nn.Module) -> str:
    """Digest of a network's weights, all of them, and of its settings."""
    return of_tensors(network.state_dict().values(), settings(network))


def settings(network: nn.Module) -> str:
    """A network's settings that differ from the library's defaults, as text."""
    return json.dumps(_settings(network), sort_keys=True, default=str)


def of_tensors(tensors: Iterable[Tensor | Callable[[], Tensor]], more: str = "", all_of_them: bool = False) -> str:
    """Digest of the bytes of floating-point tensors, or of what reads them, whatever their order, and of a text.
    all_of_them: whole numbers count too.

    It takes about 0.7 s for a GB on one core, and less on several.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = [*pool.map(partial(_of_tensor, all_of_them=all_of_them), tensors)]
    kept = sorted(digest for digest in digests if digest is not None)
    return hashlib.sha256("\n".join([more, *kept]).encode()).hexdigest()[:DIGITS]


def _of_tensor(tensor: Tensor | Callable[[], Tensor], all_of_them: bool) -> str | None:
    """None of whole numbers that do not count."""
    tensor = tensor if isinstance(tensor, Tensor) else tensor()
    if not (tensor.is_floating_point() or all_of_them):
        return None
    values = tensor.detach().cpu().contiguous()
    if values.dtype in (torch.float16, torch.bfloat16):  # a network is the same one in a wider dtype
        values = values.float()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_file(path: Path) -> str:
    """Digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:DIGITS]


def of_tokenizer(tokenizer: Any) -> str:
    """Digest of a tokenizer's words, of how it reads a sentence, of its longest prompt, and of its chat's template."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, which reads pictures too
    parts = [
        sorted(inner.get_vocab().items()),
        inner(_PROBE, truncation=False, verbose=False)["input_ids"],
        inner.model_max_length,
        getattr(tokenizer, "chat_template", None),
    ]
    return of_tensors((), json.dumps(parts, default=str))


def of_values(thing: object) -> str:
    """Digest of an object's kind and of its attributes: tensors and plain values, no functions."""
    tensors = {name: value for name, value in vars(thing).items() if isinstance(value, Tensor)}
    plain = {name: repr(value) for name, value in vars(thing).items() if name not in tensors and not callable(value)}
    return of_tensors(tensors.values(), json.dumps([type(thing).__name__, plain], sort_keys=True))


def _settings(network: nn.Module) -> dict[str, Any]:
    """A network's settings that differ from the library's defaults."""
    config: Any = getattr(network, "config", None)
    if config is None:
        return {}
    if hasattr(config, "to_dict"):  # of transformers
        given, usual = config.to_dict(), type(config)().to_dict()
    else:
        parameters = inspect.signature(type(network).__init__).parameters
        usual = {name: parameter.default for name, parameter in parameters.items()}
        given = {key: value for key, value in dict(config).items() if key in usual}
    return {key: value for key, value in given.items() if not _told(key) and not _equal(value, usual.get(key))}


def _told(key: str) -> bool:
    return key.startswith("_") or key in _PROVENANCE


def _equal(first: Any, second: Any) -> bool:
    """As JSON keeps them: tuples are lists."""
    return json.dumps(first, default=str) == json.dumps(second, default=str)


def difference(was: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The first part in which two bases differ; None where they are the same."""
    return next((name for name in {**now, **was} if was.get(name) != now.get(name)), None)
