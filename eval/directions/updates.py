"""The update of a layer, and how much of it lies in which direction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dash_vision.core.analysis import (
    LowRank,
    Update,
    norm,
)
from dash_vision.core.directions import Directions, singular_directions
from dash_vision.files.errors import InputError
from dash_vision.files.native import AdapterState

from .sources import Source


def low_rank(tensors: Mapping[str, Tensor], module: str, scaling: float) -> LowRank:
    """The LoRA part, which the method predicts from."""
    return LowRank(tensors[f"{module}.A"], tensors[f"{module}.B"] * scaling)


def learned(source: Source, module: str, W: Tensor, directions: Directions) -> Update | None:
    """All that was learned in a layer; None where it was not trained."""
    state = source.state
    if state is None:
        return _difference(source, module, W)
    if module not in state.kinds:
        return None
    A, B = low_rank(state.tensors, module, state.scaling)
    if state.launched and state.dash_k:
        indices, shifts = state.tensors[f"{module}.indices"], state.tensors[f"{module}.dsigma"].double()
        A = torch.cat([A.double(), directions.V[indices]])
        B = torch.cat([B.double(), directions.U[:, indices] * shifts], dim=1)
    return LowRank(A, B)


def shifts(module: str, W: Tensor, state: AdapterState) -> tuple[list[float], float]:
    """|dsigma| / sigma of a layer's chosen directions, and |U diag(dsigma) V| / |(alpha / r) B A|: U and V are
    orthonormal, so the first norm is that of dsigma."""
    shift = state.tensors[f"{module}.dsigma"].double()
    if state.compact:
        sigma = singular_directions(W).sigma[state.tensors[f"{module}.indices"]]
    else:  # u^T W v: no decomposition of every layer of a large model for one line
        U, V = (state.tensors[f"{module}.{key}"].double() for key in "UV")
        sigma = ((W.double() @ V.T) * U).sum(0)
    update = norm(low_rank(state.tensors, module, state.scaling))
    return (shift.abs() / (sigma + state.eps)).tolist(), shift.norm().item() / max(update, 1e-300)


def _difference(source: Source, module: str, W: Tensor) -> Tensor | None:
    assert source.weights is not None
    key = f"{module}.weight"
    try:
        with safe_open(source.weights, "pt") as file:
            if key not in file.keys():  # noqa: SIM118 (no mapping)
                return None
            tuned = file.get_tensor(key).flatten(1)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{source.weights} is no complete .safetensors file ({error})") from None
    if tuned.shape != W.shape:
        raise InputError(f"{source.weights}: {key} is {tuple(tuned.shape)}, the base's is {tuple(W.shape)}")
    return tuned.double() - W.double()
