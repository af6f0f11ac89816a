"""result.json files of train_vtab.py: those that are whole, and one sentence for each that is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT = "result.json"
VAL_RESULT = "val_result.json"
# Arguments that a result records and that change nothing about it, by the methods that have no use for them.
_OF_DASH = {"dash_k", "prelaunch_steps", "dash_selection", "dash_lr_scale", "eps"}
_OF_ADAPTERS = {"rank", "alpha", "target", "dropout"}


@dataclass(frozen=True)
class Result:
    """One finished run. accuracy on the test images in percent; parameters trained, head left out.

    settings: everything but task and seed that its accuracy depends on, by name, as JSON; what is unset is not in it.
    images: of the test. backbone: the model and where its weights are from, in words. undashed: of a dash, whether the
    epoch chosen came before the launch.
    """

    file: Path
    task: str
    method: str
    seed: int
    accuracy: float
    parameters: int | None
    synthetic: bool
    official: bool
    images: int
    backbone: str
    settings: Mapping[str, str]
    undashed: bool = False


def read_results(paths: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Results in files and, searched through, folders, each file once; and a sentence on each that is broken.

    A file that is cut short or of another version costs its own result only, and a path that holds nothing only itself.
    A run that kept its test images closed has no place in a table of test accuracies, and is named.
    """
    files, problems = _files(paths)
    results, closed = [], []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["test_accuracy"] is None:
                closed.append(file)
            else:
                results.append(_result(file, content))
        except (KeyError, TypeError, AttributeError, OverflowError):
            problems.append(f"{file} is no result of this version of train_vtab.py")
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{file} cannot be used ({error})")
    if closed:
        problems.append(_closed(closed))
    return results, problems


def _files(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The files to read, each once however it was reached; a sentence for each path that leads to none."""
    files: dict[Path, Path] = {}
    problems = []
    for path in paths:
        found = [path] if path.is_file() else []
        if path.is_dir():
            val_only = (p for p in path.rglob(VAL_RESULT) if not (p.parent / RESULT).exists())
            found = sorted([*path.rglob(RESULT), *val_only])
        if not found:
            what = f"{path} holds no {RESULT}" if path.exists() else f"there is nothing at {path}"
            problems.append(f"{what}; give result.json files or folders that hold some")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values()), problems


def _closed(files: Sequence[Path]) -> str:
    shown = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    verb = "is" if len(files) == 1 else "are"
    return f"{shown} {verb} of validation only; the table takes test accuracies: run train_vtab.py without --val_only"


def _result(file: Path, content: dict[str, Any]) -> Result:
    """Raises KeyError, TypeError, AttributeError or OverflowError for another kind of file, ValueError for a value."""
    accuracy, seed = float(content["test_accuracy"]), content["seed"]
    if not 0 <= accuracy <= 100:
        raise ValueError(f"its test accuracy is {accuracy}; accuracies are percentages, 0 to 100")
    names = content["task"], content["method"]
    if type(seed) is not int or not all(isinstance(name, str) and name.strip() for name in names):
        raise TypeError
    if not all(name.isprintable() for name in names):
        raise ValueError("the name of its task or method has control characters")
    sizes = content.get("sizes", {})
    parameters = sizes.get("parameters", {}).get("trained_without_head")
    if parameters is not None and not 0 <= parameters < 1e15:
        raise ValueError(f"it says that {parameters} parameters were trained"[:80])
    settings = _settings(content)
    return Result(
        file,
        content["task"],
        content["method"],
        seed,
        accuracy,
        None if parameters is None else int(parameters),
        bool(content["synthetic"]),
        bool(content["official_split"]) and not content["synthetic"],
        int(sizes.get("images", {}).get("test", 0)),
        _backbone(settings),
        {name: _text(value) for name, value in settings.items()},
        _undashed(content),
    )


def _undashed(content: dict[str, Any]) -> bool:
    """Whether the model tested has no shifts though the run's dash was launched; False where it is not recorded."""
    if content.get("launch", {}) is not None:
        return False
    selection = content["selection"]
    return any(score["launched"] for score in selection["curves"][selection["candidate"]])


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """Model, normalization and arguments of a run; those that are unset or that its method has no use for left out."""
    values = dict(content.get("arguments", {}))
    method = str(values.get("method", content["method"]))
    if method != "dash":
        values = {name: value for name, value in values.items() if name not in _OF_DASH}
    if method not in ("dash", "lora"):
        values = {name: value for name, value in values.items() if name not in _OF_ADAPTERS}
    if values.get("alpha") == values.get("rank"):  # what an unset alpha means
        values["alpha"] = None
    values["model"] = content.get("model", values.get("model"))
    normalization = content.get("normalization")
    if normalization is not None:  # the numbers: "checkpoint" says which only beside the checkpoint
        values["normalization"] = _normalization(tuple(normalization["mean"]), tuple(normalization["std"]))
    values.update({f"peft.{name}": value for name, value in (values.pop("peft", None) or {}).items()})
    for name in ("task", "seed"):
        values.pop(name, None)
    return {name: value for name, value in values.items() if value is not None and value is not False and value != []}


def _normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """A mean and standard deviation of RGB in words where they are common ones, else in numbers."""
    common: dict[Any, str] = {
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "imagenet",
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "half",
        ((0, 0, 0), (1, 1, 1)): "none",
    }
    return common.get((mean, std), f"{json.dumps(mean)} / {json.dumps(std)}")


def _backbone(settings: Mapping[str, Any]) -> str:
    """The model, and what makes it another than the one of that name; "" where it is not recorded."""
    parts = [
        settings.get("model"),
        settings.get("checkpoint"),
        f"revision {settings['revision']}" if "revision" in settings else None,
        "random weights" if settings.get("random_weights") else None,
        f"{settings['image_size']} pixels" if "image_size" in settings else None,
    ]
    return ", ".join(_text(part) for part in parts if part is not None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value, sort_keys=True)
