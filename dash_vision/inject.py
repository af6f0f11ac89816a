"""DashConfig, target presets, and inject(): put a LoRA-Dash adapter into any model's layers."""

from __future__ import annotations

import difflib
import re
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from os import PathLike

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .decompositions import Decompositions
from .directions import SELECTIONS
from .layer import DashLinear, DashWeights, adaptable, refusal, weight_matrix, wrap
from .sharding import is_sharded, whole, write

# timm's ViTs have one projection for queries, keys and values; some of its EVA models three, and a gated MLP.
_VIT_QKV = ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj")
_VIT_MLP = ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")

# Each preset is a tuple of module-name suffixes; a model needs to have some of them, not all.
PRESETS: dict[str, tuple[str, ...]] = {
    "unet-attention": tuple(f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")),
    "unet-cross-attention": tuple(f"attn2.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0")),
    "clip-text": tuple(f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "vit-blocks": (*_VIT_QKV, "attn.proj", *_VIT_MLP),
    "vit-attention": (*_VIT_QKV, "attn.proj"),
    "vit-qkv": _VIT_QKV,
    "vit-mlp": _VIT_MLP,
}


KEYS = ("A", "B", "dsigma", "U", "V", "indices")  # of an adapter's tensors in a layer


@dataclass(frozen=True)
class DashConfig:
    """What to adapt and how. Raises ValueError on values that make no sense.

    rank: rank r of the LoRA update; 0 learns singular-value shifts only.
    alpha: the update is scaled by alpha / rank; None means alpha = rank. dsigma is not scaled by it.
    dash_k: task-specific directions per layer (paper: 8); 0 is plain LoRA.
    target: a preset name (see PRESETS), a list of module-name suffixes, or a regular expression that has to match
        the whole module name; one that matches no layer is taken for a suffix, as "to_q" is.
    dropout: probability of dropping an input feature of the update, one draw for both branches.
    eps: added to the singular value that a change rate is divided by.
    selection: "change_rate" is the method; the controls are "projection" (the same without the division by the
        singular value) and "random", "top" and "bottom", which ignore the update.
    """

    rank: int = 8
    alpha: float | None = None
    dash_k: int = 8
    target: str | Sequence[str] = "unet-attention"
    dropout: float = 0.0
    eps: float = 1e-6
    selection: str = "change_rate"

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("dash_k", self.dash_k)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} is a whole number of 0 or more, got {value!r}")
        if self.rank == 0 and self.dash_k == 0:
            raise ValueError("rank and dash_k are both 0: nothing would be trained; give at least one of them")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha is a positive number, got {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), got {self.dropout!r}")
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"eps is a number of 0 or more, got {self.eps!r}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection is one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        if not isinstance(self.target, str):
            object.__setattr__(self, "target", tuple(self.target))
        if not self.target:
            raise ValueError("target is empty; give a preset name, module-name suffixes or a regular expression")

    @property
    def scaling(self) -> float:
        """alpha / rank, the factor of B A."""
        return 1.0 if self.alpha is None or self.rank == 0 else self.alpha / self.rank

    def to_dict(self) -> dict:
        """JSON-ready; DashConfig(**d) is its inverse."""
        values = asdict(self)
        if not isinstance(self.target, str):
            values["target"] = list(self.target)
        return values


@dataclass(frozen=True)
class LaunchReport:
    """What a launch did: layers decomposed, seconds, and where in their spectra the chosen directions lie."""

    layers: int
    seconds: float
    mean_relative_index: float  # 0 = all choices at the largest singular values, 1 = at the smallest

    def __str__(self) -> str:
        return (
            f"dash launched: {self.layers} layers in {self.seconds:.1f} s; chosen directions lie at "
            f"{self.mean_relative_index:.2f} of the spectrum on average (0 = largest singular value, 1 = smallest)"
        )


