"""Many runs: skip what is done, go on with what was begun, and say how far along the whole is."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..files.atomic import FolderInUse, write_json
from ..files.errors import InputError, RunError, one_line
from ..runs.record import RESULT, VAL_RESULT, VtabRecord, read_record
from ..runs.runtime import Runtime, make_runtime, usual_precision
from ..runs.signals import StopRequest
from ..runs.tasks import TASKS, find_task
from .config import Run, VtabConfig
from .display import Display, Work, duration
from .results import render, summarize
from .run import execute, finished, open_data

SUMMARY = "summary.json"

# Settings that name the runs or act on all of them: a command for one run has its own.
_NOT_PASSED_ON = {
    "task",
    "methods",
    "peft_config",
    "seeds",
    "print_commands",
    "executor",
    "report",
    "check_data",
    "download",
}


@dataclass
class Tally:
    """What became of a sweep's runs."""

    done: list[VtabRecord] = field(default_factory=list)
    skipped: int = 0
    failed: list[str] = field(default_factory=list)


def pending_runs(runs: Sequence[Run], tally: Tally) -> tuple[list[Run], list[Work]]:
    """The runs that are not done, with the work of each; finished ones go into the tally. Raises InputError where a
    folder holds another run, and InputError for missing data, before anything is trained."""
    waiting = []
    for run in runs:
        record = finished(run)
        if record is None:
            waiting.append(run)
        else:
            tally.done.append(record)
            tally.skipped += 1
    sizes = {name: open_data(run).sizes for name, run in {run.task.name: run for run in waiting}.items()}
    return waiting, [Work.of(run, sizes[run.task.name]) for run in waiting]


def _plan_in_words(runs: Sequence[Run], waiting: Sequence[Run], tally: Tally) -> str:
    """What a sweep is about to do, and where its results go."""
    folder = f"results in {one_line(runs[0].settings.output_dir)}" if runs else "nothing to do"
    done = f"{tally.skipped} of {len(runs)} runs are done already; " if tally.skipped else ""
    return f"{done}{len(waiting)} {'run' if len(waiting) == 1 else 'runs'} to do, {folder}"


def sweep(runs: Sequence[Run], runtime: Runtime, stop: StopRequest) -> Tally:
    """Do the runs one after another. A run that diverges is noted and the next one begun; any other error ends it.

    Several processes may do the same sweep in one folder: each leaves alone what another one is doing.
    """
    tally = Tally()
    waiting, work = pending_runs(runs, tally)
    display = Display(work, quiet=not runtime.main)
    display.say(_plan_in_words(runs, waiting, tally))
    try:
        for run in waiting:
            display.begin(run)
            try:
                record = execute(run, runtime, stop, display)
            except RunError as error:
                tally.failed.append(f"{run.name}: {error}")
                display.end(f"failed: {run.name}: {error}")
            except FolderInUse as error:
                display.end(f"left to another process: {error}")
            else:
                tally.done.append(record)
                display.end(line_of(record))
    finally:
        display.close()
    return tally


def line_of(record: VtabRecord) -> str:
    """A record in one line."""
    name = f"{record.task} {record.method} seed {record.seed}"
    chosen = f"val200 {record.val_accuracy:.1f} % at epoch {record.selected_epoch}"
    if record.test_accuracy is None:
        return f"{name}: {chosen}; test not opened"
    test = f"test {record.test_accuracy:.2f} %"
    kind = " (synthetic)" if record.synthetic else "" if record.official_split else " (not the official split)"
    dashed = f"; dash from step {record.launch.step}" if record.launch else ""
    curve = record.selection["curves"][record.selection["candidate"]]
    if record.launch is None and any(score["launched"] for score in curve):
        dashed = ", before the launch: plain LoRA"
    return f"{name}: {test}{kind}; {chosen}{dashed}; {duration(record.seconds['total'])}"


def write_summary(folder: Path) -> list[str]:
    """Summarize every result under `folder` into summary.json; the table's lines, what was left out of it, and where
    the results are."""
    records, unusable = _records(folder)
    summary = summarize(records)
    if summary["methods"]:
        write_json(folder / SUMMARY, summary)
    lines = render(summary)
    if unusable:
        shown = ", ".join(one_line(path) for path in unusable[:3]) + (", ..." if len(unusable) > 3 else "")
        lines.append(f"left out, being cut short or no result: {len(unusable)} ({shown}); run those again")
    if summary["methods"]:
        lines.append(f"results: {one_line(folder)}, with the table in {SUMMARY}")
    return lines


