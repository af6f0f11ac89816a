"""The tasks' names, spellings and sizes."""

import pytest

from dash_vision.runs.tasks import EMBEDDED, GROUPS, SPLITS, TASKS, VTAB, find_task, find_tasks, plain

# Classes and test images of the VTAB-1k benchmark.
PUBLISHED = {
    "cifar": (100, 10000),
    "caltech101": (102, 6084),
    "dtd": (47, 1880),
    "oxford_flowers102": (102, 6149),
    "oxford_iiit_pet": (37, 3669),
    "svhn": (10, 26032),
    "sun397": (397, 21750),
    "patch_camelyon": (2, 32768),
    "eurosat": (10, 5400),
    "resisc45": (45, 6300),
    "diabetic_retinopathy": (5, 42670),
    "clevr_count": (8, 15000),
    "clevr_dist": (6, 15000),
    "dmlab": (6, 22735),
    "kitti": (4, 711),
    "dsprites_loc": (16, 73728),
    "dsprites_ori": (16, 73728),
    "smallnorb_azi": (18, 12150),
    "smallnorb_ele": (9, 12150),
}


def test_the_nineteen_tasks_have_the_published_classes_and_sizes():
    assert {name: (TASKS[name].classes, TASKS[name].test) for name in VTAB} == PUBLISHED


def test_groups_have_seven_four_and_eight_tasks_and_every_group_has_an_embedded_one():
    count = {g: sum(TASKS[n].group == g for n in VTAB) for g in GROUPS}
    assert count == {"natural": 7, "specialized": 4, "structured": 8}
    assert {TASKS[n].group for n in EMBEDDED} == set(GROUPS)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_on_eight_hundred_and_validates_on_two_hundred(name):
    sizes = [TASKS[name].size(split) for split in SPLITS]
    assert sizes[:3] == [800, 200, 1000]
    assert sizes[3] == (2000 if name in EMBEDDED else PUBLISHED[name][1])


def test_spellings_are_plain_and_belong_to_one_task_each():
    owners = {}
    for task in TASKS.values():
        for spelling in (task.name, *task.aliases):
            assert plain(spelling) == spelling
            assert owners.setdefault(spelling, task.name) == task.name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("cifar100", "cifar"),
        ("CIFAR-100", "cifar"),
        ("Caltech101", "caltech101"),
        ("oxford_pet", "oxford_iiit_pet"),
        ("Flowers102", "oxford_flowers102"),
        ("dSprites/label_orientation", "dsprites_ori"),
        ("sNORB-azim", "smallnorb_azi"),
        ("smallnorb_elevation", "smallnorb_ele"),
        ("clevr-closest", "clevr_dist"),
        ("kitti distance", "kitti"),
        ("PCAM", "patch_camelyon"),
    ],
)
def test_common_spellings_are_understood(spelling, name):
    assert find_task(spelling).name == name


def test_words_for_several_tasks():
    assert [t.name for t in find_tasks(["all"])] == list(VTAB)
    assert [t.name for t in find_tasks(["embedded"])] == list(EMBEDDED)
    assert len(find_tasks(["specialized", "pcam", "Specialized"])) == 4


def test_an_unknown_task_is_answered_with_near_names():
    with pytest.raises(ValueError, match=r"unknown task 'cifer100' \(did you mean cifar.*\?\); the tasks are"):
        find_task("cifer100")
    with pytest.raises(ValueError, match="embedded: mini_subject"):
        find_task("imagenet")