class Adapter:
    """One named LoRA-Dash adapter inside a model. Made by `inject` and `load_adapter`.

    layers: module name -> DashLinear, in the model's order. A model may hold several adapters; the active one
    trains, enabled ones add to the output.
    """

    def __init__(self, model: nn.Module, name: str, config: DashConfig, layers: dict[str, DashLinear]) -> None:
        self.model, self.name, self.config, self.layers = model, name, config, layers
        self.launched = False
        self.decompositions = Decompositions()

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
        return {f"{m}.{key}": t.detach() for m, w in self.weights() for key, t in w.state_dict().items()}

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
    def load_state_dict(self, state: Mapping[str, Tensor], launched: bool) -> None:
        """Write `state` (of `state_dict()`) into the adapter in place; raises as `check_state`, changing nothing."""
        self.check_state(state)
        own = self._tensors()
        for key, tensor in state.items():
            write(own[key], tensor)
        self.launched = launched
        if launched:
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
        rank, world = _rank_and_world()
        owner = _deal(self.layers, world)
        own = {m: layer.frozen_matrix() for m, layer in self.layers.items() if owner[m] == rank}
        self.decompositions.start(own)

    def _end_preparation(self) -> None:
        """Stop the thread, and let go of the memory."""
        self.decompositions.stop()
        self.decompositions = Decompositions()

    def launch(self) -> LaunchReport:
        """Choose every layer's task-specific directions and start the dash.

        Under torch.distributed the layers are dealt out over the ranks and the results broadcast, so that every
        rank ends with the same buffers; all ranks have to call it. In a model that FSDP has split every weight is
        gathered once, and a rank holds two whole ones at most: its own and the one on its way to another. Raises
        RuntimeError when the adapter was launched before or has dash_k = 0, ValueError (on every rank) naming the
        layer when a weight or an update is not finite; then nothing has changed.
        """
        if self.config.dash_k == 0:
            raise RuntimeError("this adapter has dash_k=0 (plain LoRA): there is nothing to launch")
        if self.launched:
            raise RuntimeError("this adapter was launched already; its directions are fixed")
        start = time.perf_counter()
        self.decompositions.stop()
        results = _choose_directions(
            self.layers, self.name, self.config.eps, self.config.selection, self.decompositions
        )
        for module, (indices, U, V) in results.items():
            self.layers[module].set_directions(self.name, indices, U, V)
        self.launched = True
        self._end_preparation()
        return LaunchReport(len(results), time.perf_counter() - start, self.mean_relative_index())

    def mean_relative_index(self) -> float:
        """Mean of index / (p - 1) over all chosen directions, p = min(out, in) of the layer; NaN before the launch."""
        if not self.launched:
            return float("nan")
        places = [w.indices.double() / max(1, min(w.A.shape[1], w.B.shape[0]) - 1) for _, w in self.weights()]
        return torch.cat(places).mean().item()

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
        for layer in self.layers.values():
            if self.name not in layer.enabled:
                layer.enabled.append(self.name)

    def disable(self) -> None:
        """Leave this adapter out of the layers' outputs; a merged adapter has to be unmerged for that."""
        for layer in self.layers.values():
            if self.name in layer.enabled:
                layer.enabled.remove(self.name)

    # -- into the weights and out again

    def merge(self) -> None:
        """Add the update to the frozen weights: the model then computes at its original cost.

        A copy of every weight touched is kept until `unmerge`, which restores it bit for bit. Raises RuntimeError
        when a weight is shared with another module, which the merge would change too, and when FSDP has split the
        model.
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
            layer.merge(self.name)

    def unmerge(self) -> None:
        """Take the update out of the weights again, bit for bit."""
        for layer in self.layers.values():
            layer.unmerge(self.name)

    def remove(self) -> None:
        """Take the adapter out of the model. With the last one gone the model is what it was before the first
        `inject`: the same module objects, the same state dict bit for bit, the same requires_grad flags."""
        self.unmerge()
        self.disable()
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

    def save(self, path: str | PathLike[str], compact: bool = False) -> None:
        """Write the adapter to a native .safetensors file; compact: without U and V. See adapter_io.save_adapters."""
        from .adapter_io import save_adapters  # adapter_io builds on this module

        save_adapters(self, path, compact=compact)

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
    ranks = {m: min(weight_matrix(_base(layer)).shape) for m, layer in found.items()}
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
            weight_matrix(wrapped.base).device,
        ).train(wrapped.training)
    adapter = Adapter(model, name, config, layers)
    _registry(model)[name] = adapter
    adapter.activate()
    return adapter


# -- finding targets


def find_targets(model: nn.Module, target: str | Sequence[str]) -> dict[str, nn.Module]:
    """Module name -> layer for every layer that `target` names, in the model's order. Raises ValueError, see inject."""
    candidates = {name: module for name, module in _outside_layers(model) if name}
    if isinstance(target, str) and target in PRESETS:
        found = _with_suffix(candidates, PRESETS[target])
        if not found:
            raise ValueError(_no_match(candidates, f"preset {target!r}", []))
    elif isinstance(target, str):
        # A regular expression may well match containers and norms on its way; only layers that can carry an
        # adapter are meant by it.
        matched = _full_match(candidates, target)
        found = {name: module for name, module in matched.items() if adaptable(_base(module))}
        if not found:
            found = {name: m for name, m in _with_suffix(candidates, [target]).items() if adaptable(_base(m))}
        if not found:
            raise ValueError(_no_match(candidates, repr(target), [target]))
    else:
        for suffix in target:
            if not _with_suffix(candidates, [suffix]):
                raise ValueError(_no_match(candidates, repr(suffix), [suffix]))
        found = _with_suffix(candidates, target)
    for name, module in found.items():
        reason = refusal(_base(module))
        if reason:
            raise ValueError(f"cannot adapt {name}: {reason}")
    return found