def _records(folder: Path) -> tuple[list[VtabRecord], list[Path]]:
    """All results under an output folder, in the order of their paths, val-only ones where there is no full one; and
    the files that are named like a result and are none."""
    val_only = (path for path in folder.rglob(VAL_RESULT) if not (path.parent / RESULT).exists())
    records, unusable = [], []
    for path in [*sorted(folder.rglob(RESULT)), *sorted(val_only)]:
        try:
            record = read_record(path)
        except InputError:
            record = None
        if isinstance(record, VtabRecord) and record.task in TASKS:
            records.append(record)
        else:
            unusable.append(path)
    return records, unusable


def command(run: Run) -> str:
    """A shell command that does this one run in one process."""
    settings = dataclasses.replace(run.settings, train_batch_size=run.batch_size)
    words = ["python", "train_vtab.py", "--task", run.task.name]
    words += ["--peft_config", str(run.peft_file)] if run.peft_file else ["--methods", run.method]
    words += ["--seeds", str(run.seed)]
    for f in dataclasses.fields(VtabConfig):
        value = getattr(settings, f.name)
        default = f.default if f.default is not dataclasses.MISSING else []
        if f.name in _NOT_PASSED_ON or value == default:
            continue
        values = value if isinstance(value, list) else ["true" if value is True else value]
        words += [f"--{f.name}", *map(str, values)]
    return shlex.join(words)


# -- Ray


def sweep_on_ray(runs: Sequence[Run], say: Callable[[str], None] = print) -> Tally:
    """Do the runs on a Ray cluster (the one at $RAY_ADDRESS, else a local one), one GPU each if it has any.

    Workers need the package, the data and the output folder under the same paths. Raises InputError without Ray.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--executor ray needs Ray, an optional part: pip install 'dash-vision[ray]'") from None
    tally = Tally()
    waiting = [_absolute(run) for run in pending_runs(runs, tally)[0]]
    say(_plan_in_words(runs, waiting, tally))
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    work = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(remote_run)
    jobs = {work.remote(*_portable(run)): run for run in waiting}
    number = 0
    while jobs:
        (ready,), _ = ray.wait(list(jobs), num_returns=1)
        run = jobs.pop(ready)
        number += 1
        record, problem = _outcome(ray, ready)
        if record is None:
            tally.failed.append(f"{run.name}: {problem}")
        else:
            tally.done.append(record)
        say(f"[{number}/{len(waiting)}] {line_of(record) if record else f'failed: {run.name}: {problem}'}")
    return tally


def runtime_of(config: VtabConfig) -> Runtime:
    """The runtime that the settings ask for. Raises InputError as `make_runtime`."""
    c = config
    torch.backends.cuda.matmul.allow_tf32 = c.allow_tf32
    folder = Path(c.output_dir).expanduser() if c.report_to else None
    return make_runtime(c.mixed_precision or usual_precision(c.device), c.device, c.report_to, folder, c.logging_dir)


def remote_run(settings: dict[str, Any], task: str, method: str, seed: int) -> tuple[VtabRecord | None, str]:
    """One run inside a worker: (record, "") or (None, what went wrong)."""
    run = Run(VtabConfig(**settings), find_task(task), method, seed)
    try:
        return execute(run, runtime_of(run.settings)), ""
    except (ValueError, RuntimeError, OSError) as error:
        return None, str(error)


def _outcome(ray: Any, job: Any) -> tuple[VtabRecord | None, str]:
    try:
        return ray.get(job)
    except ray.exceptions.RayError as error:  # the worker itself was lost
        return None, str(error).splitlines()[0]


def _portable(run: Run) -> tuple[dict[str, Any], str, str, int]:
    return dataclasses.asdict(run.settings), run.task.name, run.method, run.seed


def _absolute(run: Run) -> Run:
    """The same run with paths that mean the same in a worker's working directory."""
    s = run.settings
    paths: dict[str, Any] = {"output_dir": str(Path(s.output_dir).resolve())}
    if s.data_root:
        paths["data_root"] = str(Path(s.data_root).resolve())
    paths["peft_config"] = [str(Path(file).resolve()) for file in s.peft_config]
    return dataclasses.replace(run, settings=dataclasses.replace(s, **paths))
