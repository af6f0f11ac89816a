"""result.json files of train_vtab.py: those that are whole, and one sentence for each that is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import EvalError


@dataclass(frozen=True)
class Result:
    """One finished run. accuracy on the test images in percent; parameters trained, head left out."""

    task: str
    method: str
    seed: int
    accuracy: float
    parameters: int | None
    notes: tuple[str, ...]


def read_results(paths: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Results in files and, searched through, folders; and a sentence on each that is broken. Raises EvalError.

    A file that is cut short or of another version costs its own result only. A run that kept its test images closed
    has no place in a table of test accuracies, and is named.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise EvalError(f"there is nothing at {path}; give result.json files or folders that hold some")
        files += sorted(path.rglob("result.json")) if path.is_dir() else [path]
    results, problems = [], []
    for file in files:
        try:
            results.append(_result(json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{file} cannot be read ({error})")
        except (KeyError, TypeError, AttributeError, OverflowError):
            problems.append(f"{file} is no result of this version of train_vtab.py")
    return results, problems


def _result(content: dict[str, Any]) -> Result:
    notes = []
    if content["synthetic"]:
        notes.append(f"{content['task']} is synthetic")
    elif not content["official_split"]:
        notes.append(f"{content['task']} is not the official split; not comparable with published numbers")
    parameters = content.get("sizes", {}).get("parameters", {}).get("trained_without_head")
    return Result(
        str(content["task"]),
        str(content["method"]),
        int(content["seed"]),
        float(content["test_accuracy"]),
        None if parameters is None else int(parameters),
        tuple(notes),
    )