def _outside_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """named_modules() that does not look inside layers which are adapted already."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, DashLinear):
            inside.update(id(m) for m in module.modules() if m is not module)
        yield name, module


def _with_suffix(candidates: dict[str, nn.Module], suffixes: Sequence[str]) -> dict[str, nn.Module]:
    return {n: m for n, m in candidates.items() if any(n == s or n.endswith("." + s) for s in suffixes)}


def _full_match(candidates: dict[str, nn.Module], expression: str) -> dict[str, nn.Module]:
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ValueError(f"target {expression!r} is neither a preset nor a regular expression: {error}") from None
    return {n: m for n, m in candidates.items() if compiled.fullmatch(n)}


def _no_match(candidates: dict[str, nn.Module], what: str, wanted: Sequence[str]) -> str:
    """The sentence for a target without a match: what was asked, what comes near, which presets exist."""
    layers = [name for name, module in candidates.items() if adaptable(_base(module))]
    if not layers:
        return f"target {what} matches nothing: the model has no Linear, Conv2d or Conv1D layer"
    # Compare the ends of names: the numbers of the blocks say nothing about what was meant.
    ends = {".".join(name.split(".")[-2:]): name for name in layers} | {name.split(".")[-1]: name for name in layers}
    near = [ends[e] for w in wanted for e in difflib.get_close_matches(w.split("\\.")[-1], ends, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(near))[:5]
    hint = f"near names: {', '.join(near)}" if near else f"names in this model look like: {', '.join(layers[:3])}"
    return f"target {what} matches no layer of {len(layers)}; {hint}; presets: {', '.join(PRESETS)}"


def _base(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, DashLinear) else module


def _registry(model: nn.Module) -> dict[str, Adapter]:
    """The adapters in `model` by name. Kept on the model, so that a copy of the model has its own."""
    return model.__dict__.get("dash_adapters", {})


def _set_module(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _shared_weights(model: nn.Module, layers: dict[str, DashLinear]) -> list[str]:
    """Names of the layers whose weight another module of the model uses too."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [name for name, layer in layers.items() if owners[id(layer.base.weight)] > 1]


# -- the launch, dealt out over processes


def _rank_and_world() -> tuple[int, int]:
    parallel = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)


def _choose_directions(
    layers: dict[str, DashLinear], adapter: str, eps: float, selection: str, decompositions: Decompositions
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Directions of every layer; with several ranks each decomposes its share and broadcasts it."""
    rank, world = _rank_and_world()
    parallel = world > 1
    owner = _deal(layers, world)
    results: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    problem = None
    for round_ in _rounds(owner, world):
        mine = None
        for module in round_:
            layer, w = layers[module], layers[module].weights(adapter)
            # Where the model is split every rank has to take part in gathering, also for the layers of others, and
            # after a failure of its own.
            W, factors = whole(layer.frozen_matrix()), w.factors()
            if owner[module] == rank:
                mine = module, W, factors
            else:
                results[module] = (torch.empty_like(w.indices), torch.empty_like(w.U), torch.empty_like(w.V))
            del W, factors
        if mine is None or problem:
            continue
        module, W, factors = mine
        w = layers[module].weights(adapter)
        try:
            spectrum = decompositions.of(module, W, weight_matrix(layers[module].base).device)
            indices, U, V = w.choose(W, factors, spectrum, eps, selection)
        except (ValueError, RuntimeError) as error:  # RuntimeError: a decomposition that fails, memory that runs out
            problem = f"cannot choose directions in {module}: {error}"
            continue
        results[module] = (indices.to(w.indices), U.to(w.U).contiguous(), V.to(w.V).contiguous())
    if parallel:
        # Agree on failure first: a rank that raised alone would leave the others waiting in the broadcast.
        problems: list[str | None] = [None] * world
        dist.all_gather_object(problems, problem)
        problem = next((p for p in problems if p), None)
    if problem:
        raise ValueError(problem)
    if parallel:
        for module in layers:  # in one order on all ranks
            for tensor in results[module]:
                dist.broadcast(tensor, src=owner[module])
    return {module: results[module] for module in layers}


def _rounds(owner: Mapping[str, int], world: int) -> list[list[str]]:
    """The modules in groups of one for each rank at most: what a group gathers, all ranks decompose at once."""
    shares = [[module for module, rank in owner.items() if rank == r] for r in range(world)]
    return [[module for module in group if module is not None] for group in zip_longest(*shares)]


def _deal(layers: dict[str, DashLinear], world: int) -> dict[str, int]:
    """Module name -> rank, largest decompositions first, each to the rank with the least work so far."""
    costs = {
        m: layer.in_features * layer.out_features * min(layer.in_features, layer.out_features)
        for m, layer in layers.items()
    }
    load = [0] * world
    owner = {}
    for module in sorted(costs, key=lambda m: -costs[m]):
        owner[module] = load.index(min(load))
        load[owner[module]] += costs[module]
    return {module: owner[module] for module in layers}
