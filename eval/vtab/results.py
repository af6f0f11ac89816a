"""result.json files of train_vtab.py: those that are whole, and one sentence for each that is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dash_vision.files.errors import InputError
from dash_vision.runs.record import RESULT, VAL_RESULT, VtabRecord

from ..runs import VtabRun, read_vtab_run

# Arguments that a result records and that change nothing about it, by the methods that have no use for them.
_OF_DASH = {"dash_k", "prelaunch_steps", "dash_selection", "dash_lr", "dash_eps"}
_OF_ADAPTERS = {"rank", "lora_alpha", "lora_target", "lora_dropout"}


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
            run = read_vtab_run(file)
            if run.record.test_accuracy is None:
                closed.append(file)
            else:
                results.append(_result(file, run))
        except InputError as error:
            problems.append(str(error))
        except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
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


def _result(file: Path, run: VtabRun) -> Result:
    """Raises KeyError, TypeError, AttributeError or OverflowError for another kind of file, ValueError for a value."""
    record = run.record
    if not all(name.isprintable() for name in (record.task, record.method)):
        raise ValueError("the name of its task or method has control characters")
    parameters = (record.parameters or {}).get("trained_without_head")
    if parameters is not None and not 0 <= parameters < 1e15:
        raise ValueError(f"it says that {parameters} parameters were trained"[:80])
    settings = _settings(record)
    assert record.test_accuracy is not None
    return Result(
        file,
        record.task,
        record.method,
        record.seed,
        record.test_accuracy,
        parameters,
        record.synthetic,
        record.official_split and not record.synthetic,
        record.images.get("test", 0),
        _backbone(settings),
        {name: _text(value) for name, value in settings.items()},
        run.undashed,
    )


def _settings(record: VtabRecord) -> dict[str, Any]:
    """Model, normalization and arguments of a run; those that are unset or that its method has no use for left out."""
    values = dict(record.arguments)
    method = str(values.get("method", record.method))
    if method != "dash":
        values = {name: value for name, value in values.items() if name not in _OF_DASH}
    if method not in ("dash", "lora"):
        values = {name: value for name, value in values.items() if name not in _OF_ADAPTERS}
    if values.get("lora_alpha") == values.get("rank"):  # what an unset alpha means
        values["lora_alpha"] = None
    values["model"] = record.model
    # The numbers: "checkpoint" says which only beside the checkpoint.
    values["normalization"] = _normalization(tuple(record.normalization["mean"]), tuple(record.normalization["std"]))
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
