"""Reading the community layout of VTAB-1k from disk.

`<root>/<task>/{train800,val200,train800val200,test}.txt`, each with lines `images/<split>/000000.jpg <label>`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..files.errors import InputError
from ..runs.tasks import SPLITS, Task, plain

DEFAULT_ROOT = Path("data/vtab-1k")
HUB_DATASET = "XiN0919/VTAB-1k"
HUB_SIZE = "4.7 GB to download, about 10 GB while it is unpacked"


@dataclass(frozen=True)
class Listing:
    """One split as its list file has it: image paths and labels, in the file's order."""

    file: Path
    paths: list[Path]
    labels: list[int]


def data_root(given: str | os.PathLike[str] | None) -> Path:
    """The folder of all tasks: as given, else $VTAB_ROOT, else data/vtab-1k."""
    return Path(given or os.environ.get("VTAB_ROOT") or DEFAULT_ROOT).expanduser()


def task_folder(root: Path, task: Task) -> Path:
    """The task's folder under `root`, under its own name or any of its aliases, whatever the case.

    Raises InputError that says where it looked, how large the data is and which command fetches it.
    """
    spellings = {task.name, *task.aliases}
    if root.is_dir():
        folders = sorted(p for p in root.iterdir() if p.is_dir() and plain(p.name) in spellings)
        folders.sort(key=lambda p: plain(p.name) != task.name)  # its own name before any alias
        if folders:
            return folders[0]
    why = f"it has no folder {task.name}" if root.is_dir() else "that folder does not exist"
    raise InputError(
        f"no data for task {task.name} in {root.resolve()}: {why}. Fetch it with `python train_vtab.py --download "
        f"--data_root {root}` (all 19 tasks, {HUB_SIZE}, from the hub dataset {HUB_DATASET}), or name the folder that "
        "holds the tasks with --data_root or $VTAB_ROOT. The embedded tasks need no data: --task mini_location"
    )


def present_tasks(root: Path, tasks: list[Task]) -> list[Task]:
    """Those of `tasks` that have a folder under `root`."""
    spellings = {plain(p.name) for p in root.iterdir() if p.is_dir()} if root.is_dir() else set()
    return [task for task in tasks if spellings & {task.name, *task.aliases}]


def read_split(folder: Path, task: Task, split: str) -> Listing:
    """The listing of a split, its labels checked against the task's classes; opens no image.

    A missing train800val200.txt is made up of train800 and val200. Raises InputError, naming file and line.
    """
    file = folder / f"{split}.txt"
    if split == "train800val200" and not file.exists():
        train, val = read_split(folder, task, "train800"), read_split(folder, task, "val200")
        return Listing(file, train.paths + val.paths, train.labels + val.labels)
    listing = parse_listing(folder, split)
    for line, label in enumerate(listing.labels, 1):
        if not 0 <= label < task.classes:
            raise InputError(
                f"{file}, line {line}: label {label}, but {task.name} has the labels 0 to {task.classes - 1}; this is "
                "another task's list or a damaged one. `python train_vtab.py --check_data` finds all such lines"
            )
    return listing


def parse_listing(folder: Path, split: str) -> Listing:
    """The lines of a split's list file, whatever its labels. Raises InputError for a missing file or a bad line."""
    file = folder / f"{split}.txt"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(
            f"{file} is not there; the layout is {folder.name}/{{{','.join(SPLITS)}}}.txt with lines "
            "`images/<split>/000000.jpg <label>`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from None
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or "\0" in name or not re.fullmatch("-?[0-9]{1,9}", label):
            raise InputError(f"{file}, line {number}: expected `<image path> <label>`, got {line.strip()[:80]!r}")
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(
                f"{file}, line {number}: {name[:80]!r} leads out of {folder.name}; paths begin with images/"
            )
        paths.append(folder / name.strip())
        labels.append(int(label))
    if not paths:
        raise InputError(f"{file} is empty; fetch the data again with --download")
    return Listing(file, paths, labels)


def class_names(folder: Path, task: Task) -> list[str]:
    """One name per class from an optional classes.txt in the task's folder, else "class 0", "class 1", ..."""
    file = folder / "classes.txt"
    if file.is_file():
        try:
            names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8, or remove it") from None
        if len(names) != task.classes:
            raise InputError(f"{file} has {len(names)} names, but {task.name} has {task.classes} classes")
        return names
    return [f"class {i}" for i in range(task.classes)]
