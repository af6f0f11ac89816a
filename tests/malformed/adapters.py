"""Adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dash_vision import DashConfig, save_adapters
from tests.malformed.cases import REFUSED, Case
from tests.malformed.files import broken_files, header_of, save_sealed, set_in
from tests.support.models import trained


def network(width: int = 12) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(width, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))


# Header entries of an adapter's component, each replaced by what it cannot be.
_COMPONENT = {
    "config": (None, 7, [], {"rank": "4"}),
    "config/rank": (-1, 0, 2.0, True, "4", None, 99, 10**400),
    "config/dash_k": (99, -1, None, 10**400),
    "config/alpha": ("x", -1, 0, float("nan"), 10**400),
    "config/dropout": ("x", 1.0, float("nan")),
    "config/eps": ("x", -1, None),
    "config/target": (7, [], ""),
    "config/selection": ("best", 7, []),
    "config/colour": (1,),
    "kinds": (None, 7, [], {}, {"0": "linear"}),
    "kinds/0": (7, "conv9", None, [], [0, 0], [3], [7, 7], ["a", "b"], {}, [10**400, 1]),
    "probes": (None, [], {}),
    "probes/0": (None, 7, [], ["a"] * 5, [float("nan")] * 5, [10**400] + [0] * 4, [1.0] * 4),
}


def bad_adapters(path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, torch.Tensor]]]:
    """(what, header, tensors) of native adapters whose parts contradict each other."""

    def fresh() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        header, _ = header_of(path.read_bytes())
        return json.loads(header["__metadata__"]["dash_vision"]), load_file(path)

    for place, values in _COMPONENT.items():
        for value in values:
            header, tensors = fresh()
            set_in(header, f"content/components/model/{place}", value)
            shown = str(value) if len(str(value)) < 40 else "very long"
            yield f"{place} is {shown}", header, tensors
    for key, values in (("components", ({}, 7, {"model": 7})), ("version", ("1", 99))):
        for value in values:
            header, tensors = fresh()
            (header if key == "version" else header["content"])[key] = value
            yield f"{key} is {value}", header, tensors
    for name in ("../../x", "/etc/passwd", "a\nb\x1b[31m"):
        header, tensors = fresh()
        header["content"]["components"] = {name: header["content"]["components"]["model"]}
        yield f"component {name!r} without tensors", header, tensors
    header, tensors = fresh()
    kinds = header["content"]["components"]["model"]["kinds"]
    kinds["../../../x"] = kinds.pop("0")
    yield "a layer that climbs out", header, tensors

    def tensor(key: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> dict[str, torch.Tensor]:
        _, tensors = fresh()
        changed = change(tensors.pop(key))
        return tensors if changed is None else {**tensors, key: changed.contiguous()}

    changes: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
        "missing": lambda t: None,
        "NaN": lambda t: torch.full_like(t, float("nan")),
        "infinite": lambda t: torch.full_like(t, float("inf")),
        "a number": lambda t: t.flatten()[0],
        "empty": lambda t: t[:0],
        "one row short": lambda t: t[1:],
        "one dimension more": lambda t: t[None],
        "whole numbers": lambda t: t.int(),
        "float8": lambda t: t.to(torch.float8_e4m3fn),
        "complex": lambda t: t.to(torch.complex64),
    }
    for key in ("A", "B", "dsigma", "U", "V"):
        for what, change in changes.items():
            yield f"{key} is {what}", fresh()[0], tensor(f"model/0.{key}", change)
    for what, value in (("out of range", 99), ("negative", -1), ("repeated", 1)):
        yield f"indices {what}", fresh()[0], tensor("model/0.indices", lambda t, v=value: torch.full_like(t, v))
    yield "indices are fractions", fresh()[0], tensor("model/0.indices", lambda t: t.float())
    header, tensors = fresh()
    yield "a tensor of nobody", header, {**tensors, "other/0.A": torch.zeros(2)}
    yield "a head that is NaN", header, {**tensors, "model/whole:head.weight": torch.full((2, 2), float("nan"))}
    yield "a float8 head", header, {**tensors, "model/whole:head.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}


def adapters(root: Path) -> Iterator[Case]:
    """Native adapters, for `python -m dash_vision`; the test loads each into a model too."""
    root.mkdir(parents=True)
    good = root / "good.safetensors"
    save_adapters(trained(network(), DashConfig(rank=2, dash_k=3, target=["0", "2"])), good, {"base": "a network"})

    def case(what: str, path: Path, expect: str = REFUSED) -> Case:
        return Case("adapter", what, "dash_vision", ("inspect", str(path)), str(path), expect)

    for number, (what, data, expect) in enumerate(broken_files(good.read_bytes(), root / "f0" / "x", "dash_vision")):
        path = root / f"f{number}" / "dash_adapter.safetensors"
        path.parent.mkdir()
        path.write_bytes(data)
        yield case(what, path, expect)
    for number, (what, header, tensors) in enumerate(bad_adapters(good)):
        path = root / f"h{number}" / "dash_adapter.safetensors"
        path.parent.mkdir()
        save_sealed(path, header, tensors)
        yield case(what, path)
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, root / "kohya.safetensors")
    yield case("another kind of file", root / "kohya.safetensors")
    save_file({"a\n\x1b[31mb": torch.zeros(2)}, root / "escape.safetensors")
    yield case("a line feed in a tensor's name", root / "escape.safetensors")
    yield case("a folder", root)
    yield case("nothing there", root / "none.safetensors")
    half = str(root / "f3" / "dash_adapter.safetensors")
    for to in ("diffusers", "kohya", "peft"):
        words = ("export", half, "--to", to, str(root / "out"))
        yield Case("adapter", f"{to} export of half a file", "dash_vision", words, half)
