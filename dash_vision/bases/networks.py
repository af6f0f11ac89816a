"""One network of a base in a folder: its shape from the configuration alone, its weights when they are wanted."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..files.errors import InputError
from . import identity, quantization, reasons, stored

# Of files whose weights are numbers of a few bits, with their scales beside them: no dtype alone gives them back.
_SCALES = ("scale_weight", "weight_scale", "scaled_fp8", ".absmax", "comfy_quant")


@dataclass(frozen=True)
class NetworkFiles:
    """The folder of a network, and the class that reads it. base: the name of the base that it belongs to.

    library: "diffusers" or "transformers". kind: the class's name there. variant: of its files, if one is wanted.
    quantize: a word of quantization.QUANTIZATIONS, for its linear layers.
    """

    base: str
    folder: Path
    library: str
    kind: str
    variant: str | None
    quantize: str = "none"

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
        """(the network with its weights in `dtype` on the CPU, names of tensors that the files lack). What is quantized
        computes in `dtype`, and is where its library puts it."""
        options: dict[str, Any] = {"torch_dtype" if self.library == "diffusers" else "dtype": dtype}
        if self.quantize != "none":
            options["quantization_config"] = quantization.configuration(
                self.quantize, self.library, dtype, self.empty()
            )
        with quantization.usable():
            network, report = self._class.from_pretrained(
                str(self.folder),
                variant=reasons.variant_for(self.folder, self.variant),
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        return quantization.settle(network), report["missing_keys"]

    @property
    def quantized(self) -> bool:
        """Whether the network that is read is a quantized one."""
        return self.quantize != "none" or self.quantized_as is not None

    @property
    def quantized_as(self) -> str | None:
        """How the files' weights are quantized; None where they are not."""
        return quantization.method(self.folder)

    @cached_property
    def tensors(self) -> Mapping[str, stored.StoredTensor]:
        """What the files hold."""
        wanted = reasons.variant_for(self.folder, self.variant)
        files = sorted(file for file in self.folder.glob("*.safetensors") if reasons.variant_of(file.name) == wanted)
        return stored.tensors_in(files)

    def stored_dtype(self) -> torch.dtype:
        """The dtype of the weights in the files; float32 where they have several, which loses nothing."""
        return common_dtype(self.tensors)

    def why(self, error: Exception) -> str:
        """Why it could not be read."""
        return reasons.of_network(self.folder, error, self.library, self.kind, self.variant)

    def digest(self, network: nn.Module) -> str:
        """identity.of_network of the network as the files have it. network: what was read of them."""
        if not self.quantized and all(p.dtype in (torch.float32, self.stored_dtype()) for p in network.parameters()):
            return identity.of_network(network)
        return identity.of_tensors(
            self._states(), identity.settings(network), all_of_them=self.quantized_as is not None
        )

    def _states(self) -> list[Callable[[], Tensor]]:
        """What reads each tensor of the network's state dict from the files, by whatever name they have it.

        Tensors that are tied are there once, and in a state dict under each of their names.
        """
        if self.quantized_as is not None:
            return [*self.tensors.values()]
        empty = self.empty()
        names = list(empty.state_dict())
        if self.tensors.keys() >= set(names):
            return [self.tensors[name] for name in names]
        tied: dict[int, list[str]] = {}
        for name, parameter in empty.named_parameters(remove_duplicate=False):
            tied.setdefault(id(parameter), []).append(name)
        again = [key for group in tied.values() for key in self._keys_of(group)[:1] * (len(group) - 1)]
        return [*self.tensors.values(), *(self.tensors[key] for key in again)]

    def _keys_of(self, names: Collection[str]) -> list[str]:
        """The files' names of what the network calls by these, tails being compared."""
        tails = {".".join(name.split(".")[-2:]) for name in names}
        return [key for key in self.tensors if ".".join(key.split(".")[-2:]) in tails]

    def precise(self, module: str, size: tuple[int, int]) -> stored.StoredTensor | None:
        """The unquantized weight of a layer in the files; None where they have none. size: (out, in) of its matrix."""
        return None if self.quantized_as is not None else stored.of_layer(self.tensors, module, size)


def common_dtype(tensors: Mapping[str, stored.StoredTensor]) -> torch.dtype:
    """The dtype of the floating-point tensors among these; float32 where they have several, or none."""
    found = {tensor.dtype for tensor in tensors.values() if tensor.dtype is not None}
    return found.pop() if len(found) == 1 else torch.float32


