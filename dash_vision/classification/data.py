"""One task's images and labels, ready for training: what lies on disk, or what the miniature's renderer draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..runs.tasks import SPLITS, Task
from . import embedded
from .cache import Images, cached, whole
from .layout import class_names, data_root, read_split, task_folder
from .protocol import SealedTest


@dataclass
class Split:
    """Images [n, 3, size, size] uint8 and labels [n] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass
class TaskData:
    """What a run may touch: two open splits, loaded when first asked for, and the sealed test split."""

    task: Task
    source: str
    sizes: dict[str, int]
    classes: list[str]
    test: SealedTest
    _load: Callable[[str], Split]

    def split(self, name: str) -> Split:
        """train800, val200 or train800val200."""
        if name not in SPLITS[:3]:
            raise ValueError(f"split is one of {', '.join(SPLITS[:3])}, got {name!r}")
        return self._load(name)

    @property
    def official(self) -> bool:
        """Whether every split has the size of the official one."""
        return not self.task.embedded and all(self.sizes[s] == self.task.size(s) for s in SPLITS)


def load_task(task: Task, root: str | None, size: int, cache: Path | None) -> TaskData:
    """The task at size x size pixels. Its lists are read and checked at once, its images when they are needed.

    root: the folder of all tasks (see layout.data_root), not used by embedded tasks. cache: folder for decoded
    images, or None. Raises InputError for data that is missing or wrong.
    """
    return _embedded(task, size, cache) if task.embedded else _from_disk(task, data_root(root), size, cache)


def _from_disk(task: Task, root: Path, size: int, cache: Path | None) -> TaskData:
    folder = task_folder(root, task)
    listings = {split: read_split(folder, task, split) for split in SPLITS}

    def images(split: str) -> Images:
        return cached(f"{task.name}-{split}", listings[split].paths, size, cache)

    def load(split: str) -> Split:
        return Split(whole(images(split)), torch.tensor(listings[split].labels))

    return TaskData(
        task=task,
        source=str(folder),
        sizes={split: len(listing.labels) for split, listing in listings.items()},
        classes=class_names(folder, task),
        test=SealedTest(lambda: images("test"), torch.tensor(listings["test"].labels)),
        _load=load,
    )


def _embedded(task: Task, size: int, cache: Path | None) -> TaskData:
    def load(split: str) -> Split:
        return Split(whole(embedded.images(task, split, size, cache)), embedded.labels(task, split))

    return TaskData(
        task=task,
        source="synthetic: drawn by dash_vision.miniature",
        sizes={split: task.size(split) for split in SPLITS},
        classes=embedded.class_names(task),
        test=SealedTest(lambda: embedded.images(task, "test", size, cache), embedded.labels(task, "test")),
        _load=load,
    )
