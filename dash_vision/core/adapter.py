"""Adapter and inject(): put a LoRA-Dash adapter into any model's layers, launch it, merge it, take it out."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike

import torch
from torch import Tensor, nn

from ..files.native import KEYS, AdapterState, write_native
from .config import DashConfig
from .decompositions import Decompositions
from .launch import LaunchReport, choose_directions, deal, mean_relative_index, rank_and_world, source_of
from .layer import DashLinear, wrap
from .quantized import keep_trainable
from .sharding import is_sharded, whole, write
from .targets import base_of, find_targets, shared_parameters
from .weights import ENABLED, DashWeights, device_of, kind_of, matrix_shape


class Adapter:
    """One named LoRA-Dash adapter inside a model. Made by `inject` and `load_adapter`.

    layers: module name -> DashLinear, in the model's order. A model may hold several adapters; the active one
    trains, enabled ones add to the output.
    """

    def __init__(self, model: nn.Module, name: str, config: DashConfig, layers: dict[str, DashLinear]) -> None:
        self.model, self.name, self.config, self.layers = model, name, config, layers
        self.decompositions = Decompositions()

    @property
    def launched(self) -> bool:
        """Whether the directions are chosen. The tensors say it, so that it survives whatever moves the tensors."""
        return any(w.launched for _, w in self.weights())

    def _look(self) -> None:
        """Read the phase of every layer anew, whatever was noticed of writing."""
        for _, w in self.weights():
            w.look()

    # -- parameters

    def weights(self) -> Iterator[tuple[str, DashWeights]]:
        """(module name, this adapter's DashWeights) of every layer."""
        return ((module, layer.weights(self.name)) for module, layer in self.layers.items())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """("module.A" | "module.B" | "module.dsigma", parameter); sizes of zero are left out."""
        for module, w in self.weights():
            for key, parameter in w.named_parameters():
                if parameter.numel():
                    yield f"{module}.{key}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters: A and B of every layer, and dsigma."""
        return (parameter for _, parameter in self.named_parameters())

    @property
    def sharded(self) -> bool:
        """Whether FSDP (torch's fully_shard) has split the model over the processes."""
        return any(is_sharded(parameter) for parameter in self.parameters())

    def state_dict(self, keys: Collection[str] = KEYS) -> dict[str, Tensor]:
        """The tensors of the adapter by "module.key", those of `keys` (default: all of A, B, dsigma, U, V, indices);
        not copied.

        In a model that FSDP has split they are gathered, so that every rank has to call this, and `launch`,
        `load_state_dict`, `save` and `export_lora`, which build on it.
        """
        return {name: whole(t) for name, t in self._tensors().items() if name.rpartition(".")[2] in keys}

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of `state_dict()` as they are kept, split or whole."""
        return {
            f"{m}.{key}": state[key].detach() for m, w in self.weights() for state in [w.state_dict()] for key in KEYS
        }

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError when a tensor of `state` is missing, unknown or of another shape."""
        own = self._tensors()
        wrong = sorted(own.keys() ^ state.keys())
        if wrong:
            raise ValueError(f"the adapter state does not fit: {len(wrong)} tensors differ, the first is {wrong[0]}")
        for key, tensor in state.items():
            if own[key].shape != tensor.shape:
                raise ValueError(f"{key} has shape {tuple(tensor.shape)}, expected {tuple(own[key].shape)}")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Write `state` (of `state_dict()`) into the adapter in place; raises as `check_state`, changing nothing."""
        self.check_state(state)
        own = self._tensors()
        for key, tensor in state.items():
            write(own[key], tensor)
        if self.launched:
            self._end_preparation()

    # -- the launch

    def prepare(self, cache: str | PathLike[str] | None = None) -> None:
        """Begin the launch's work ahead of time: decompose the frozen weights in a background thread.

        `launch` then only projects and chooses; what the thread has not come to, it does itself, with the same
        result. Call it once the model is where it will train; both trainers do. cache, memory: see
        decompositions.Decompositions. Under torch.distributed every rank prepares its share. Does nothing when there
        will be no launch, nor in a model that FSDP has split: whole weights ahead of time are what it is split to
        avoid.
        """
        if self.launched or self.config.dash_k == 0 or self.sharded:
            return
        self._end_preparation()
        self.decompositions = Decompositions(cache)
        rank, world = rank_and_world()
        owner = deal(self.layers, world)
        own = [(m, layer) for m, layer in self.layers.items() if owner[m] == rank]
        if own:
            device = own[0][1].weights(self.name).A.device
            self.decompositions.start({m: source_of(layer) or layer.frozen_matrix() for m, layer in own}, device)

    def _end_preparation(self) -> None:
        """Stop the thread, and let go of the memory."""
        self.decompositions.stop()
        self.decompositions = Decompositions()

    def launch(self, seed: int = 0) -> LaunchReport:
        """Choose every layer's task-specific directions and start the dash. seed: of the control selection="random".

        Under torch.distributed the layers are dealt out over the ranks and the results broadcast, so that every
        rank ends with the same buffers; all ranks have to call it. In a model that FSDP has split every weight is
        gathered once, and a rank holds two whole ones at most: its own and the one on its way to another. Raises
        RuntimeError when the adapter was launched before or has dash_k = 0, ValueError (on every rank) naming the
        layer when a weight or an update is not finite; then nothing has changed.
        """
        if self.config.dash_k == 0:
            raise RuntimeError("this adapter has dash_k=0 (plain LoRA): there is nothing to launch")
        self._look()
        if self.launched:
            raise RuntimeError("this adapter was launched already; its directions are fixed")
        start = time.perf_counter()
        self.decompositions.stop()
        c = self.config
        results = choose_directions(self.layers, self.name, c.eps, c.selection, seed, self.decompositions)
        for module, (indices, U, V) in results.items():
            self.layers[module].set_directions(self.name, indices, U, V)
        in_full = self.decompositions.in_full
        self._end_preparation()
        return LaunchReport(len(results), time.perf_counter() - start, self.mean_relative_index(), in_full)

    def mean_relative_index(self) -> float:
        """Mean of index / (p - 1) over all chosen directions, p = min(out, in) of the layer; NaN before the launch."""
        return mean_relative_index(w for _, w in self.weights()) if self.launched else float("nan")

    # -- on and off

    def activate(self) -> None:
        """Train this adapter and compute with it alone: its parameters require grad, the others are disabled."""
        for other in _registry(self.model).values():
            mine = other is self
            for _, w in other.weights():
                for (
                    parameter
                ) in w.parameters():  # an empty one (k = 0) would never get a gradient: DDP would wait for it
                    parameter.requires_grad_(mine and parameter.numel() > 0)
            if mine:
                other.enable()
            else:
                other.disable()

    def enable(self) -> None:
        """Add this adapter to the layers' outputs."""
        for _, w in self.weights():
            w.switch(ENABLED, True)

    def disable(self) -> None:
        """Leave this adapter out of the layers' outputs; a merged adapter has to be unmerged for that."""
        for _, w in self.weights():
            w.switch(ENABLED, False)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """While inside, the layers compute as if this adapter were disabled.

        Nothing is written to its tensors, so that it costs nothing in every step of a training: no device is waited
        for, and torch.compile has one graph with it and one without. Raises RuntimeError for a merged adapter.
        """
        if any(w.phase.merged for _, w in self.weights()):
            raise RuntimeError("cannot leave out an adapter that is merged into the weights; unmerge it first")
        for _, w in self.weights():
            w.left_out = True
        try:
            yield
        finally:
            for _, w in self.weights():
                w.left_out = False

    # -- into the weights and out again

    def merge(self) -> None:
        """Add the update to the frozen weights: the model then computes at its original cost.

        A copy of every weight touched is kept until `unmerge`, which restores it bit for bit. Raises RuntimeError
        when a weight is shared with another module, which the merge would change too, when it is quantized, and when
        FSDP has split the model.
        """
        if self.sharded:
            raise RuntimeError(
                "cannot merge: FSDP has split the model over the processes, and merging takes whole weights; save the "
                "adapter, and load and merge it in a model that is whole"
            )
        shared = _shared_weights(self.model, self.layers)
        if shared:
            raise RuntimeError(
                f"cannot merge: the weight of {shared[0]} is shared with another module of the model; "
                "export the adapter instead"
            )
        for layer in self.layers.values():
            layer.check_mergeable()
        for layer in self.layers.values():
            layer.merge(self.name)

    def unmerge(self) -> None:
        """Take the update out of the weights again, bit for bit. Raises RuntimeError, changing nothing, where the
        weights came merged from a state dict."""
        for layer in self.layers.values():
            if self.name in layer.merged:
                layer.check_unmergeable()
        for layer in self.layers.values():
            layer.unmerge(self.name)

    def remove(self) -> None:
        """Take the adapter out of the model. With the last one gone the model is what it was before the first
        `inject`: the same module objects, the same state dict bit for bit, the same requires_grad flags."""
        self.unmerge()
        self._end_preparation()
        for module, layer in self.layers.items():
            del layer.adapters[self.name]
            if not layer.adapters:
                _set_module(self.model, module, layer.base)
        registry = _registry(self.model)
        del registry[self.name]
        self.layers = {}
        if not registry:
            flags = self.model.__dict__.pop("_dash_requires_grad")
            for parameter, flag in zip(self.model.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)
            del self.model.__dict__["dash_adapters"]

    def state(self) -> AdapterState:
        """A snapshot on the CPU, apart from the model; every rank has to call it where FSDP has split the model. Raises
        RuntimeError for tensors that contradict each other, see DashWeights.phase."""
        self._look()
        tensors = {key: t.to("cpu", copy=True).contiguous() for key, t in self.state_dict().items()}
        kinds = {name: kind_of(layer.base) for name, layer in self.layers.items()}
        probes = {name: layer.probes() for name, layer in self.layers.items()}
        bypassed = [name for name, layer in self.layers.items() if layer.bypassed]
        return AdapterState(self.config.to_dict(), tensors, kinds, probes, bypassed=bypassed)

    def save(self, path: str | PathLike[str], compact: bool = False) -> None:
        """Write the adapter to a native .safetensors file; compact: without U and V. See loading.save_adapters."""
        state = self.state()
        write_native({"model": state.compacted() if compact else state}, path)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        phase = "dash" if self.launched else "pre-launch" if self.config.dash_k else "LoRA"
        c = self.config
        size = f"{len(self.layers)} layers, rank {c.rank}, k {c.dash_k}, {count:,} parameters"
        return f"Adapter({self.name!r}, {size}, {phase})"


def inject(model: nn.Module, config: DashConfig | None = None, name: str = "default") -> Adapter:
    """Freeze `model` and put a LoRA-Dash adapter into the layers that `config.target` names.

    Every matched layer is replaced in place by a DashLinear around it; until training changes it, the model
    computes what it computed before. The new adapter is the active one (see Adapter.activate). Inject before
    wrapping the model in DDP, before fully_shard and before torch.compile. A layer with fewer than dash_k directions
    gets as many as it has, with one warning for the model.

    Raises ValueError when a target matches nothing (listing near names), when a matched layer cannot be adapted
    (naming it), and when the name is taken or is no plain name.
    """
    config = config or DashConfig()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"an adapter name has letters, digits, _ and - only, got {name!r}")
    if name in _registry(model):
        raise ValueError(f"the model has an adapter called {name!r} already; remove it or choose another name")
    found = find_targets(model, config.target)
    ranks = {m: min(matrix_shape(base_of(layer))) for m, layer in found.items()}
    clipped = [m for m, p in ranks.items() if p < config.dash_k]
    if clipped:
        warnings.warn(
            f"dash_k={config.dash_k} is more than {len(clipped)} of {len(found)} layers have directions "
            f"(the first is {clipped[0]} with {ranks[clipped[0]]}); these use all they have",
            stacklevel=2,
        )
    if not _registry(model):
        model.__dict__["_dash_requires_grad"] = [p.requires_grad for p in model.parameters()]
        model.__dict__["dash_adapters"] = {}
        model.requires_grad_(False)
        keep_trainable(model)
    layers: dict[str, DashLinear] = {}
    for module, layer in found.items():
        wrapped = layer if isinstance(layer, DashLinear) else wrap(layer)
        if wrapped is not layer:
            wrapped.train(layer.training)
            _set_module(model, module, wrapped)
        layers[module] = wrapped
        wrapped.adapters[name] = DashWeights(
            wrapped.out_features,
            wrapped.in_features,
            config.rank,
            config.scaling,
            min(config.dash_k, ranks[module]),
            config.dropout,
            device_of(wrapped.base),
        ).train(wrapped.training)
    adapter = Adapter(model, name, config, layers)
    _registry(model)[name] = adapter
    adapter.activate()
    return adapter


