"""FLUX.1 and FLUX.2 as their first code, ComfyUI and kohya's scripts name their layers: there one matrix gives queries,
keys and values, where diffusers has three.

The update of such a matrix is that of its parts with the factors put into blocks,
    A = [A_q ; A_k ; A_v],   B = diag(B_q, B_k, B_v),
of three times the rank, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from .low_rank import Factors

# diffusers' names in a block, by the name of the layer that they are a part of, from its first rows to its last.
_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
}
_DOUBLE_1 = {"img_mlp_0": ("ff.net.0.proj",), "img_mlp_2": ("ff.net.2",)}
_DOUBLE_1 |= {"txt_mlp_0": ("ff_context.net.0.proj",), "txt_mlp_2": ("ff_context.net.2",)}
_DOUBLE_2 = {"img_mlp_0": ("ff.linear_in",), "img_mlp_2": ("ff.linear_out",)}
_DOUBLE_2 |= {"txt_mlp_0": ("ff_context.linear_in",), "txt_mlp_2": ("ff_context.linear_out",)}
_SINGLE_1 = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",)}
_SINGLE_2 = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
_BLOCKS = {
    "transformer_blocks": ("double_blocks", (_DOUBLE, _DOUBLE_1, _DOUBLE_2)),
    "single_transformer_blocks": ("single_blocks", (_SINGLE_1, _SINGLE_2)),
}
_MLP = 4  # the MLP of FLUX.1's single blocks is that many times as wide as the block


def fused_name(module: str) -> tuple[str, tuple[str, ...]] | None:
    """("double_blocks_0_img_attn_qkv", the names in diffusers of all its parts) of a module; None where it has none."""
    match = re.fullmatch(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)", module)
    if match is None:
        return None
    kind, number, rest = match.groups()
    other, tables = _BLOCKS[kind]
    for table in tables:
        for name, parts in table.items():
            if rest in parts:
                return f"{other}_{number}_{name}", tuple(f"{kind}.{number}.{part}" for part in parts)
    return None


def unnamed(modules: Iterable[str]) -> list[str]:
    """The modules that have no other name: those outside of FLUX's blocks, and modulation."""
    return [module for module in modules if fused_name(module) is None]


def fuse(layers: Mapping[str, Factors]) -> dict[str, Factors]:
    """Factors (A [rank, in], B [out, rank]) by diffusers' module names -> by the other names, put into blocks.

    All have one rank. A part that was not trained is there as zeros. Raises ValueError for a module without a name.
    """
    found: dict[str, Factors] = {}
    for module in layers:
        named = fused_name(module)
        if named is None:
            raise ValueError(f"the kohya format has no name for {module}; it names the layers of FLUX's blocks")
        name, parts = named
        if name not in found:
            found[name] = _blocks(parts, layers)
    return found


def _blocks(parts: tuple[str, ...], layers: Mapping[str, Factors]) -> Factors:
    given = next(part for part in parts if part in layers)
    down, up = layers[given]
    # The parts are equally long, but for the MLP's.
    width = len(up) // _MLP if given.endswith(".proj_mlp") else len(up)

    def factors(part: str) -> Factors:
        rows = _MLP * width if part.endswith(".proj_mlp") else width
        return layers.get(part, (torch.zeros_like(down), up.new_zeros(rows, up.shape[1])))

    all_of_them = [factors(part) for part in parts]
    return torch.cat([a for a, _ in all_of_them]), torch.block_diag(*(b for _, b in all_of_them))
