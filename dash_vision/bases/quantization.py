"""Bases in few bits: which library keeps a network's linear layers so, and how diffusers and transformers are told.

Each word has one library, which both loaders use themselves:

- nf4 is bitsandbytes', whose four-bit weights computed on CPUs too when it was tried (0.50). diffusers alone asks for a
  GPU; see `usable`.
- int8 and fp8 are torchao's weight-only ones. They quantize on any device without a check for a GPU, they are saved as
  safetensors, and the frozen product is differentiable. bitsandbytes' int8 rounds the activations too. quanto has both
  words, but diffusers will drop it.

Checkpoints that are quantized already load whatever their library is, as far as the loaders know it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.errors import InputError
from . import reasons

if TYPE_CHECKING:
    import torch
    from torch import nn

QUANTIZATIONS = ("none", "nf4", "int8", "fp8")
INSTALL = "pip install 'dash-vision[quantization]'"
_BACKENDS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
BLOCK = 64  # weights that share a scale in nf4
_TORCHAO = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}


def check_installed(word: str, flag: str) -> None:
    """Raises InputError where the library of a word of QUANTIZATIONS is not installed. flag: that gave the word."""
    package = _BACKENDS.get(word)
    if package is not None and importlib.util.find_spec(package) is None:
        raise InputError(f"{flag} {word} needs {package}, which is not installed: {INSTALL}")


def configuration(word: str, library: str, dtype: torch.dtype, network: nn.Module) -> Any:
    """What from_pretrained of "diffusers" or "transformers" takes as its quantization_config, of linear layers that
    compute in `dtype`. network: the one to read, which need not have weights. Raises InputError where the backend is
    missing or lacks that kind."""
    loader = importlib.import_module(library)
    check_installed(word, "quantize")
    try:
        if word == "nf4":
            _check_bitsandbytes()
            return loader.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=_left_out(network),
            )
        return loader.TorchAoConfig(_torchao(word))
    except InputError:
        raise
    except Exception as error:  # of a library that does not fit torch, or the loader
        raise InputError(f"{word} weights cannot be had of {_BACKENDS[word]} here ({reasons.quoted(error)})") from None


def _torchao(word: str) -> Any:
    """torchao's configuration. Raises InputError where the installed version lacks it."""
    kind = getattr(importlib.import_module("torchao.quantization"), _TORCHAO[word], None)
    if kind is None:
        raise InputError(
            f"torchao {metadata.version('torchao')} has no {word} weights ({_TORCHAO[word]}): {INSTALL} --upgrade, or "
            "give --quantize int8"
        )
    return kind()


def quantize_layer(layer: nn.Linear, word: str) -> None:
    """One layer as torchao keeps it, in place. word: int8 or fp8. Raises as `configuration`."""
    importlib.import_module("torchao.quantization").quantize_(layer, _torchao(word))


def _check_bitsandbytes() -> None:
    """Raises InputError where there is no GPU and the installed bitsandbytes needs one."""
    import torch

    if not torch.cuda.is_available() and not _bitsandbytes_on_cpu():
        raise InputError(
            f"bitsandbytes {metadata.version('bitsandbytes')} computes on GPUs alone, and there is none: {INSTALL} "
            "--upgrade, or give --quantize int8"
        )


def _left_out(network: nn.Module) -> list[str] | None:
    """Layers that are not brought into four bits: on a CPU bitsandbytes (0.50) reads the scales of those wrongly whose
    inputs are no multiple of a block."""
    import torch

    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    uneven = [name for name, layer in linear if layer.in_features % BLOCK]
    return uneven if uneven and not torch.cuda.is_available() else None


def method(folder: Path) -> str | None:
    """How the weights in a network's folder are quantized, by the name that its config.json gives; None where they are
    not."""
    content = reasons.read_json(folder / "config.json")
    given = content.get("quantization_config") if isinstance(content, dict) else None
    if not isinstance(given, dict):
        return None
    bits = next((f" {bits} bit" for bits in (4, 8) if given.get(f"load_in_{bits}bit")), "")
    return f"{given.get('quant_method', 'bitsandbytes')}{bits}"


@contextmanager
def usable(of_plain_file: bool = False) -> Iterator[None]:
    """While inside, diffusers quantizes where its libraries can and it refuses, or takes for granted what is not so.

    It asks for a GPU before it asks bitsandbytes, which computes on CPUs too. of_plain_file: a single file is read
    whose weights are not quantized yet, which diffusers takes for quantized ones. Everything else stays diffusers' own.
    """
    from diffusers.quantizers import auto

    known = auto.AUTO_QUANTIZER_MAPPING
    stock = {name: kind for name, kind in known.items() if name.startswith("bitsandbytes") or name == "torchao"}
    on_cpu = _bitsandbytes_on_cpu()
    known.update({name: _usable(kind, on_cpu and name != "torchao", of_plain_file) for name, kind in stock.items()})
    try:
        yield
    finally:
        known.update(stock)


def settle(network: nn.Module) -> nn.Module:
    """A network that was read, its quantized layers such that it can be trained: see core.quantized.keep_trainable, and
    under autocast they give its dtype, as plain layers do."""
    from ..core.quantized import is_quantized, keep_trainable

    keep_trainable(network)
    for module in network.modules():
        if is_quantized(module):
            module.register_forward_pre_hook(_follow_autocast)
    return network


def _follow_autocast(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The libraries' layers answer in the dtype of their input, whatever autocast says."""
    import torch

    kind = inputs[0].device.type
    if not torch.is_autocast_enabled(kind):
        return inputs
    return inputs[0].to(torch.get_autocast_dtype(kind)), *inputs[1:]


def _bitsandbytes_on_cpu() -> bool:
    """Whether bitsandbytes has to do without a GPU here, and can."""
    import torch

    if torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        return False
    return "cpu" in getattr(importlib.import_module("bitsandbytes"), "supported_torch_devices", ())


def _usable(kind: Any, on_cpu: bool, plain: bool) -> Any:
    """A quantizer of diffusers that puts the weights on the CPU without asking for a GPU, and one of weights that are
    not quantized yet."""

    class Usable(kind):
        def __init__(self, config: Any, **options: Any) -> None:
            super().__init__(config, **(options | ({"pre_quantized": False} if plain else {})))

        def validate_environment(self, *arguments: Any, **options: Any) -> None:
            if not on_cpu:
                super().validate_environment(*arguments, **options)

        def update_device_map(self, device_map: Any) -> Any:
            return {"": "cpu"} if on_cpu else super().update_device_map(device_map)

    return Usable
