"""Results of VTAB runs, written without training."""

import json


def results(folder, method, accuracies, seeds=(0,), **changes):
    for task, accuracy in accuracies.items():
        for seed in seeds:
            place = folder / task / method / f"seed{seed}"
            place.mkdir(parents=True)
            content = {
                "task": task,
                "method": method,
                "seed": seed,
                "synthetic": False,
                "official_split": True,
                "val_accuracy": 1.0,
                "test_accuracy": accuracy + seed,
                "sizes": {"parameters": {"trained_without_head": 290_000}},
                **changes,
            }
            (place / "result.json").write_text(json.dumps(content))
