"""Which layers of a model an adapter sits on: presets, module-name suffixes, regular expressions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from torch import nn

from .layer import DashLinear, adaptable, refusal
from .weights import is_conv1d

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
    "llama-paper": ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"),
}
# Presets that read the model's structure instead of names; see `_in_blocks`.
STRUCTURAL = {
    "attention": "the linear layers of the attention in every block",
    "attention-mlp": "these, and the other linear layers of the blocks, without routers of experts",
    "all-linear": "every linear layer of the blocks",
}


def find_targets(model: nn.Module, target: str | Sequence[str]) -> dict[str, nn.Module]:
    """Module name -> layer for every layer that `target` names, in the model's order. Raises ValueError, see inject."""
    candidates = {name: module for name, module in _outside_layers(model) if name}
    if isinstance(target, str) and target in PRESETS:
        found = _with_suffix(candidates, PRESETS[target])
        if not found:
            raise ValueError(_no_match(candidates, f"preset {target!r}", []))
    elif isinstance(target, str) and target in STRUCTURAL:
        found = _in_blocks(model, candidates, target)
        if not found:
            raise ValueError(_no_match(candidates, f"preset {target!r}", []))
        if target != "attention" and len(found) == len(_in_blocks(model, candidates, "attention")):
            raise ValueError(
                f"preset {target!r} finds no linear layer beside the attention: experts that are kept in one tensor "
                "cannot be adapted; use 'attention'"
            )
    elif isinstance(target, str):
        # A regular expression may well match containers and norms on its way; only layers that can carry an
        # adapter are meant by it.
        matched = _full_match(candidates, target)
        found = {name: module for name, module in matched.items() if adaptable(base_of(module))}
        if not found:
            found = {name: m for name, m in _with_suffix(candidates, [target]).items() if adaptable(base_of(m))}
        if not found:
            raise ValueError(_no_match(candidates, repr(target), [target]))
    else:
        for suffix in target:
            if not _with_suffix(candidates, [suffix]):
                raise ValueError(_no_match(candidates, repr(suffix), [suffix]))
        found = _with_suffix(candidates, target)
    for name, module in found.items():
        reason = refusal(base_of(module))
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


def _in_blocks(model: nn.Module, candidates: dict[str, nn.Module], preset: str) -> dict[str, nn.Module]:
    """The layers of a preset of STRUCTURAL.

    A block is a member of a ModuleList (or of timm's Sequential of blocks) that holds attention, whatever it is called;
    attention is a module whose class says so. Heads, embeddings, poolers and projections lie outside the blocks. A
    layer whose weight is tied to another module's is left out: its update would be that module's too.
    """
    blocks = [name for name, module in candidates.items() if _is_block(name, module, candidates)]
    attentions = [name for name, module in candidates.items() if _is_attention(module)]
    tied = shared_parameters(model)
    found = {}
    for name, module in candidates.items():
        layer = base_of(module)
        if refusal(layer) or not _is_linear(layer) or not _inside(name, blocks) or id(layer.weight) in tied:
            continue
        if preset == "attention" and not _inside(name, attentions):
            continue
        if preset == "attention-mlp" and "router" in type(module).__name__.lower() + name.lower():
            continue
        found[name] = module
    return found


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower() or type(module).__name__.lower().endswith("attn")


def _is_block(name: str, module: nn.Module, candidates: dict[str, nn.Module]) -> bool:
    parent, _, number = name.rpartition(".")
    inside_list = number.isdigit() and isinstance(candidates.get(parent), nn.ModuleList | nn.Sequential)
    return inside_list and any(_is_attention(inner) for inner in module.modules())


def _inside(name: str, outer: Sequence[str]) -> bool:
    return any(name.startswith(f"{one}.") for one in outer)


def shared_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that two modules or more own."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {key for key, count in owners.items() if count > 1}


def _full_match(candidates: dict[str, nn.Module], expression: str) -> dict[str, nn.Module]:
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ValueError(f"target {expression!r} is neither a preset nor a regular expression: {error}") from None
    return {n: m for n, m in candidates.items() if compiled.fullmatch(n)}


def _no_match(candidates: dict[str, nn.Module], what: str, wanted: Sequence[str]) -> str:
    """The sentence for a target without a match: what was asked, what comes near, which presets exist."""
    layers = [name for name, module in candidates.items() if adaptable(base_of(module))]
    if not layers:
        return f"target {what} matches nothing: the model has no Linear, Conv2d or Conv1D layer"
    # Compare the ends of names: the numbers of the blocks say nothing about what was meant.
    ends = {".".join(name.split(".")[-2:]): name for name in layers} | {name.split(".")[-1]: name for name in layers}
    near = [ends[e] for w in wanted for e in difflib.get_close_matches(w.split("\\.")[-1], ends, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(near))[:5]
    hint = f"near names: {', '.join(near)}" if near else f"names in this model look like: {', '.join(layers[:3])}"
    return f"target {what} matches no layer of {len(layers)}; {hint}; presets: {', '.join([*PRESETS, *STRUCTURAL])}"


def base_of(module: nn.Module) -> nn.Module:
    """The frozen layer itself, whether it is adapted or not."""
    return module.base if isinstance(module, DashLinear) else module
