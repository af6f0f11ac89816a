"""Settings files, results, and the lists of VTAB-1k."""

from __future__ import annotations

import json
import pickle
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dash_vision.classification.sweep import command
from tests.malformed.cases import EIGHTHS, SKIPPED, Case
from tests.malformed.files import Bomb
from tests.malformed.pictures import bad_pictures
from tests.support.vtab import one_run, write_task

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
    "dash_k is none": "dash_k:\n",
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
