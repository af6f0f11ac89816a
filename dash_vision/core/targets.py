"""Which layers of a model an adapter sits on: presets, module-name suffixes, regular expressions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from torch import nn

from .layer import DashLinear, adaptable, refusal

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
    return f"target {what} matches no layer of {len(layers)}; {hint}; presets: {', '.join(PRESETS)}"


def base_of(module: nn.Module) -> nn.Module:
    """The frozen layer itself, whether it is adapted or not."""
    return module.base if isinstance(module, DashLinear) else module
