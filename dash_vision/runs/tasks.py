"""The 19 tasks of VTAB-1k (arXiv 1910.04867) and the five embedded ones: names, spellings, classes, sizes, groups."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from ..files.errors import InputError

TRAIN, VAL = 800, 200
SPLITS = ("train800", "val200", "train800val200", "test")
GROUPS = ("natural", "specialized", "structured")


@dataclass(frozen=True)
class Task:
    """One classification task.

    name: the folder's name in the community layout. classes: labels run from 0 to classes - 1. test: images in the
    official test split (train has 800 and val 200, always). aliases: other spellings in circulation. embedded: drawn
    by this package instead of read from disk.
    """

    name: str
    group: str
    classes: int
    test: int
    aliases: tuple[str, ...] = ()
    embedded: bool = False

    def size(self, split: str) -> int:
        """Images in a split of SPLITS."""
        return {"train800": TRAIN, "val200": VAL, "train800val200": TRAIN + VAL, "test": self.test}[split]


_ALL = (
    Task("cifar", "natural", 100, 10000, ("cifar100", "cifar_100")),
    Task("caltech101", "natural", 102, 6084, ("caltech", "caltech_101")),
    Task("dtd", "natural", 47, 1880, ("textures", "describable_textures")),
    Task("oxford_flowers102", "natural", 102, 6149, ("flowers", "flowers102", "oxford_flowers", "oxford_flowers_102")),
    Task("oxford_iiit_pet", "natural", 37, 3669, ("pets", "pet", "oxford_pet", "oxford_pets", "oxford_iiit_pets")),
    Task("svhn", "natural", 10, 26032, ("svhn_cropped",)),
    Task("sun397", "natural", 397, 21750, ("sun", "sun_397")),
    Task("patch_camelyon", "specialized", 2, 32768, ("camelyon", "pcam", "patchcamelyon")),
    Task("eurosat", "specialized", 10, 5400, ("euro_sat",)),
    Task("resisc45", "specialized", 45, 6300, ("resisc", "resisc_45")),
    Task(
        "diabetic_retinopathy",
        "specialized",
        5,
        42670,
        ("retinopathy", "retino", "diabetic", "diabetic_retinopathy_detection"),
    ),
    Task("clevr_count", "structured", 8, 15000, ("clevr_count_all", "clevr_counts")),
    Task("clevr_dist", "structured", 6, 15000, ("clevr_distance", "clevr_closest", "clevr_closest_object_distance")),
    Task("dmlab", "structured", 6, 22735, ("dm_lab",)),
    Task("kitti", "structured", 4, 711, ("kitti_dist", "kitti_distance", "kitti_closest_vehicle_distance")),
    Task(
        "dsprites_loc",
        "structured",
        16,
        73728,
        ("dsprites_location", "dsprites_position", "dsprites_xpos", "dsprites_label_x_position"),
    ),
    Task("dsprites_ori", "structured", 16, 73728, ("dsprites_orientation", "dsprites_label_orientation")),
    Task(
        "smallnorb_azi",
        "structured",
        18,
        12150,
        ("smallnorb_azimuth", "snorb_azi", "snorb_azim", "norb_azi", "smallnorb_label_azimuth"),
    ),
    Task(
        "smallnorb_ele",
        "structured",
        9,
        12150,
        ("smallnorb_elevation", "snorb_ele", "snorb_elev", "norb_ele", "smallnorb_label_elevation"),
    ),
    Task("mini_subject", "natural", 14, 2000, ("mini_kind",), embedded=True),
    Task("mini_material", "specialized", 5, 2000, ("mini_pattern",), embedded=True),
    Task("mini_count", "structured", 6, 2000, embedded=True),
    Task("mini_location", "structured", 16, 2000, ("mini_loc",), embedded=True),
    Task("mini_orientation", "structured", 16, 2000, ("mini_ori",), embedded=True),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
VTAB = tuple(name for name, task in TASKS.items() if not task.embedded)
EMBEDDED = tuple(name for name, task in TASKS.items() if task.embedded)
_SPELLINGS = {spelling: task.name for task in _ALL for spelling in (task.name, *task.aliases)}


def plain(name: str) -> str:
    """The spelling by which names are compared: lower case, words joined by single underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def find_task(name: str) -> Task:
    """The task of this name or alias, whatever its case and separators. Raises InputError with near names."""
    task = _SPELLINGS.get(plain(name))
    if task:
        return TASKS[task]
    near = list(dict.fromkeys(_SPELLINGS[s] for s in difflib.get_close_matches(plain(name), _SPELLINGS, n=4)))
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise InputError(
        f"unknown task {name!r}{hint}; the tasks are {', '.join(VTAB)}; embedded: {', '.join(EMBEDDED)}; or one of "
        "all, embedded, natural, specialized, structured"
    )


def find_tasks(names: list[str]) -> list[Task]:
    """The tasks of a list that may hold "all" (the 19), "embedded" (the five) and group names; each task once."""
    found: dict[str, Task] = {}
    for name in names:
        word = plain(name)
        if word == "all":
            chosen = [TASKS[n] for n in VTAB]
        elif word == "embedded":
            chosen = [TASKS[n] for n in EMBEDDED]
        elif word in GROUPS:
            chosen = [TASKS[n] for n in VTAB if TASKS[n].group == word]
        else:
            chosen = [find_task(name)]
        found.update({task.name: task for task in chosen})
    return list(found.values())
