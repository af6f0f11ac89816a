"""`--check_data`: is what lies on disk the data that the protocol means?"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..files.errors import InputError
from ..pictures.colour import IGNORED
from ..pictures.decode import Refused, read_picture
from ..runs.tasks import SPLITS, Task
from .layout import Listing, parse_listing, task_folder

_SHOWN = 3  # examples named per problem


@dataclass
class TaskReport:
    """What was found in one task's folder. problems make results wrong; warnings say what they differ from."""

    task: str
    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The report for a terminal."""
        state = "PROBLEMS" if self.problems else "ok, with warnings" if self.warnings else "ok"
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        yield f"{self.task}: {state} ({counts}) in {self.folder}"
        yield from (f"  problem: {text}" for text in self.problems)
        yield from (f"  warning: {text}" for text in self.warnings)


@dataclass(frozen=True)
class _Looked:
    """One image file: the hash of its bytes (None if it is not there), its kind and size, or why it cannot be read."""

    digest: str | None
    kind: str = ""
    size: tuple[int, int] = (0, 0)  # height, width
    error: str = ""
    bad_profile: bool = False


def check_task(root: Path, task: Task) -> TaskReport:
    """Verify one task under `root`; opens and decodes every image. Raises InputError if the task is not there."""
    folder = task_folder(root, task)
    report = TaskReport(task.name, folder)
    listings = dict(_read_lists(folder, report))
    for split, listing in listings.items():
        report.counts[split] = len(listing.paths)
        _check_counts(report, task, split, listing)
        _check_labels(report, task, split, listing)
    looked = _look_at_all({path for listing in listings.values() for path in listing.paths})
    _check_readable(report, looked)
    _check_overlap(report, listings, looked)
    _check_union(report, listings)
    _check_small_jpeg(report, looked)
    _check_profiles(report, looked)
    return report


def _read_lists(folder: Path, report: TaskReport) -> Iterator[tuple[str, Listing]]:
    for split in SPLITS:
        if split == "train800val200" and not (folder / f"{split}.txt").exists():
            report.warnings.append(f"{split}.txt is not there; train800 and val200 together will be used for it")
            continue
        try:
            yield split, parse_listing(folder, split)
        except InputError as error:
            report.problems.append(str(error))


def _check_counts(report: TaskReport, task: Task, split: str, listing: Listing) -> None:
    expected, found = task.size(split), len(listing.paths)
    if found == expected:
        return
    text = f"{split} lists {found} images, the official split has {expected}"
    if split == "test":
        report.warnings.append(f"{text}: accuracies measured here cannot be compared with published ones")
    else:
        report.problems.append(f"{text}; fetch the data again with --download")


def _check_labels(report: TaskReport, task: Task, split: str, listing: Listing) -> None:
    wrong = [(i, label) for i, label in enumerate(listing.labels) if not 0 <= label < task.classes]
    if wrong:
        line, label = wrong[0]
        report.problems.append(
            f"{split}.txt: {len(wrong)} labels outside 0 to {task.classes - 1}, the first is {label} for "
            f"{listing.paths[line].name}"
        )
    if split == "train800val200":
        missing = task.classes - len({label for label in listing.labels if 0 <= label < task.classes})
        if missing:
            report.warnings.append(f"{split}.txt has no example of {missing} of the {task.classes} classes")


def _look_at_all(paths: set[Path]) -> dict[Path, _Looked]:
    ordered = sorted(paths)
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(ordered, pool.map(_look_at, ordered), strict=True))


def _look_at(path: Path) -> _Looked:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return _Looked(None, error=error.strerror or str(error))
    try:
        picture = read_picture(path, upright=False)
    except Refused as reason:
        return _Looked(digest, error=f"no readable image: {reason}")
    return _Looked(digest, picture.format, picture.original_size, bad_profile=IGNORED in picture.remarks)


def _check_readable(report: TaskReport, looked: dict[Path, _Looked]) -> None:
    bad = {path: found.error for path, found in looked.items() if found.error}
    if bad:
        shown = "; ".join(f"{path.relative_to(report.folder)} ({why})" for path, why in list(bad.items())[:_SHOWN])
        report.problems.append(f"{len(bad)} image files cannot be read: {shown}; fetch the data again with --download")


def _check_overlap(report: TaskReport, listings: dict[str, Listing], looked: dict[Path, _Looked]) -> None:
    """The same bytes in a training and a test split, or in train800 and val200."""
    owners = {
        split: {digest: path for path in listing.paths if (digest := looked[path].digest)}
        for split, listing in listings.items()
    }
    for first, second, harm in (
        ("train800val200", "test", "test accuracy measures memory"),
        ("train800", "test", "test accuracy measures memory"),
        ("train800", "val200", "the epoch is chosen on images that were trained on"),
    ):
        common = owners.get(first, {}).keys() & owners.get(second, {}).keys()
        if common:
            pairs = [(owners[first][d].name, owners[second][d].name) for d in sorted(common)[:_SHOWN]]
            shown = ", ".join(f"{a} = {b}" for a, b in pairs)
            report.problems.append(f"{len(common)} images are both in {first} and in {second} ({shown}): {harm}")


def _check_union(report: TaskReport, listings: dict[str, Listing]) -> None:
    if not {"train800", "val200", "train800val200"} <= listings.keys():
        return
    parts = listings["train800"], listings["val200"]
    separate = Counter(pair for part in parts for pair in zip(part.paths, part.labels, strict=True))
    together = Counter(zip(listings["train800val200"].paths, listings["train800val200"].labels, strict=True))
    if separate != together:
        count = sum(((separate - together) + (together - separate)).values())
        report.problems.append(f"train800val200.txt is not train800 and val200 together: {count} lines differ")


def _check_small_jpeg(report: TaskReport, looked: dict[Path, _Looked]) -> None:
    small = [path for path, found in looked.items() if found.kind == "JPEG" and max(found.size) <= 32]
    if small:
        report.warnings.append(
            f"{len(small)} images of 32x32 pixels are stored as JPEG ({small[0].name}): the compression destroys what "
            "such small pictures show; users report about 70 instead of 80 % on CIFAR-100 from such copies. Use a copy "
            "that stores them as PNG"
        )


def _check_profiles(report: TaskReport, looked: dict[Path, _Looked]) -> None:
    bad = [path for path, found in looked.items() if found.bad_profile]
    if bad:
        report.warnings.append(
            f"{len(bad)} images have a colour profile that cannot be used ({bad[0].name}); it is ignored"
        )
