"""Malformed input of every kind that a user can hand in, made by rule; nothing of it is stored.

python -m tests.malformed FOLDER     writes the corpus and prints one line per case

A case is a command as it would be typed. `REFUSED`: exit status not 0, one sentence that names the file. `SKIPPED`:
exit status 0, and the output names and counts what was left out. `EITHER`: damage that may hit something that does
not matter; then the command succeeds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shlex
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dash_vision.classification.runtime import Interrupted
from PIL import Image
from safetensors.torch import load_file, save_file

from dash_vision import DashConfig, save_adapters
from dash_vision.classification.run import CHECKPOINT, execute
from dash_vision.classification.sweep import command
from dash_vision.files.container import checksum
from dash_vision.runs.signals import StopRequest
from tests.support.models import trained
from tests.support.pictures import save_pictures
from tests.support.vtab import cpu, one_run, write_task

REFUSED, SKIPPED, EITHER = "refused", "skipped", "either"
EIGHTHS = range(8)
CANARY = "canary"  # a file with this name appears where something of the corpus was executed


@dataclass(frozen=True)
class Case:
    """One malformed file. program: dreambooth, vtab, dash_vision or eval; named: what the output has to say."""

    kind: str
    name: str
    program: str
    words: tuple[str, ...]
    named: str
    expect: str = REFUSED


def corpus(folder: Path) -> list[Case]:
    """Write every file under `folder`; the cases."""
    parts = (images, captions, adapters, checkpoints, settings, results, layouts, classifiers)
    return [case for part in parts for case in part(folder / part.__name__)]


# -- pictures


FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}


def noise(width: int = 40, height: int = 32, mode: str = "RGB") -> Image.Image:
    """A picture that does not compress to nothing."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels to show for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def bad_pictures() -> Iterator[tuple[str, str, bytes]]:
    """(what is wrong, file name, bytes) of pictures that nobody can use."""
    for suffix, format in FORMATS.items():
        data = encoded(noise(), format)
        for eighth in EIGHTHS:
            yield f"{format} cut at {eighth}/8", f"a.{suffix}", data[: len(data) * eighth // 8]
    whole = encoded(noise(), "PNG")
    for at in range(8):
        place = 20 + at * (len(whole) - 40) // 8
        changed = bytes([whole[place] ^ 255])
        yield f"PNG with byte {at} of 8 flipped", "a.png", whole[:place] + changed + whole[place + 1 :]
    yield "a web page", "a.jpg", b"<!doctype html><title>404</title>"
    yield "text", "a.png", b"this is no picture"
    yield "a pickle", "a.png", pickle.dumps(Bomb("a.png"))
    yield "an archive", "a.webp", b"PK\x03\x04" + bytes(200)
    yield "a PDF", "a.jpg", b"%PDF-1.7\n" + bytes(100)
    yield "EPS, which is a program", "a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(x) print\n"
    yield "zeros", "a.bmp", bytes(5000)
    yield "PNG bomb", "a.png", png_header(60_000, 60_000)
    yield "PNG of 0 x 0", "a.png", png_header(0, 0)
    gif = encoded(noise(), "GIF")
    yield "GIF bomb", "a.gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]
    bmp = encoded(noise(), "BMP")
    yield "BMP bomb", "a.bmp", bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:]
    yield "1 x 1", "a.png", encoded(noise(1, 1), "PNG")
    yield "20000 x 10", "a.png", encoded(Image.new("RGB", (20_000, 10)), "PNG")
    yield "not a number", "a.tif", encoded(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF")
    yield "nothing but transparent", "a.png", encoded(Image.new("RGBA", (32, 32)), "PNG")


def odd_pictures() -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of unusual pictures that can be used."""
    frames = [noise().rotate(90 * n) for n in range(1, 4)]
    deep = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    # EXIF whose orientation is a double that is not a number.
    entry = struct.pack("<HHIII", 0x112, 12, 1, 26, 0) + struct.pack("<d", np.nan)
    yield "cmyk.jpg", encoded(noise(mode="CMYK"), "JPEG")
    yield "16-bit.png", encoded(Image.fromarray(deep), "PNG")
    yield "palette.png", encoded(noise(mode="P"), "PNG", transparency=bytes(range(256)))
    yield "animated.gif", encoded(noise(), "GIF", save_all=True, append_images=frames)
    yield "wrong name.jpg", encoded(noise(), "PNG")
    yield "garbage exif.jpg", encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(range(200)))
    yield "nan exif.jpg", encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry)
    yield "grey.png", encoded(noise(mode="L"), "PNG")
    yield "bilevel.tif", encoded(noise(mode="1"), "TIFF")


def dreambooth(data: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("--instance_data", str(data), "--output_dir", str(out), "--instance_prompt", "a photo of sks cat", *more)


def images(root: Path) -> Iterator[Case]:
    def case(what: str, folder: Path, named: str) -> Case:
        return Case("image", what, "dreambooth", dreambooth(folder, root / "out"), named)

    for number, (what, name, data) in enumerate(bad_pictures()):
        folder = save_pictures(root / str(number), count=1)
        (folder / name).write_bytes(data)
        yield case(what, folder, name)
    folder = save_pictures(root / "link", count=1)
    (folder / "a.jpg").symlink_to("nowhere")
    yield case("a dead link", folder, "a.jpg")
    for name in ("folder", "pipe", "strange"):
        (root / name).mkdir(parents=True)
    (root / "folder" / "a.jpg").mkdir()
    yield case("a folder named like a picture", root / "folder", "a.jpg")
    os.mkfifo(root / "pipe" / "a.jpg")
    yield case("a pipe named like a picture", root / "pipe", "a.jpg")
    (root / "strange" / "a\n\x1b[31m.jpg").write_bytes(b"\xff\xd8\xff")
    yield case("line feed and escape in the name", root / "strange", ".jpg")
    yield case("no folder", root / "none", "none")
    yield case("zero byte in the path", Path("a\0b"), "a\N{REPLACEMENT CHARACTER}b")


# -- captions


SIDECARS = {
    "latin-1": "caf\xe9".encode("latin-1"),
    "UTF-16": "a cat".encode("utf-16"),
    "UTF-16 without a mark": "a cat".encode("utf-16-le"),
    "zero bytes": b"a\0cat",
    "2,001 characters": b"x" * 2001,
    "a megabyte": b"a cat " * 170_000,
    "lone continuation byte": b"a \x80 cat",
    "half a surrogate": b"\xed\xa0\x80",
}

RECORD = json.dumps({"file_name": "0.png", "text": "a cat on a mat"})
LINES = {
    "a list": "[1, 2]",
    "a number": "7",
    "not JSON": "0.png: a cat",
    "no file_name": '{"text": "a cat"}',
    "file_name is a number": '{"file_name": 7, "text": "a cat"}',
    "no text": '{"file_name": "0.png", "caption": "a cat"}',
    "text is a number": '{"file_name": "0.png", "text": 7}',
    "text is a list": '{"file_name": "0.png", "text": ["a cat"]}',
    "half a surrogate": '{"file_name": "0.png", "text": "\\ud800"}',
    "climbs out": '{"file_name": "../0.png", "text": "a cat"}',
    "absolute path": '{"file_name": "/etc/passwd", "text": "a cat"}',
    "Windows path": '{"file_name": "C:\\\\0.png", "text": "a cat"}',
    "no such picture": '{"file_name": "7.png", "text": "a cat"}',
    "the same picture twice": RECORD + "\n" + RECORD,
    "ten thousand brackets": "[" * 10_000,
    "ten thousand braces": '{"a":' * 10_000,
    "5,000 digits": '{"file_name": ' + "9" * 5000 + "}",
    "a very long text": json.dumps({"file_name": "0.png", "text": "x" * 5000}),
    "an escape sequence as name": '{"file_name": "\\u001b[31m\\n", "text": "a"}',
}


def captions(root: Path) -> Iterator[Case]:
    def case(what: str, name: str, data: bytes) -> Case:
        folder = save_pictures(root / str(len(list(root.glob("*")))), count=1)
        (folder / name).write_bytes(data)
        return Case("caption", what, "dreambooth", dreambooth(folder, root / "out"), name)

    for what, data in SIDECARS.items():
        yield case(what, "0.txt", data)
    for what, line in LINES.items():
        yield case(what, "metadata.jsonl", line.encode())
    for eighth in range(1, 8):
        yield case(f"metadata cut at {eighth}/8", "metadata.jsonl", RECORD[: len(RECORD) * eighth // 8].encode())
    yield case("metadata in latin-1", "metadata.jsonl", '{"file_name": "0.png", "text": "caf\xe9"}'.encode("latin-1"))
    folder = save_pictures(root / "two", count=1)
    (folder / "0.txt").write_text("a cat")
    (folder / "metadata.jsonl").write_text(RECORD)
    yield Case("caption", "two for one picture", "dreambooth", dreambooth(folder, root / "out"), "0.txt")


# -- safetensors files


class Bomb:
    """Unpickling it makes the canary."""

    def __init__(self, beside: str | Path) -> None:
        self.path = str(Path(beside).parent / CANARY)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, tensors' bytes) of a .safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def save_sealed(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """A container with a checksum that fits, as somebody would write who changes a file on purpose."""
    seal = checksum(header.get("content"), tensors)
    save_file(tensors, path, {"dash_vision": json.dumps({**header, "checksum": seal})})


def flipped(data: bytes, start: int, end: int, count: int) -> Iterator[bytes]:
    """`count` copies with one byte between start and end changed."""
    draw = random.Random(0)
    for _ in range(count):
        at = draw.randrange(start, end)
        yield data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]


def broken_files(data: bytes, path: Path, entry: str) -> Iterator[tuple[str, bytes, str]]:
    """(what, bytes, expected) of a .safetensors file whose metadata are under `entry`, broken as a file."""
    for eighth in EIGHTHS:
        yield f"cut at {eighth}/8", data[: len(data) * eighth // 8], REFUSED
    length = 8 + int.from_bytes(data[:8], "little")
    for number, wrong in enumerate(flipped(data, 0, 8, 4)):
        yield f"length of the header, flip {number}", wrong, REFUSED
    for number, wrong in enumerate(flipped(data, 8, length, 12)):
        yield f"header, flip {number}", wrong, EITHER
    for number, wrong in enumerate(flipped(data, length, len(data), 8)):
        yield f"tensors, flip {number}", wrong, REFUSED
    header, body = header_of(data)
    name = next(key for key, value in header.items() if value.get("dtype") == "F32")
    for claim in (len(data), 1 << 40, (1 << 64) - 1, 0):
        yield f"claims a header of {claim} bytes", claim.to_bytes(8, "little") + data[8:], REFUSED
    beyond = {**header[name], "data_offsets": [0, len(body) * 10]}
    yield "a tensor larger than the file", with_header({**header, name: beyond}, body), REFUSED
    negative = {**header[name], "data_offsets": [8, 0]}
    yield "a tensor that ends before it begins", with_header({**header, name: negative}, body), REFUSED
    huge = {**header[name], "shape": [1 << 40, 1 << 40]}
    yield "a shape beyond all memory", with_header({**header, name: huge}, body), REFUSED
    for dtype in ("F128", "F8_E4M3", "I64", "BOOL"):
        yield f"dtype {dtype}", with_header({**header, name: {**header[name], "dtype": dtype}}, body), REFUSED
    for what, text in (
        ("empty", ""),
        ("not JSON", "{"),
        ("a list", "[]"),
        ("null", "null"),
        ("ten thousand brackets", "[" * 10_000),
        ("5,000 digits", "9" * 5000),
    ):
        yield f"{entry} is {what}", with_header({**header, "__metadata__": {entry: text}}, body), REFUSED
    yield "metadata that are no text", with_header({**header, "__metadata__": {entry: 7}}, body), REFUSED
    yield "a pickle", pickle.dumps(Bomb(path)), REFUSED
    buffer = io.BytesIO()
    torch.save(Bomb(path), buffer)
    yield "a torch pickle", buffer.getvalue(), REFUSED


def set_in(content: dict[str, Any], path: str, value: Any) -> None:
    """content["a"]["b"] = value for the path "a/b"."""
    *parents, last = path.split("/")
    for key in parents:
        content = content[key]
    content[last] = value


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


# -- checkpoints of train_vtab.py (those of train_dreambooth.py are read by the same code)


class StopAt(StopRequest):
    """A signal before optimizer step `left`."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def pending(self) -> bool:
        self.left -= 1
        return self.left < 0


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
    "trainer": (7, [], {}, "x"),
    "trainer/step": (None, "x", -1, 10**6, 1.5),
    "trainer/model": (None, {}, 7),
    "trainer/optimizer": (7, [], {"0": 7}),
    "trainer/curve": (None, 7, [7]),
    "trainer/loss_sum": (None, "x"),
    "trainer/launch": (7,),
    "trainer/seconds": (None, "x"),
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
    with contextlib.suppress(Interrupted):
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


# -- settings files


BILLION = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
YAML = {
    "a list": "- 1\n- 2\n",
    "a word": "rank\n",
    "empty": "",
    "an open bracket": "a: [",
    "a tab": "rank:\n\t- 1",
    "an unknown setting": "ranks: 3\n",
    "a name that is no text": "1: 2\n",
    "a name that is a list": "? [1]\n: 2\n",
    "an escape sequence as name": '"\\e[31m\\n": 2\n',
    "rank is text": "rank: many\n",
    "rank is a fraction": "rank: 3.5\n",
    "rank is true": "rank: true\n",
    "rank is a list": "rank: [1, 2]\n",
    "rank is a mapping": "rank: {a: 1}\n",
    "rank is infinite": "rank: .inf\n",
    "rank is none": "rank:\n",
    "rank has 5,000 digits": f"rank: {'9' * 5000}\n",
    "learning_rate is not a number": "learning_rate: .nan\n",
    "learning_rate has 400 digits": f"learning_rate: {'9' * 400}\n",
    "learning_rate is infinite": "learning_rate: .inf\n",
    "learning_rate is negative": "learning_rate: -1\n",
    "output_dir is a number": "output_dir: 7\n",
    "output_dir holds a zero byte": 'output_dir: "a\\0b"\n',
    "a tag that makes an object": "rank: !!python/object/apply:os.system ['touch canary']\n",
    "a tag that imports": "rank: !!python/name:os.system\n",
    "a billion laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n" + BILLION,
    "a billion laughs as a value": "rank:\n  - &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"  - &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "a date that does not exist": "rank: 2020-13-45\n",
    "two documents": "rank: 1\n---\nrank: 2\n",
    "an anchor to itself": "rank: &a [*a]\n",
    "two thousand brackets": "rank: " + "[" * 2_000,
}
JSON = {
    "cut": '{"rank": 2',
    "a list": "[]",
    "null": "null",
    "learning_rate has 400 digits": '{"learning_rate": ' + "9" * 400 + "}",
    "ten thousand brackets": "[" * 10_000,
    "a comment": '{"rank": 2} // two',
}


def settings(root: Path) -> Iterator[Case]:
    root.mkdir(parents=True)
    files = [(f"YAML: {what}", "yaml", text.encode()) for what, text in YAML.items()]
    files += [(f"JSON: {what}", "json", text.encode()) for what, text in JSON.items()]
    files += [("latin-1", "yaml", b"instance_prompt: caf\xe9"), ("a pickle", "yaml", pickle.dumps(Bomb(root / "x")))]
    files += [("an unknown suffix", "toml", b"rank = 2")]
    for number, (what, suffix, data) in enumerate(files):
        path = root / f"{number}.{suffix}"
        path.write_bytes(data)
        for program, more in (("dreambooth", ("--instance_data", "x")), ("vtab", ("--task", "cifar"))):
            named = path.name if "output_dir holds" not in what else "output_dir"
            if any(word in what for word in ("not a number", "is infinite", "is negative")) and "rank" not in what:
                named = "learning_rate"
            yield Case("settings", what, program, (*more, "--config", str(path)), named)
    yield Case("settings", "no file", "vtab", ("--config", str(root / "none.yaml")), "none.yaml")
    yield Case("settings", "a folder", "vtab", ("--config", str(root)), root.name)


# -- results of train_vtab.py


RESULT: dict[str, Any] = {
    "task": "cifar",
    "method": "dash",
    "seed": 0,
    "val_accuracy": 50.0,
    "test_accuracy": 50.0,
    "official_split": True,
    "synthetic": False,
    "arguments": {},
}
_WRONG: dict[str, tuple[Any, ...]] = {
    "task": (None, 7, "nonsense", [], "cifar\n\x1b[31m"),
    "method": (None, 7, [], {}, ""),
    "seed": (None, "x", [], 1.5),
    "val_accuracy": (None, "x", [], float("nan"), float("inf"), 10**400),
    "test_accuracy": ("x", [], float("nan"), 10**400),
    "arguments": (None, 7, []),
}


def results(root: Path) -> Iterator[Case]:
    """Each lies beside a good result, which is to be reported all the same."""

    def case(what: str, data: bytes | None) -> Iterator[Case]:
        folder = root / str(len(list(root.glob("*"))))
        for name in ("good", "bad"):
            (folder / name).mkdir(parents=True)
        (folder / "good" / "result.json").write_text(json.dumps(RESULT))
        bad = folder / "bad" / "result.json"
        if data is None:
            bad.mkdir()
        else:
            bad.write_bytes(data)
        yield Case("result", what, "vtab", ("--report", "--output_dir", str(folder)), str(bad), SKIPPED)

    whole = json.dumps(RESULT).encode()
    for eighth in EIGHTHS:
        yield from case(f"cut at {eighth}/8", whole[: len(whole) * eighth // 8])
    for what, text in (("a list", "[]"), ("a number", "7"), ("brackets", "[" * 10_000), ("digits", "9" * 5000)):
        yield from case(what, text.encode())
    yield from case("not UTF-8", b"\xff\xfe")
    yield from case("a folder", None)
    for key, values in _WRONG.items():
        for value in values:
            yield from case(f"{key} is {str(value)[:20]}", json.dumps({**RESULT, key: value}).encode())
        if key != "test_accuracy":  # none: the test images were left closed
            yield from case(f"no {key}", json.dumps({k: v for k, v in RESULT.items() if k != key}).encode())


# -- the layout of VTAB-1k


LISTS = {
    "no label": b"images/train800/000000.png\n",
    "a word as label": b"images/train800/000000.png cat\n",
    "two minus signs": b"images/train800/000000.png --5\n",
    "a superscript as label": "images/train800/000000.png \xb2\n".encode(),
    "5,000 digits": b"images/train800/000000.png " + b"9" * 5000 + b"\n",
    "label below": b"images/train800/000000.png -1\n",
    "label above": b"images/train800/000000.png 100\n",
    "empty": b"",
    "blank": b"\n\n \n",
    "not UTF-8": b"images/caf\xe9.png 1\n",
    "a zero byte": b"images/a\0b.png 1\n",
    "climbs out": b"../../../../etc/passwd 1\n",
    "absolute path": b"/etc/passwd 1\n",
    "no such picture": b"images/train800/none.png 1\n",
    "a folder": b"images/train800 1\n",
    "an escape sequence": b"images/\x1b[31m.png x\n",
}
_SECOND = "images/train800/000001.png"
SMALL = {"train800": 4, "val200": 2, "test": 2}


def _to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def layouts(root: Path) -> Iterator[Case]:
    """Tasks on disk that are not what they should be, trained on and checked."""

    def cases(
        what: str, number: str, change: Callable[[Path], object], named: str, checked: bool = True
    ) -> Iterator[Case]:
        folder = root / number / "data"
        write_task(folder, counts=SMALL)
        change(folder / "cifar")
        run = one_run(root / number, cache_dir="none", methods=["linear"], epochs=1)
        yield Case("layout", what, "vtab", tuple(shlex.split(command(run))[2:]), named)
        if checked:
            words = ("--check_data", "--task", "cifar", "--data_root", str(folder))
            yield Case("layout", f"{what}, checked", "vtab", words, named)

    for number, (what, data) in enumerate(LISTS.items()):
        named = {"no such picture": "none.png"}.get(what, "train800")
        yield from cases(what, f"l{number}", lambda f, d=data: (f / "train800.txt").write_bytes(d), named)
    yield from cases("no list", "none", lambda f: (f / "test.txt").unlink(), "test.txt")
    yield from cases("a folder as list", "dir", lambda f: _to_folder(f / "val200.txt"), "val200.txt")
    for number, (what, _, data) in enumerate(bad_pictures()):
        # What is only too small, or transparent, is a picture to a classifier.
        if not any(word in what for word in ("1 x 1", "20000", "transparent", "not a number", "flipped")):
            checked = "cut" not in what or "4/8" in what
            yield from cases(what, f"p{number}", lambda f, d=data: (f / _SECOND).write_bytes(d), "000001.png", checked)
    for what, data in (("not UTF-8", b"caf\xe9\n"), ("two names", b"a\nb\n")):
        folder = root / f"classes-{what}" / "data"
        (write_task(folder, counts=SMALL) / "classes.txt").write_bytes(data)
        run = one_run(folder.parent, cache_dir="none", methods=["linear"], epochs=1)
        yield Case("layout", f"classes.txt: {what}", "vtab", tuple(shlex.split(command(run))[2:]), "classes.txt")


# -- trained classifiers


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

    about = json.loads(header_of(good.read_bytes())[0]["__metadata__"]["dash_vision_vtab"])
    broken = broken_files(good.read_bytes(), root / "f0" / "x", "dash_vision_vtab")
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
            content.pop("checksum", None)
            path = root / f"h{count}" / "trained.safetensors"
            path.parent.mkdir()
            save_file(load_file(good), path, {"dash_vision_vtab": json.dumps(content)})
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


def main(arguments: list[str] | None = None) -> int:
    """Write the corpus."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1 or Path(words[0]).exists():
        print("usage: python -m tests.malformed FOLDER, which must not be there yet", file=sys.stderr)
        return 2
    for case in corpus(Path(words[0])):
        print(f"{case.kind}: {case.name} ({case.expect}): {case.program} {shlex.join(case.words)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
