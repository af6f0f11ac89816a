"""Many runs: skip what is done, go on with what was begun, and say how far along the whole is."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..files.atomic import FolderInUse, write_json
from ..files.errors import InputError, RunError, one_line
from ..runs.record import RESULT, VAL_RESULT, VtabRecord, read_record
from ..runs.runtime import Runtime, make_runtime, usual_precision
from ..runs.signals import StopRequest
from ..runs.tasks import TASKS, find_task
from .config import Run, VtabConfig
from .job import VtabJob
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


class Display:
    """One line per run, and one for the whole; bars while a run is under way, if this is a terminal."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total, self.quiet, self.number = total, quiet, 0
        self.seconds: list[float] = []
        self.started = time.perf_counter()
        hidden = True if quiet else None  # None: shown on a terminal only
        self.whole = tqdm(total=total, position=1, unit="run", desc="all runs", disable=True if total < 2 else hidden)
        self.bar: tqdm | None = None
        self.hidden = hidden

    def say(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text)

    def begin(self, run: Run) -> None:
        self.number += 1
        self.started = time.perf_counter()
        self.bar = tqdm(total=1, position=0, leave=False, unit="epoch", desc=run.name, disable=self.hidden)

    def progress(self, job: VtabJob) -> None:
        if self.bar is None:
            return
        score = job.curve[-1]
        self.bar.total, self.bar.n = job.plan.epochs, job.epoch
        shown = {"loss": f"{score.train_loss:.3f}"}
        if score.val_accuracy is not None:
            shown["val"] = f"{score.val_accuracy:.1f} %"
        self.bar.set_postfix({"phase": job.phase, **shown}, refresh=True)

    def end(self, text: str) -> None:
        if self.bar is not None:
            self.bar.close()
        self.seconds.append(time.perf_counter() - self.started)
        self.whole.update()
        left = self.total - self.number
        remaining = f"; {left} to go, about {_duration(left * sum(self.seconds) / len(self.seconds))}" if left else ""
        self.say(f"[{self.number}/{self.total}] {text}{remaining}")

    def close(self) -> None:
        self.whole.close()


def pending_runs(runs: Sequence[Run], tally: Tally) -> list[Run]:
    """The runs that are not done; finished ones go into the tally. Raises InputError where a folder holds another run,
    and InputError for missing data, before anything is trained."""
    waiting = []
    for run in runs:
        record = finished(run)
        if record is None:
            waiting.append(run)
        else:
            tally.done.append(record)
            tally.skipped += 1
    for run in {run.task.name: run for run in waiting}.values():
        open_data(run)
    return waiting


def sweep(runs: Sequence[Run], runtime: Runtime, stop: StopRequest) -> Tally:
    """Do the runs one after another. A run that diverges is noted and the next one begun; any other error ends it.

    Several processes may do the same sweep in one folder: each leaves alone what another one is doing.
    """
    tally = Tally()
    waiting = pending_runs(runs, tally)
    display = Display(len(waiting), quiet=not runtime.main)
    if tally.skipped:
        display.say(f"{tally.skipped} of {len(runs)} runs are done already")
    try:
        for run in waiting:
            display.begin(run)
            try:
                record = execute(run, runtime, stop, display.progress)
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
    return f"{name}: {test}{kind}; {chosen}{dashed}; {_duration(record.seconds['total'])}"


def write_summary(folder: Path) -> list[str]:
    """Summarize every result under `folder` into summary.json; the table's lines, and what was left out of it."""
    records, unusable = _records(folder)
    summary = summarize(records)
    if summary["methods"]:
        write_json(folder / SUMMARY, summary)
    lines = render(summary)
    if unusable:
        shown = ", ".join(one_line(path) for path in unusable[:3]) + (", ..." if len(unusable) > 3 else "")
        lines.append(f"left out, being cut short or no result: {len(unusable)} ({shown}); run those again")
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
    waiting = [_absolute(run) for run in pending_runs(runs, tally)]
    if tally.skipped:
        say(f"{tally.skipped} of {len(runs)} runs are done already")
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


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
