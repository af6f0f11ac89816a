"""Fine-tune a vision transformer on VTAB-1k: python train_vtab.py --task cifar100

Chooses the epoch on val200 after training on train800, trains again on train800val200, tests once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dash_vision.classification.config import VtabConfig
from dash_vision.classification.runtime import INTERRUPTED
from dash_vision.files.errors import InputError, one_line
from dash_vision.runs.runtime import compile_failure
from dash_vision.runs.settings import parse, reader_gone

DESCRIPTION = (
    "Fine-tune a timm vision transformer on the 19 tasks of VTAB-1k with LoRA-Dash, or with what to compare it to."
)
EPILOG = """\
examples:
  python train_vtab.py --task mini_location                      offline, in minutes (a synthetic task)
  python train_vtab.py --download --data_root data/vtab-1k       the data of all 19 tasks
  python train_vtab.py --task cifar100 --method dash --seed 0
  python train_vtab.py --task all --methods lora dash --seeds 0 1 2
  accelerate launch train_vtab.py --task sun397

exit status: 0 done; 1 a run diverged, or --check_data found problems; 2 something cannot be used as given;
75 stopped by a signal after writing a checkpoint: the same command goes on from it; 130 stopped by a second Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do what is asked for, report; the exit status."""
    config = parse(VtabConfig, DESCRIPTION, EPILOG, arguments)
    # timm is imported only now: --help and typing errors answer sooner.
    from dash_vision.classification.runtime import Interrupted
    from dash_vision.files.errors import InputError

    try:
        if config.download:
            return download(config)
        if config.check_data:
            return check_data(config)
        if config.report:
            return report(config)
        if not config.task:
            raise InputError("--task is missing; for a first try that needs no data: --task mini_location")
        return train(config)
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint is kept", file=sys.stderr)
        return 130
    except Interrupted as stopped:
        without = " without --overwrite" if config.overwrite else ""
        print(f"{stopped}; run the same command again{without} to go on", file=sys.stderr)
        return INTERRUPTED
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    except RuntimeError as error:
        uncompiled = compile_failure(error)
        if uncompiled:
            print(f"error: {uncompiled}", file=sys.stderr)
            return 1
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        # torch has no error of its own for a peer that is gone: gloo's is a plain RuntimeError.
        print(
            "error: another process of this run has ended or cannot be reached; the last checkpoint is kept, run the "
            "same command again to go on",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        return reader_gone()
    except OSError as error:
        where = one_line(error.filename or "disk")
        print(f"error: {error.strerror or error}: {where}; check space and rights", file=sys.stderr)
    return 2


def train(config: VtabConfig) -> int:
    """Do every run that is asked for and not done, and print the table of all results."""
    from dash_vision.classification.run import finished
    from dash_vision.classification.runtime import make_runtime
    from dash_vision.classification.sweep import command, sweep, sweep_on_ray, write_summary
    from dash_vision.runs.signals import catching_signals

    runs = config.runs()
    if config.print_commands:
        print("\n".join(command(run) for run in runs if finished(run) is None), flush=True)
        return 0
    if config.executor == "ray":
        tally, main_process = sweep_on_ray(runs), True
    else:
        with catching_signals() as stop:
            runtime = make_runtime(config.device, config.mixed_precision)
            try:
                tally, main_process = sweep(runs, runtime, stop), runtime.main
            finally:
                runtime.close()
    if main_process:
        print("\n".join(write_summary(Path(config.output_dir))))
        print("\n".join(f"failed: {text}" for text in tally.failed), file=sys.stderr, end="\n" if tally.failed else "")
    return 1 if tally.failed else 0


def report(config: VtabConfig) -> int:
    """Print the table of the results in --output_dir."""
    from dash_vision.classification.sweep import write_summary

    print("\n".join(write_summary(Path(config.output_dir))))
    return 0


def check_data(config: VtabConfig) -> int:
    """Verify the data of the tasks asked for, or of every task that is there."""
    from dash_vision.classification.check import check_task
    from dash_vision.classification.layout import data_root, present_tasks
    from dash_vision.runs.tasks import find_tasks

    root = data_root(config.data_root)
    asked = [task for task in config.tasks() if not task.embedded]
    tasks = asked or present_tasks(root, find_tasks(["all"]))
    if not tasks:
        raise InputError(f"{root.resolve()} holds none of the tasks; fetch them with --download, or give --data_root")
    problems = 0
    for task in tasks:
        found = check_task(root, task)
        print("\n".join(map(one_line, found.lines())), flush=True)
        problems += len(found.problems)
    return 1 if problems else 0


def download(config: VtabConfig) -> int:
    """Fetch the data and verify it."""
    from dash_vision.classification.download import download as fetch
    from dash_vision.classification.layout import data_root

    root = data_root(config.data_root)
    written = fetch(root, revision=config.data_revision)
    print(f"{root}: {len(written)} tasks written ({', '.join(written) or 'all were there already'}); checking them")
    config.task = ["all"]
    return check_data(config)


if __name__ == "__main__":
    sys.exit(main())
