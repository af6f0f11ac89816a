"""Runs in processes of their own, and what became of them."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

import train_dreambooth
import train_vtab
from dash_vision.classification.run import CHECKPOINT
from dash_vision.classification.sweep import command
from dash_vision.files.checkpoint import load_checkpoint
from dash_vision.files.errors import InputError
from dash_vision.files.native import NATIVE_NAME, read_native
from dash_vision.runs.record import RESULT, read_record
from tests.support.bases import save_base
from tests.support.pictures import save_pictures
from tests.support.vtab import one_run, write_task

PATIENCE = 300.0  # seconds for one run of a second or two: longer is a hang
STEPS, BATCH = 12, 4
UNDISTURBED = 0
STOPPED = (UNDISTURBED, 75, 128 + signal.SIGTERM, 130, -signal.SIGTERM)  # the last: before anything had begun
NOBODY = 65534


@dataclass
class Tally:
    """What became of one part's trials."""

    part: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)

    def count(self, problems: list[str]) -> None:
        """One more trial; it is lost if there are problems."""
        self.tried += 1
        if problems:
            self.lost.append("; ".join(problems))

    def __str__(self) -> str:
        survived = self.tried - len(self.lost)
        return f"{self.part}: tried {self.tried}, survived {survived}, lost {len(self.lost)}"


def fork(work: Callable[[], int], log: Path, **environment: str) -> int:
    """The process id of a child that does `work`, its exit status being what that returns; it writes to `log`.

    Forked, not started: importing torch and diffusers takes longer than a run.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        # PyTorch's pool of threads does not outlive a fork. Left to them, autograd's threads ask for a new one all at
        # once, and now and then the process aborts ("Invalid thread pool!").
        torch.set_num_threads(1)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for number in (1, 2):
            os.dup2(handle, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        os.environ.update(environment)
        status = work()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int, seconds: float = PATIENCE) -> int | None:
    """Exit status, minus the signal's number for a killed process; None, and the process is killed, if it hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@dataclass(frozen=True)
class Trainer:
    """A command that is run again and again until it is done.

    results: what is compared, relative to the output folder, as are checkpoints (a pattern). reference: the output
    folder of the run that nobody disturbs. batch: pictures an optimizer step, over all processes.
    """

    name: str
    main: Callable[[list[str]], int]
    words: Callable[[Path], list[str]]
    results: tuple[str, ...]
    checkpoints: str
    reference: Path
    batch: int

    def run(self, out: Path, *more: str) -> int:
        return self.main([*self.words(out), *more])

    def start(self, out: Path, *more: str, **environment: str) -> int:
        return fork(lambda: self.run(out, *more), log_of(out), **environment)

    def contents(self, out: Path) -> dict[str, Any]:
        """What has to be equal: adapters byte by byte, results without times."""
        found: dict[str, Any] = {}
        for name in self.results:
            path = out / name
            found[name] = path.read_bytes() if path.is_file() else None
            if path.name == RESULT:
                kept = ("task", "val_accuracy", "test_accuracy", "selected_epoch", "retrain_losses", "selection")
                record = read_record(path) if path.is_file() else None
                found[name] = {key: getattr(record, key) for key in kept} if record else {}
        return found


def log_of(out: Path) -> Path:
    return out.parent / "log.txt"


def trainers(folder: Path) -> list[Trainer]:
    """Both, with their tiny bases and data in `folder`."""
    save_base(folder / "sd")
    save_pictures(folder / "cat", count=3)
    write_task(folder / "data")

    def dreambooth(out: Path) -> list[str]:
        words = f"--rank 2 --dash_k 3 --max_train_steps {STEPS} --prelaunch_steps 4 --train_batch_size {BATCH}"
        words += " --learning_rate 1e-2 --num_inference_steps 1 --num_crop_variants 2 --checkpointing_steps 1"
        words += " --resume_from_checkpoint latest --adam_epsilon 1e-2"
        paths = ["--instance_data", folder / "cat", "--output_dir", out, "--validation_prompt", "a photo of sks cat"]
        return [*words.split(), *map(str, paths), "--pretrained_model_name_or_path", str(folder / "sd")]

    def vtab(out: Path) -> list[str]:
        # float32 on every machine: in bf16 the same batch, split over processes, is rounded elsewhere.
        run = one_run(folder, output_dir=str(out), checkpoint_every=1, selection="last", mixed_precision="no")
        return shlex.split(command(run))[2:]

    place = "cifar/dash/seed-0"
    return [
        Trainer(
            "train_dreambooth.py",
            train_dreambooth.main,
            dreambooth,
            (NATIVE_NAME, "pytorch_lora_weights.safetensors", "kohya/out.safetensors", "samples.png"),
            "checkpoint-*.safetensors",
            folder / "dreambooth" / "out",
            BATCH,
        ),
        Trainer(
            "train_vtab.py",
            train_vtab.main,
            vtab,
            (f"{place}/{NATIVE_NAME}", f"{place}/{RESULT}"),
            f"{place}/{CHECKPOINT}",
            folder / "vtab" / "out",
            8,  # one_run's
        ),
    ]


def incomplete(out: Path) -> list[str]:
    """The files of an output folder that are taken for good and are not."""
    problems = []
    for path in sorted(p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            if path.name.startswith("checkpoint"):
                load_checkpoint(path)
            elif path.name == NATIVE_NAME:
                read_native(path)
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.verify()
        except Exception as error:
            problems.append(f"{path.name} is incomplete ({error})")
    return problems


def steps_kept(trainer: Trainer, out: Path) -> tuple[int, int]:
    """How far a run has come: (1 if it is done, step of its newest checkpoint)."""
    if all((out / name).is_file() for name in trainer.results):
        return 1, 0
    newest = -1
    for path in out.glob(trainer.checkpoints):
        try:
            newest = max(newest, progress(load_checkpoint(path)))
        except InputError:
            if path.exists():  # else a run that goes on has put a newer one in its place
                raise
    return 0, newest


def progress(state: dict[str, Any]) -> int:
    """Optimizer steps in a checkpoint of either trainer."""
    if "training" in state:
        return int(state["training"]["step"])
    job, frozen = state["job"], state["selection"] is not None
    return (1000 if frozen else 0) + (job["training"]["step"] if job else 0)


def sentence(log: Path, place: int) -> list[str]:
    """Problems with what a failed run wrote to its log from `place` on: it takes an error message, no traceback."""
    text = log.read_text(errors="replace")[place:]
    problems = ["a traceback"] if "Traceback" in text else []
    return problems + ([] if "error: " in text else [f"no message, but {text[-200:]!r}"])


@functools.cache
def undisturbed(trainer: Trainer) -> tuple[dict[str, Any], float]:
    """(contents, seconds) of a run that nobody disturbs. Raises RuntimeError if that fails."""
    out = trainer.reference
    out.parent.mkdir(parents=True)
    started = time.monotonic()
    status = wait(trainer.start(out))
    seconds = time.monotonic() - started
    contents = trainer.contents(out)
    if status != UNDISTURBED or not all(contents.values()):
        raise RuntimeError(f"{trainer.name} does not even run by itself: {log_of(out).read_text()[-2000:]}")
    return contents, seconds


def tell(statuses: list[int | None]) -> None:
    """How often which exit status came."""
    counts = ", ".join(f"{status} ({statuses.count(status)})" for status in dict.fromkeys(statuses))
    print(f"  exit status (times): {counts}", flush=True)
