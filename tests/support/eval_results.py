"""Results of VTAB runs, written without training."""

from tests.support.records import vtab_record, write_record

ARGUMENTS = {"batch_size": 8, "prelaunch_steps": 5}
IMAGES = {"train800": 800, "val200": 200, "train800val200": 1000, "test": 10000}


def results(folder, method, accuracies, seeds=(0,), **changes):
    """result.json of a run for every task and seed. changes: fields exchanged; of arguments and images, added."""
    for name, usual in (("arguments", ARGUMENTS), ("images", IMAGES)):
        value = changes.get(name, {})
        changes[name] = {**usual, **value} if isinstance(value, dict) else value
    for task, accuracy in accuracies.items():
        for seed in seeds:
            own = {"task": task, "method": method, "seed": seed, "test_accuracy": accuracy + seed}
            write_record(folder / task / method / f"seed{seed}" / "result.json", vtab_record(**{**own, **changes}))
