"""The columns of the table: the 19 tasks in the order and with the short names of the papers, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Columns of the table in the order every paper has them, with the short names they use.
GROUPS = {
    "natural": {
        "cifar": "Cifar100",
        "caltech101": "Caltech101",
        "dtd": "DTD",
        "oxford_flowers102": "Flower102",
        "oxford_iiit_pet": "Pets",
        "svhn": "SVHN",
        "sun397": "Sun397",
    },
    "specialized": {
        "patch_camelyon": "Camelyon",
        "eurosat": "EuroSAT",
        "resisc45": "Resisc45",
        "diabetic_retinopathy": "Retinopathy",
    },
    "structured": {
        "clevr_count": "Clevr-Count",
        "clevr_dist": "Clevr-Dist",
        "dmlab": "DMLab",
        "kitti": "KITTI-Dist",
        "dsprites_loc": "dSpr-Loc",
        "dsprites_ori": "dSpr-Ori",
        "smallnorb_azi": "sNORB-Azim",
        "smallnorb_ele": "sNORB-Ele",
    },
}
TASKS = {task: name for tasks in GROUPS.values() for task, name in tasks.items()}
MEAN_OF_GROUPS, MEAN_OF_TASKS = "mean of groups", "mean of 19"


@dataclass(frozen=True)
class Columns:
    """A table's: groups of tasks with their headings; and means, by name the groups of tasks that they average within
    and then over."""

    groups: Mapping[str, Mapping[str, str]]
    means: Mapping[str, Sequence[Sequence[str]]]

    @property
    def tasks(self) -> dict[str, str]:
        """The heading of every task's column."""
        return {task: heading for tasks in self.groups.values() for task, heading in tasks.items()}


OFFICIAL = Columns(
    GROUPS,
    {
        **{name: [list(tasks)] for name, tasks in GROUPS.items()},
        MEAN_OF_GROUPS: [list(tasks) for tasks in GROUPS.values()],
        MEAN_OF_TASKS: [list(TASKS)],
    },
)


def other_columns(tasks: Sequence[str]) -> Columns:
    """Of tasks that are none of the 19, such as the embedded ones, and their mean."""
    means = {"mean of others": [list(tasks)]} if len(tasks) > 1 else {}
    return Columns({"other tasks": {task: task for task in tasks}}, means)
