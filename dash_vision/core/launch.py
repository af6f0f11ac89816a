"""The launch: every layer's directions chosen, the work dealt out over the processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .decompositions import Decompositions
from .layer import DashLinear
from .sharding import whole


@dataclass(frozen=True)
class LaunchReport:
    """What a launch did: layers decomposed, seconds, and where in their spectra the chosen directions lie."""

    layers: int
    seconds: float
    mean_relative_index: float  # 0 = all choices at the largest singular values, 1 = at the smallest
    in_full: int = 0  # layers whose singular values fall so low that they took a full SVD

    def __str__(self) -> str:
        in_full = f"; {self.in_full} of the weights took a full SVD, being nearly singular" if self.in_full else ""
        return (
            f"dash launched: {self.layers} layers in {self.seconds:.1f} s; chosen directions lie at "
            f"{self.mean_relative_index:.2f} of the spectrum on average (0 = largest singular value, 1 = smallest)"
            f"{in_full}"
        )


def mean_relative_index(weights: Iterable[Any]) -> float:
    """Mean of index / (p - 1) over the chosen directions of launched layers, p = min(out, in). weights: what has A
    [r, in], B [out, r] and indices [k] of each layer."""
    places = [w.indices.double() / max(1, min(w.A.shape[1], w.B.shape[0]) - 1) for w in weights]
    return torch.cat(places).mean().item()


def layer_generator(seed: int, module: str) -> torch.Generator:
    """A generator of the layer's own, so that a random choice is the same whichever process makes it."""
    digest = hashlib.sha256(f"{seed} {module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def rank_and_world() -> tuple[int, int]:
    parallel = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)


def choose_directions(
    layers: dict[str, DashLinear],
    adapter: str,
    eps: float,
    selection: str,
    seed: int,
    decompositions: Decompositions,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Directions of every layer; with several ranks each decomposes its share and broadcasts it.

    Afterwards `decompositions.in_full` counts those of all ranks.
    """
    rank, world = rank_and_world()
    parallel = world > 1
    owner = deal(layers, world)
    results: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    problem = None
    for round_ in _rounds(owner, world):
        mine = None
        for module in round_:
            layer, w = layers[module], layers[module].weights(adapter)
            # Where the model is split every rank has to take part in gathering, also for the layers of others, and
            # after a failure of its own. What is read or dequantized is for the owner alone.
            gathers = layer.precise_weight is None and not layer.quantized
            W, factors = (whole(layer.frozen_matrix()) if gathers else None), w.factors()
            if owner[module] == rank:
                mine = module, W, factors
            else:
                results[module] = (torch.empty_like(w.indices), torch.empty_like(w.U), torch.empty_like(w.V))
            del W, factors
        if mine is None or problem:
            continue
        module, W, factors = mine
        layer, w = layers[module], layers[module].weights(adapter)
        try:
            W = layer.frozen_matrix() if W is None else W
            spectrum = decompositions.of(module, W, w.A.device, source_of(layer))
            indices, U, V = w.choose(W, factors, spectrum, eps, selection, layer_generator(seed, module))
        except (ValueError, RuntimeError) as error:  # RuntimeError: a decomposition that fails, memory that runs out
            problem = f"cannot choose directions in {module}: {error}"
            continue
        results[module] = (indices.to(w.indices), U.to(w.U).contiguous(), V.to(w.V).contiguous())
    if parallel:
        # Agree on failure first: a rank that raised alone would leave the others waiting in the broadcast.
        found: list[tuple[str | None, int]] = [(None, 0)] * world
        dist.all_gather_object(found, (problem, decompositions.in_full))
        problem = next((one for one, _ in found if one), None)
        decompositions.in_full = sum(count for _, count in found)
    if problem:
        raise ValueError(problem)
    if parallel:
        for module in layers:  # in one order on all ranks
            for tensor in results[module]:
                dist.broadcast(tensor, src=owner[module])
    return {module: results[module] for module in layers}


def source_of(layer: DashLinear) -> Callable[[], Tensor] | None:
    """What gives a layer's frozen matrix, where that is a new tensor each time: read from a file, or dequantized."""
    if layer.precise_weight is None and not layer.quantized:
        return None
    return layer.precise_weight or layer.frozen_matrix


def _rounds(owner: Mapping[str, int], world: int) -> list[list[str]]:
    """The modules in groups of one for each rank at most: what a group gathers, all ranks decompose at once."""
    shares = [[module for module, rank in owner.items() if rank == r] for r in range(world)]
    return [[module for module in group if module is not None] for group in zip_longest(*shares)]


def deal(layers: dict[str, DashLinear], world: int) -> dict[str, int]:
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