@torch.no_grad()
def fold_in(model: nn.Module) -> None:
    """Put all enabled adapters of a model into its weights for good: its layers are plain ones again, and it has no
    adapters. Raises RuntimeError where another module shares such a weight, and where it is quantized."""
    layers = {module: layer for adapter in _registry(model).values() for module, layer in adapter.layers.items()}
    shared = _shared_weights(model, layers)
    if shared:
        raise RuntimeError(f"cannot merge: the weight of {shared[0]} is shared with another module of the model")
    for layer in layers.values():
        layer.check_mergeable()
    for module, layer in layers.items():
        plain = layer.base
        assert isinstance(plain.weight, Tensor)
        plain.weight.copy_(layer.weight)
        _set_module(model, module, plain)
    for name in ("dash_adapters", "_dash_requires_grad"):
        model.__dict__.pop(name, None)


def _registry(model: nn.Module) -> dict[str, Adapter]:
    """The adapters in `model` by name. Kept on the model, so that a copy of the model has its own."""
    return model.__dict__.get("dash_adapters", {})


def _set_module(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _shared_weights(model: nn.Module, layers: dict[str, DashLinear]) -> list[str]:
    """Names of the layers whose weight another module of the model uses too."""
    shared = shared_parameters(model)
    return [name for name, layer in layers.items() if id(layer.base.weight) in shared]
