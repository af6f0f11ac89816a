"""One network of a base in a folder: its shape from the configuration alone, its weights when they are wanted."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from . import reasons

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class NetworkFiles:
    """The folder of a network, and the class that reads it. base: the name of the base that it belongs to.

    library: "diffusers" or "transformers". kind: the class's name there. variant: of its files, if one is wanted.
    """

    base: str
    folder: Path
    library: str
    kind: str
    variant: str | None

    @property
    def _class(self) -> Any:
        return getattr(importlib.import_module(self.library), self.kind)

    def empty(self) -> nn.Module:
        """The network on torch's meta device: everything but its weights, in no memory."""
        kind = self._class
        if self.library == "diffusers":
            with torch.device("meta"):
                network: nn.Module = kind.from_config(kind.load_config(str(self.folder)))
                return network
        config = kind.config_class.from_pretrained(str(self.folder))
        with torch.device("meta"):
            network = kind(config)
        return network

    def read(self, dtype: torch.dtype) -> tuple[nn.Module, Collection[str]]:
        """(the network with its weights in `dtype` on the CPU, names of tensors that the files lack)."""
        network, report = self._class.from_pretrained(
            str(self.folder),
            variant=reasons.variant_for(self.folder, self.variant),
            use_safetensors=True,
            output_loading_info=True,
            **{"torch_dtype" if self.library == "diffusers" else "dtype": dtype},
        )
        return network, report["missing_keys"]

    def stored_dtype(self) -> torch.dtype:
        """The dtype of the weights in the files; float32 where they have several, which loses nothing."""
        wanted = reasons.variant_for(self.folder, self.variant)
        files = [file for file in self.folder.glob("*.safetensors") if reasons.variant_of(file.name) == wanted]
        found = {dtype for file in files for dtype in _float_dtypes(file)}
        return _DTYPES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _float_dtypes(file: Path) -> set[str]:
    """The kinds of floating-point numbers in a safetensors file, by safetensors' names."""
    with safe_open(file, "pt") as opened:
        kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118, it is no dict
    return {kind for kind in kinds if "F" in kind}
