"""`dash-vision inspect ADAPTER --as fp8|int8|nf4`: how much of each layer's update a merge into so few bits keeps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ..bases.loading import Base
    from ..files.native import AdapterState

_LITTLE = 0.5


def lines(file: Path, place: str | None, word: str) -> Iterator[str]:
    """What is printed, layer by layer. place: of the base; None: as the file says. Raises InputError."""
    from ..bases.loading import load_base
    from ..bases.rounding import rounded, surviving
    from ..core.loading import read_adapters
    from ..files.native import read_notes

    states = read_adapters(file)
    name = place or read_notes(file).get("base")
    if not isinstance(name, str):
        raise InputError(f"{file} does not say which base it was trained on; name it by --base")
    base = load_base(name, waits=True)
    yield f"{file} merged into {base.name} in {word}: share of each update that survives"
    few, count = 0, 0
    for component, state in states.items():
        for module in [module for module, kind in state.kinds.items() if kind == "linear"]:
            W = _weight(base, component, module, state, file)
            if state.compact:
                raise InputError(f"{file} is compact and has no directions; give the whole file")
            down, up = state.factors(module)
            share = surviving(W, (up @ down).float(), partial(rounded, word=word))
            few, count = few + (share < _LITTLE), count + 1
            yield f"  {component}.{module}  {100 * share:.0f}%"
    if not count:
        raise InputError(f"{file} has no linear layer, and others are not kept in {word}; merge it as it is")
    if few:
        yield (
            f"warning: less than half of the update survives in {few} of {count} layers: load the LoRA beside the "
            f"{word} base, or merge it in bfloat16"
        )


def _weight(base: Base, component: str, module: str, state: AdapterState, file: Path) -> Tensor:
    """The base's weight, float32. Raises InputError where it is not the one that the adapter was trained on."""
    from ..core.weights import weight_matrix
    from ..files.fingerprints import compare_probes, probe_matrix

    out, in_, _, _ = state.size(module)
    stored = base.precise(component, module, (out, in_))
    if stored is not None:
        W = stored().float()
    else:
        base.load(component)
        network = base.components().get(component)
        layer = None if network is None else dict(network.named_modules()).get(module)
        if layer is None:
            raise InputError(f"{base.name} has no layer {module}; name the base of {file} by --base")
        W = weight_matrix(layer).detach().float()
    if W.shape != (out, in_) or compare_probes({module: probe_matrix(W)}, {module: state.probes[module]}):
        raise InputError(f"{file} was trained on other weights than {base.name} holds; name its base by --base")
    return W
