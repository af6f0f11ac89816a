"""One network of a base in a folder: its shape from the configuration alone, its weights when they are wanted."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..files.errors import InputError
from . import reasons

# Of files whose weights are numbers of a few bits, with their scales beside them: no dtype alone gives them back.
_SCALES = ("scale_weight", "weight_scale", "scaled_fp8", ".absmax", "comfy_quant")
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
        return common_dtype(self._files())

    def _files(self) -> list[Path]:
        wanted = reasons.variant_for(self.folder, self.variant)
        return [file for file in self.folder.glob("*.safetensors") if reasons.variant_of(file.name) == wanted]

    def why(self, error: Exception) -> str:
        """Why it could not be read."""
        return reasons.of_network(self.folder, error, self.library, self.kind, self.variant)


@dataclass(frozen=True)
class SingleFileNetwork(NetworkFiles):
    """A network of diffusers whose weights are in one file, by the names of its original code or of diffusers. The
    folder holds its configuration."""

    file: Path

    def read(self, dtype: torch.dtype) -> tuple[nn.Module, Collection[str]]:
        """See NetworkFiles. Raises InputError for a file that holds more than this network, or rounded weights."""
        held = self._weights()
        network: nn.Module = self._class.from_single_file(
            str(self.file), config=str(self.folder.parent), subfolder=self.folder.name, torch_dtype=dtype
        )
        missing = [name for name, tensor in network.named_parameters() if tensor.is_meta]
        wanted = sum(tensor.numel() for tensor in network.state_dict().values())
        if not missing and held > 1.005 * wanted:  # a block more, say; converters leave some small tensors out
            raise InputError(
                f"cannot load the base {self.base}: it holds {held:,} weights of a {self.folder.name}, and the one "
                f"that --single_file_config describes has {wanted:,}; give the base that the file belongs to"
            )
        return network, missing

    def _weights(self) -> int:
        """How many there are. Raises InputError for weights that are not what they are multiplied by."""
        prefix = "model.diffusion_model."
        with safe_open(self.file, "pt") as opened:
            names = list(opened.keys())
            scales = [name for name in names if name.endswith(_SCALES)]
            if scales:
                raise InputError(
                    f"cannot load the base {self.base}: its weights are quantized ({scales[0]}), which cannot be "
                    "trained here; give the file in bfloat16 or float16"
                )
            own = [name for name in names if name.startswith(prefix)] or names
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in own)

    def _files(self) -> list[Path]:
        return [self.file]

    def why(self, error: Exception) -> str:
        """See NetworkFiles."""
        return reasons.of_single_network(error, self.folder.name, self.kind)


def common_dtype(files: Collection[Path]) -> torch.dtype:
    """The dtype of the floating-point tensors in safetensors files; float32 where they have several, or none here."""
    found = {dtype for file in files for dtype in _float_dtypes(file)}
    return _DTYPES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _float_dtypes(file: Path) -> set[str]:
    """The kinds of floating-point numbers in a safetensors file, by safetensors' names."""
    with safe_open(file, "pt") as opened:
        kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118, it is no dict
    return {kind for kind in kinds if "F" in kind}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the libraries, since reading local files takes a moment, and no reports: what is wrong is
    said in one sentence. Downloads keep their bars."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.enable_progress_bar()
            library.set_verbosity(level)