def no_loading_bars() -> None:
    """Keep diffusers and transformers from drawing a bar for each model that they load."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


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


# -- single files


@dataclass(frozen=True)
class SingleFileNetwork(NetworkFiles):
    """A network of diffusers whose weights are in one file, by the names of its original code or of diffusers. The
    folder holds its configuration."""

    file: Path = Path()

    def read(self, dtype: torch.dtype) -> tuple[nn.Module, Collection[str]]:
        """See NetworkFiles. Raises InputError for a file that holds more than this network, or rounded weights."""
        held = self._weights()
        place = {"config": str(self.folder.parent), "subfolder": self.folder.name}
        network: nn.Module
        if self.quantize == "none":
            network = self._class.from_single_file(str(self.file), torch_dtype=dtype, **place)
        else:
            network = read_single_file(self._class, self.file, self.quantize, dtype, **place)
        missing = [name for name, tensor in network.named_parameters() if tensor.is_meta]
        wanted = sum(tensor.numel() for tensor in self.empty().state_dict().values())
        if not missing and held > 1.005 * wanted:  # a block more, say; converters leave some small tensors out
            raise InputError(
                f"cannot load the base {self.base}: it holds {held:,} weights of a {self.folder.name}, and the one "
                f"that --single_file_config describes has {wanted:,}; give the base that the file belongs to"
            )
        return network, missing

    def _weights(self) -> int:
        """How many there are. Raises InputError for weights that are not what they are multiplied by."""
        prefix = "model.diffusion_model."
        scales = [name for name in self._held if name.endswith(_SCALES)]
        if scales:
            raise InputError(
                f"cannot load the base {self.base}: its weights are quantized ({scales[0]}), which cannot be trained "
                "here; give the file in bfloat16 or float16"
            )
        own = [tensor for name, tensor in self._held.items() if name.startswith(prefix)] or self._held.values()
        return sum(math.prod(tensor.shape) for tensor in own)

    @property
    def quantized_as(self) -> str | None:
        """None: see `read`."""
        return None

    @cached_property
    def tensors(self) -> Mapping[str, stored.StoredTensor]:
        """What the file holds, by the names of the network's state dict."""
        if self._held.keys() >= self.empty().state_dict().keys():
            return self._held
        return _tensors_of_file(self.file, self.kind, self._class.load_config(str(self.folder)))

    def stored_dtype(self) -> torch.dtype:
        """See NetworkFiles."""
        return common_dtype(self._held)

    @cached_property
    def _held(self) -> Mapping[str, stored.StoredTensor]:
        """What the file holds, by its own names."""
        return stored.tensors_in([self.file])

    def why(self, error: Exception) -> str:
        """See NetworkFiles."""
        return reasons.of_single_network(error, self.folder.name, self.kind)


@dataclass(frozen=True)
class SingleFile:
    """The denoiser in a single file. kind: its class in diffusers. config: its settings. quantize: as of NetworkFiles,
    or "gguf"."""

    path: Path
    kind: str
    config: Mapping[str, Any]
    quantize: str = "none"

    @cached_property
    def tensors(self) -> Mapping[str, stored.StoredTensor]:
        """What the file holds of it, by the names of the network's state dict."""
        return {} if self.quantize == "gguf" else _tensors_of_file(self.path, self.kind, self.config)

    def stored_dtype(self) -> torch.dtype:
        """As NetworkFiles.stored_dtype."""
        return common_dtype(self.tensors)

    def digest(self, network: nn.Module) -> str:
        """As NetworkFiles.digest: of a network in float32, or quantized."""
        if self.quantize == "none":
            return identity.of_network(network)
        if self.quantize == "gguf":
            return identity.of_file(self.path)
        return identity.of_tensors(self.tensors.values(), identity.settings(network))

    def precise(self, module: str, size: tuple[int, int]) -> stored.StoredTensor | None:
        """As NetworkFiles.precise."""
        return stored.of_layer(self.tensors, module, size)


def _tensors_of_file(path: Path, kind: str, config: Mapping[str, Any]) -> Mapping[str, stored.StoredTensor]:
    """The tensors of a single file by the names of the network's state dict. kind: its class in diffusers."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    convert = cast(Any, SINGLE_FILE_LOADABLE_CLASSES)[kind]["checkpoint_mapping_fn"]
    return stored.renamed(stored.tensors_in([path]), lambda empty: convert(checkpoint=empty, config=config))


def single_file_class(pipeline: Any, part: str) -> Any:
    """The class of a pipeline's network `part`."""
    import diffusers

    (kind,) = (kind for kind in pipeline._get_signature_types()[part] if isinstance(kind, type))
    return getattr(diffusers, kind.__name__)


def _empty_of_file(kind: Any, path: Path, place: Mapping[str, Any]) -> nn.Module:
    """The network of a single file without weights. place: of its configuration; else the one that diffusers takes."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    if not place:
        empty = {key: torch.empty(t.shape, device="meta") for key, t in stored.tensors_in([path]).items()}
        found = fetch_diffusers_config(empty)["pretrained_model_name_or_path"]
        place = {"config": found, "subfolder": "unet"}
    settings = kind.load_config(place["config"], subfolder=place["subfolder"])
    with torch.device("meta"):
        network: nn.Module = kind.from_config(settings)
    return network


def read_single_file(kind: Any, path: Path, word: str, dtype: torch.dtype, **place: Any) -> nn.Module:
    """A network from a single file, quantized by a word of QUANTIZATIONS, or as a GGUF file has it. place: of its
    configuration."""
    import diffusers

    if word == "gguf":
        config = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    else:
        config = quantization.configuration(word, "diffusers", dtype, _empty_of_file(kind, path, place))
    with quantization.usable(of_plain_file=word != "gguf"):
        network: nn.Module = kind.from_single_file(str(path), quantization_config=config, torch_dtype=dtype, **place)
    return quantization.settle(network)
