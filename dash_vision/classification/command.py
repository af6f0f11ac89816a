"""The command line of VTAB: `python train_vtab.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..files.errors import InputError, RunError, Stopped, one_line
from ..miniature import MINIATURE
from ..runs import faults
from ..runs.cores import choose_threads
from ..runs.settings import EXIT_STATUS, parse
from .config import VtabConfig

DESCRIPTION = "Fine-tune a timm vision transformer on the 19 tasks of VTAB-1k, with LoRA-Dash or a method to compare."
EPILOG = f"""\
examples:
  python train_vtab.py --task mini_location                      offline, in minutes (a synthetic task)
  python train_vtab.py --download --data_root data/vtab-1k       the data of all 19 tasks
  python train_vtab.py --task cifar100 --method dash --seed 0
  python train_vtab.py --task all --methods lora dash --seeds 0 1 2
  accelerate launch train_vtab.py --task sun397

{EXIT_STATUS}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do what is asked for, report; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with faults.printable_streams():
        config = parse(VtabConfig, DESCRIPTION, EPILOG, words)
        try:
            return _main(config)
        except Exception as error:
            return faults.fail(faults.report(error, Path(config.output_dir).expanduser(), words), 1)


def _main(config: VtabConfig) -> int:
    try:
        choose_threads(small=all(run.model == MINIATURE for run in config.runs()))
        return _run(config)
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint is kept", file=sys.stderr)
        return 130
    except Stopped as stopped:
        without = " without --overwrite" if config.overwrite else ""
        print(f"{stopped}; run the same command again{without} to go on", file=sys.stderr)
        return 128 + stopped.signum
    except InputError as error:
        return faults.fail(error, 2)
    except RunError as error:
        return faults.fail(error, 1)
    except (RuntimeError, MemoryError) as error:
        return faults.fail(_explained(error), 1)
    except OSError as error:
        return faults.fail(f"{error.strerror or error}: {error.filename or 'disk'}; check space and rights", 2)


def _run(config: VtabConfig) -> int:
    if config.download:
        return download(config)
    if config.check_data:
        return check_data(config)
    if config.report:
        return report(config)
    if not config.task:
        raise InputError("--task is missing; for a first try that needs no data: --task mini_location")
    return train(config)


def _explained(error: Exception) -> str:
    """What an error of torch means to the user; raises it again where it means nothing."""
    from ..runs.runtime import compile_failure, memory_failure

    advice = "try a smaller --train_batch_size and --eval_batch_size, or --mixed_precision bf16; checkpoints are kept"
    known = compile_failure(error) or memory_failure(error, advice)
    if known:
        return known
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise error
    # torch has no error of its own for a peer that is gone: gloo's is a plain RuntimeError.
    return (
        "another process of this run has ended or cannot be reached; the last checkpoint is kept, run the same command "
        "again to go on"
    )


def train(config: VtabConfig) -> int:
    """Do every run that is asked for and not done, and print the table of all results."""
    if not config.print_commands:
        _look(config)
    # Late, so that --help, wrong settings and missing data do not wait for torch and timm.
    from ..runs.signals import catching_signals
    from .run import finished
    from .sweep import command, runtime_of, sweep, sweep_on_ray, write_summary

    if config.print_commands:
        runs = config.runs(int(os.environ.get("WORLD_SIZE", "1")))
        print("\n".join(command(run) for run in runs if finished(run) is None), flush=True)
        return 0
    if config.executor == "ray":
        tally, main_process = sweep_on_ray(config.runs()), True
    else:
        with catching_signals() as stop:
            runtime = runtime_of(config)
            try:
                tally, main_process = sweep(config.runs(runtime.world), runtime, stop), runtime.main
            finally:
                runtime.close()
    if main_process:
        print("\n".join(write_summary(Path(config.output_dir))))
        print("\n".join(f"failed: {text}" for text in tally.failed), file=sys.stderr, end="\n" if tally.failed else "")
    return 1 if tally.failed else 0


def _look(config: VtabConfig) -> None:
    """Raises InputError where runs that have no record yet lack the data of their task, as far as a glance tells."""
    from ..runs.record import record_file
    from .layout import data_root, task_folder

    if config.executor == "ray":  # whose machines have data of their own
        return
    wanting = {run.task.name: run.task for run in config.runs() if record_file(run.folder) is None}
    for task in wanting.values():
        if not task.embedded:
            task_folder(data_root(config.data_root), task)


def report(config: VtabConfig) -> int:
    """Print the table of the results in --output_dir."""
    from .sweep import write_summary

    print("\n".join(write_summary(Path(config.output_dir))))
    return 0


def check_data(config: VtabConfig) -> int:
    """Verify the data of the tasks asked for, or of every task that is there."""
    from ..runs.tasks import find_tasks
    from .check import check_task
    from .layout import data_root, present_tasks

    root = data_root(config.data_root)
    asked = [task for task in config.tasks() if not task.embedded]
    tasks = asked or present_tasks(root, find_tasks(["all"]))
    if not tasks:
        raise InputError(f"{root.resolve()} holds none of the tasks; fetch them with --download, or give --data_root")
    problems = 0
    for task in tasks:
        checked = check_task(root, task)
        print("\n".join(map(one_line, checked.lines())), flush=True)
        problems += len(checked.problems)
    return 1 if problems else 0


def download(config: VtabConfig) -> int:
    """Fetch the data and verify it."""
    from .download import download as fetch
    from .layout import data_root

    root = data_root(config.data_root)
    written = fetch(root, revision=config.data_revision)
    print(f"{root}: {len(written)} tasks written ({', '.join(written) or 'all were there already'}); checking them")
    config.task = ["all"]
    return check_data(config)
