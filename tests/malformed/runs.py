"""Checkpoints and trained classifiers of train_vtab.py; those of train_dreambooth.py are read by the same code."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dash_vision.classification.run import CHECKPOINT, execute
from dash_vision.classification.sweep import command
from dash_vision.files.errors import Stopped
from tests.malformed.cases import REFUSED, Case
from tests.malformed.files import Bomb, broken_files, header_of, save_sealed, set_in
from tests.malformed.pictures import bad_pictures
from tests.support.vtab import StopAt, cpu, one_run, write_task

_STATE: dict[str, tuple[Any, ...]] = {
    "state": (
        None,
        7,
        "x",
        [],
        {},
        {"items": 7},
        {"items": [[1]]},
        {"items": [[[], 1]]},
        {"tensor": "9"},
        {"tensor": []},
    ),
    "version": (0, "1", None, 99),
}
_ENTRIES: dict[str, tuple[Any, ...]] = {
    "arguments": (None, 7, [], {}),
    "curves": (None, 7, [[{"epoch": 1}]], [[7]], [[]]),
    "seconds": (None, 7, [1]),
    "selection": (7, [], {}, {"rule": "best_val", "candidate": 0, "epoch": 9, "curves": []}),
    "job": (7, [], {}, "x"),
    "job/model": (None, {}, 7),
    "job/curve": (None, 7, [7]),
    "job/training": (None, 7, {}),
    "job/training/step": (None, "x", -1, 10**6, 1.5),
    "job/training/updates": (None, "x", -1, 10**6),
    "job/training/losses": (None, 7, ["x"]),
    "job/training/optimizers": (None, 7, [], [7]),
    "job/training/launch": (7,),
    "job/training/seconds": (None, "x"),
}


def packed_entry(state: dict[str, Any], path: str) -> list[Any]:
    """The [key, value] pair of the packed checkpoint at "a/b"."""
    for key in path.split("/"):
        pair = next(p for p in state["items"] if p[0] == key)
        state = pair[1]
    return pair


def bad_checkpoints(good: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, torch.Tensor]]]:
    """(what, header, tensors) of checkpoints that say what cannot be."""

    def fresh() -> dict[str, Any]:
        return json.loads(header_of(good.read_bytes())[0]["__metadata__"]["dash_vision"])

    def pack(value: Any) -> Any:
        return {"items": [[k, pack(v)] for k, v in value.items()]} if isinstance(value, dict) else value

    tensors = load_file(good)
    for key, values in _STATE.items():
        for value in values:
            header = fresh()
            header["content" if key == "state" else key] = value
            yield f"{key} is {value}", header, tensors
    for place, values in _ENTRIES.items():
        for value in values:
            header = fresh()
            packed_entry(header["content"], place)[1] = pack(value)
            yield f"{place} is {value}", header, tensors
        header = fresh()
        packed_entry(header["content"], place)[0] = "elsewhere"
        yield f"{place} is missing", header, tensors
    for what, change in (
        ("NaN", lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t),
        ("one row short", lambda t: t[1:] if t.ndim else t),
        ("one dimension more", lambda t: t[None]),
        ("none", lambda t: None),
    ):
        changed = {key: c.contiguous() for key, t in tensors.items() if (c := change(t)) is not None}
        yield f"tensors are {what}", fresh(), changed


def checkpoints(root: Path) -> Iterator[Case]:
    write_task(root / "data")
    run = one_run(root, cache_dir="none", output_dir=str(root / "whole"))
    with contextlib.suppress(Stopped):
        execute(run, cpu(), StopAt(4))
    good = run.folder / CHECKPOINT

    def case(what: str, number: str, expect: str = REFUSED) -> tuple[Path, Case]:
        again = one_run(root, cache_dir="none", output_dir=str(root / number))
        again.folder.mkdir(parents=True)
        path = again.folder / CHECKPOINT
        return path, Case("checkpoint", what, "vtab", tuple(shlex.split(command(again))[2:]), str(path), expect)

    inside = "dash_vision"
    for number, (what, data, expect) in enumerate(broken_files(good.read_bytes(), root / "f0" / "x", inside)):
        path, one = case(what, f"f{number}", expect)
        path.write_bytes(data)
        yield one
    for number, (what, header, tensors) in enumerate(bad_checkpoints(good)):
        path, one = case(what, f"h{number}")
        save_sealed(path, header, tensors)
        yield one


_ABOUT: dict[str, tuple[Any, ...]] = {
    "backbone": (None, 7, {}, []),
    "backbone/name": (None, 7, "no_such_model", "../../x", "hf-hub:somebody/something"),
    "backbone/image_size": (None, "x", 0, -1, 10**9),
    "backbone/mean": (None, 7, "x", [], [1.0], ["a", "b", "c"]),
    "backbone/std": (None, [0, 0, 0]),
    "backbone/checkpoint": ("/etc/passwd", 7, "none.pth"),
    "backbone/colour": (1,),
    "classes": (None, 7, [], [7, 8], "abc", ["a", "b"]),
}


def classifiers(root: Path) -> Iterator[Case]:
    """Runs of train_vtab.py for `predict` and `merge`."""
    write_task(root / "data")
    run = one_run(root, cache_dir="none", methods=["linear"], epochs=1)
    execute(run, cpu())
    good = run.folder / "trained.safetensors"
    image = root / "data" / "cifar" / "images" / "test" / "000000.png"

    def case(what: str, path: Path, program: str = "predict", expect: str = REFUSED) -> Case:
        words = (program, str(path), str(image if program == "predict" else root / "out.safetensors"))
        return Case("classifier", what, "dash_vision", words, str(path), expect)

    whole = json.loads(header_of(good.read_bytes())[0]["__metadata__"]["dash_vision"])
    about = whole["content"]
    broken = broken_files(good.read_bytes(), root / "f0" / "x", "dash_vision")
    for number, (what, data, expect) in enumerate(broken):
        path = root / f"f{number}" / "trained.safetensors"
        path.parent.mkdir()
        path.write_bytes(data)
        yield case(what, path, "merge" if number % 4 == 0 else "predict", expect)
    count = 0
    for place, values in _ABOUT.items():
        for value in values:
            content = json.loads(json.dumps(about))
            set_in(content, place, value)
            path = root / f"h{count}" / "trained.safetensors"
            path.parent.mkdir()
            save_sealed(path, {**whole, "content": content}, load_file(good))
            yield case(f"{place} is {value}", path)
            count += 1
    for number, (what, name, data) in enumerate(bad_pictures()):
        if number % 5 == 0 or "bomb" in what or "EPS" in what:
            if any(word in what for word in ("flipped", "transparent", "20000", "1 x 1")):
                continue
            path = root / f"i{number}" / name
            path.parent.mkdir()
            path.write_bytes(data)
            yield Case("classifier", f"picture: {what}", "dash_vision", ("predict", str(good), str(path)), str(path))
    peft = root / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["attn.qkv"]}))
    (peft / "dash_vision.json").write_text(json.dumps(about))
    torch.save(Bomb(peft / "x"), peft / "adapter_model.bin")
    yield case("a PEFT folder with a pickle", peft)
