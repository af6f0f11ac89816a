"""Kill it, starve it, spread it over processes: does a run lose anything?

python -m tests.soak [--minutes N] [--seed S] [--parts kill stop disk memory processes] [--short]

Real runs of both trainers on tiny models, in processes of their own. Prints, per part, how often it was tried,
survived and lost; the exit status is 1 when anything was lost. The kills go on until the minutes are over (but at least
50), everything else is done once. --short is what the test suite runs.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import random
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # runs that are compared bit for bit have to use equally many

import torch
import torch.distributed.fsdp  # before processes are forked: each of them would import it by itself, for seconds
import torch.distributed.tensor
from PIL import Image
from safetensors.torch import load_file

import dash_vision.classification.trained
import dash_vision.diffusion.outputs
import dash_vision.diffusion.training
import dash_vision.files.checkpoint
import train_dreambooth
import train_vtab
from dash_vision import Adapter, DashConfig, inject, load_adapter
from dash_vision.classification.run import CHECKPOINT
from dash_vision.classification.sweep import command
from dash_vision.files.checkpoint import load_checkpoint
from dash_vision.files.errors import InputError
from dash_vision.files.native import NATIVE_NAME, read_native
from dash_vision.runs.record import RESULT, read_record
from tests.support.bases import save_base
from tests.support.models import sd_unet, trained
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


# -- runs in processes of their own


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
    folder of the run that nobody disturbs.
    """

    name: str
    main: Callable[[list[str]], int]
    words: Callable[[Path], list[str]]
    results: tuple[str, ...]
    checkpoints: str
    reference: Path

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
        ),
        Trainer(
            "train_vtab.py",
            train_vtab.main,
            vtab,
            (f"{place}/{NATIVE_NAME}", f"{place}/{RESULT}"),
            f"{place}/{CHECKPOINT}",
            folder / "vtab" / "out",
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
    if "step" in state:
        return int(state["step"])
    job, frozen = state["job"], state["selection"] is not None
    return (1000 if frozen else 0) + (job["training"]["step"] if job else 0)


def sentence(log: Path, place: int) -> list[str]:
    """Problems with what a failed run wrote to its log from `place` on: it takes an error message, no traceback."""
    text = log.read_text(errors="replace")[place:]
    problems = ["a traceback"] if "Traceback" in text else []
    return problems + ([] if "error: " in text else [f"no message, but {text[-200:]!r}"])


# -- SIGKILL and SIGTERM


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(tensors: Any, path: Any, *rest: Any) -> None:
    """save_file, killed in the middle of the file."""
    _SAVE_FILE(tensors, path, *rest)
    os.truncate(path, os.path.getsize(path) // 2)
    die()


_SAVE_FILE = dash_vision.files.container.save_file

# Moments at which a run kills itself: (object, attribute, before or after the call).
MOMENTS: dict[str, tuple[Any, str, bool]] = {
    "before a rename": (os, "replace", True),
    "after a rename": (os, "replace", False),
    "before a sync": (os, "fsync", True),
    "at a removal": (Path, "unlink", True),
    "before the launch": (Adapter, "launch", True),
    "after the launch": (Adapter, "launch", False),
    "in the export to diffusers or kohya": (dash_vision.diffusion.outputs, "export_states", True),
    "in the export to PEFT": (dash_vision.classification.trained, "export_states", True),
}
for _place, _name, _ in MOMENTS.values():
    getattr(_place, _name)  # --short comes to few of the moments, and would not see that a name is gone


def arm(moment: str, number: int) -> None:
    """Let this process die at the `number`-th time that it comes to `moment`."""
    left = number

    def now() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    if moment == "in the middle of a checkpoint":
        dash_vision.files.container.save_file = lambda *a: (half_written if now() else _SAVE_FILE)(*a)
        return
    place, name, before = MOMENTS[moment]
    original = getattr(place, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        last = now()
        if last and before:
            die()
        result = original(*args, **kwargs)
        if last:
            die()
        return result

    setattr(place, name, patched)


def killed(trainer: Trainer, folder: Path, draw: random.Random, least: int, deadline: float) -> Tally:
    """SIGKILL at drawn moments, by the clock and at chosen places in the code; resume; repeat, to the end."""
    tally = Tally(f"SIGKILL, {trainer.name}")
    expected, seconds = undisturbed(trainer)
    round_ = 0
    while tally.tried < least or time.monotonic() < deadline:
        round_ += 1
        out = folder / str(round_) / "out"
        for _ in range(draw.randrange(1, 6)):
            before = steps_kept(trainer, out)
            if before[0]:
                break
            status = kill_once(trainer, out, draw, seconds)
            if status == UNDISTURBED:  # it was done before the moment came
                break
            problems = incomplete(out)
            if status != -signal.SIGKILL:
                problems.append(f"status {status}: {log_of(out).read_text()[-300:]}")
            if not problems and steps_kept(trainer, out) < before:
                problems.append(f"an earlier checkpoint was lost: {before}")
            tally.count(problems)
        status = wait(trainer.start(out))
        same = status == UNDISTURBED and trainer.contents(out) == expected
        tally.count([] if same else [f"round {round_}: the finished run differs (status {status}), see {log_of(out)}"])
    return tally


def kill_once(trainer: Trainer, out: Path, draw: random.Random, seconds: float) -> int | None:
    """Start a run, kill it at a drawn moment; its status."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if draw.random() < 0.5:
        pid = trainer.start(out)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        return wait(pid)
    moment = draw.choice([*MOMENTS, "in the middle of a checkpoint"])
    number = draw.randrange(1, 3 if "launch" in moment or "export" in moment else STEPS)

    def work() -> int:
        arm(moment, number)
        return trainer.run(out)

    return wait(fork(work, log_of(out)))


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


def stopped(trainer: Trainer, folder: Path, draw: random.Random, least: int) -> Tally:
    """SIGTERM at drawn moments, as a cluster sends it; resume; repeat, to the end."""
    tally = Tally(f"SIGTERM, {trainer.name}")
    expected, seconds = undisturbed(trainer)
    statuses: list[int | None] = []
    round_ = 0
    while tally.tried < least:
        round_ += 1
        out = folder / str(round_) / "out"
        out.parent.mkdir(parents=True)
        status: int | None = None
        while status != UNDISTURBED and tally.tried < least:
            pid = trainer.start(out)
            time.sleep(draw.uniform(0, seconds))
            os.kill(pid, signal.SIGTERM)
            status = wait(pid)
            statuses.append(status)
            problems = [] if status in STOPPED else [f"status {status}: {log_of(out).read_text()[-300:]}"]
            tally.count(problems + incomplete(out))
        status = wait(trainer.start(out))
        same = status == UNDISTURBED and trainer.contents(out) == expected
        tally.count([] if same else [f"round {round_}: the finished run differs (status {status}), see {log_of(out)}"])
    tell(statuses)
    return tally


# -- disks


def tell(statuses: list[int | None]) -> None:
    """How often which exit status came."""
    counts = ", ".join(f"{status} ({statuses.count(status)})" for status in dict.fromkeys(statuses))
    print(f"  exit status (times): {counts}", flush=True)


def full(trainer: Trainer, folder: Path, sizes: tuple[int, ...]) -> Tally:
    """Files that may not grow beyond `sizes` bytes (EFBIG, which every write meets as it would meet ENOSPC)."""
    tally = Tally(f"no room for a file, {trainer.name}")
    expected, _ = undisturbed(trainer)
    statuses: list[int | None] = []
    for size in sizes:
        out = folder / str(size) / "out"
        out.parent.mkdir(parents=True)

        def work(out: Path = out, size: int = size) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            return trainer.run(out)

        status = wait(fork(work, log_of(out)))
        statuses.append(status)
        problems = incomplete(out)
        if status != UNDISTURBED:
            problems += [*sentence(log_of(out), 0), *([] if status in (1, 2) else [f"status {status}"])]
        tally.count(problems)
        status = wait(trainer.start(out))
        same = status == UNDISTURBED and trainer.contents(out) == expected
        tally.count([] if same else [f"{size} bytes: the finished run differs (status {status}), see {log_of(out)}"])
    tell(statuses)
    if not any(statuses):
        tally.count(["no limit was small enough to be met"])
    return tally


def full_disk(trainer: Trainer, folder: Path, sizes: tuple[int, ...]) -> Tally:
    """A file system of `sizes` bytes that runs full, then grows. Tried 0 times where mounting is not permitted."""
    tally = Tally(f"full disk, {trainer.name}")
    expected, _ = undisturbed(trainer)
    statuses: list[int | None] = []
    for size in sizes:
        disk = folder / f"disk-{size}"
        with mounted(disk, size) as there:
            if not there:
                return tally
            out, log = disk / "out", folder / f"{size}.txt"
            status = wait(fork(lambda out=out: trainer.run(out), log))
            statuses.append(status)
            problems = incomplete(out)
            if status != UNDISTURBED:
                problems += [*sentence(log, 0), *([] if status in (1, 2) else [f"status {status}"])]
            tally.count(problems)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            status = wait(fork(lambda out=out: trainer.run(out), log))
            same = status == UNDISTURBED and trainer.contents(out) == expected
            tally.count([] if same else [f"{size} bytes: the finished run differs (status {status}), see {log}"])
    tell(statuses)
    if not any(statuses):
        tally.count(["no disk was small enough to be full"])
    return tally


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of `size` bytes at `folder`, or False."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        there = subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        there = False
    try:
        yield there
    finally:
        if there:
            subprocess.run(["umount", str(folder)], check=True)


def read_only(trainer: Trainer, folder: Path) -> Tally:
    """An output folder without the right to write: refused in one sentence, and nothing in it changes."""
    tally = Tally(f"read-only folder, {trainer.name}")
    out = folder / "out"
    out.mkdir(parents=True)
    (out / "kept.txt").write_text("kept")
    log_of(out).touch()
    log_of(out).chmod(0o666)
    out.chmod(0o555)

    def work() -> int:
        if os.getuid() == 0:  # for whom there are no rights to lack
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return trainer.run(out)

    status = wait(fork(work, log_of(out), HOME=str(out)))
    problems = sentence(log_of(out), 0) + ([] if status == 2 else [f"status {status}"])
    if [p.name for p in out.iterdir()] != ["kept.txt"]:
        problems.append("it was written to")
    out.chmod(0o755)
    tally.count(problems)
    return tally


# -- memory


def memory(folder: Path, cycles: int, steps: int) -> Tally:
    """Tensors alive and memory held after many load/unload cycles, as many launches, and many steps."""
    tally = Tally(f"memory, {cycles} load/unload cycles, {cycles} launches and {steps} steps")
    jobs = {
        "cycles": lambda: load_and_unload(folder, cycles),
        "launches": lambda: launch_and_remove(cycles),
        "steps": lambda: many_steps(folder, steps),
    }
    for name, work in jobs.items():
        report = folder / f"{name}.json"
        log = folder / f"{name}.txt"
        status = wait(
            fork(lambda work=work, report=report: report.write_text(json.dumps(work())) and 0, log), PATIENCE + steps
        )
        if status != UNDISTURBED:
            tally.count([f"{name}: {log.read_text()[-500:]}"])
            continue
        more_tensors, more_bytes = json.loads(report.read_text())
        print(f"  {name}: {more_tensors:+d} tensors, {more_bytes / 1e6:+.1f} MB", flush=True)
        problems = [f"{more_tensors} more tensors"] if more_tensors > 0 else []
        tally.count(problems + ([f"{more_bytes / 1e6:.1f} MB more"] if more_bytes > 16e6 else []))
    return tally


def held() -> tuple[int, int]:
    """(tensors alive, bytes of memory) of this process."""
    gc.collect()
    tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return tensors, pages * os.sysconf("SC_PAGE_SIZE")


def growth(work: Callable[[int], None], count: int) -> list[int]:
    """[more tensors, more bytes] between the first tenth and the end of `count` calls."""
    for number in range(max(3, count // 10)):
        work(number)
    before = held()
    for number in range(max(3, count // 10), count):
        work(number)
    after = held()
    return [after[0] - before[0], after[1] - before[1]]


def load_and_unload(folder: Path, cycles: int) -> list[int]:
    """Load two adapters, switch, merge, unmerge, remove both."""
    files = []
    for number in range(2):
        files.append(folder / f"adapter-{number}.safetensors")
        trained(sd_unet(), DashConfig(rank=2, dash_k=3), scale=0.1 + number).save(files[-1])
    unet = sd_unet()
    weight = {name: p.detach().clone() for name, p in unet.named_parameters()}

    def cycle(number: int) -> None:
        first, second = (load_adapter(unet, file, name) for file, name in zip(files, "ab", strict=True))
        first.disable()
        second.merge()
        second.unmerge()
        second.remove()
        first.enable()
        first.remove()

    found = growth(cycle, cycles)
    for name, parameter in unet.named_parameters():
        if not torch.equal(parameter, weight[name]):
            raise RuntimeError(f"the base is not what it was: {name}")
    return found


def launch_and_remove(cycles: int) -> list[int]:
    """A launch frees all that it used but what it chose: U, V and the indices, which were there before as zeros."""
    unet = sd_unet()

    def cycle(number: int) -> None:
        adapter = inject(unet, DashConfig(rank=2, dash_k=3))
        looked = number % 20 == 2  # which takes longer than the launch
        before = held()[0] if looked else 0
        adapter.launch()
        if looked and held()[0] > before:
            raise RuntimeError(f"launch {number} left {held()[0] - before} tensors")
        adapter.remove()

    return growth(cycle, cycles)


def many_steps(folder: Path, steps: int) -> list[int]:
    """DreamBooth steps through the launch and beyond."""
    from accelerate import Accelerator

    from dash_vision.diffusion.config import DreamBoothConfig
    from dash_vision.diffusion.training import DreamBoothRun
    from dash_vision.runs.settings import parse

    save_base(folder / "sd")
    save_pictures(folder / "cat", count=3)
    words = ["--instance_data", folder / "cat", "--pretrained_model_name_or_path", folder / "sd"]
    words += ["--output_dir", folder / "out", "--max_train_steps", 10 * steps, "--prelaunch_steps", 2]
    config = parse(DreamBoothConfig, "", "", [str(word) for word in words])
    run = DreamBoothRun(config, Accelerator(cpu=True), lambda line: None)

    def step(number: int) -> None:
        run._one_step()
        run.schedule.step()
        run._pending.clear()  # what a look at the loss empties every ten steps

    return growth(step, steps)


# -- processes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Way:
    """How many gloo processes make a run, and whether FSDP splits the model over them."""

    world: int
    fsdp: bool = False

    def __str__(self) -> str:
        return f"{self.world} by FSDP" if self.fsdp else str(self.world)

    def start(self, trainer: Trainer, out: Path, *more: str) -> list[int]:
        """The process ids of one run, whose batches are those of the undisturbed one."""
        out.parent.mkdir(parents=True, exist_ok=True)
        if self.world == 1:
            return [trainer.start(out, *more)]
        common = {"WORLD_SIZE": str(self.world), "LOCAL_WORLD_SIZE": str(self.world), "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": str(free_port())} | (FSDP if self.fsdp else {})
        places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self.world)]
        if trainer.main is train_dreambooth.main:
            more = (*more, "--train_batch_size", str(BATCH // self.world))
        return [trainer.start(out, *more, **common, **place) for place in places]


# What `accelerate launch` tells the processes when its configuration is that of docs/fsdp.yaml.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def different(trainer: Trainer, out: Path) -> list[str]:
    """Where a run's adapter differs from the undisturbed one's: in directions at all, in numbers by more than 1e-5."""
    name = next(name for name in trainer.results if name.endswith(NATIVE_NAME))
    if not (out / name).is_file():
        return [f"there is no {name}"]
    one, two = load_file(trainer.reference / name), load_file(out / name)
    problems = []
    for key, tensor in one.items():
        exact = not tensor.is_floating_point()
        close = torch.equal(tensor, two[key]) if exact else torch.allclose(tensor, two[key], atol=1e-5, rtol=0)
        if not close:
            problems.append(f"{key} differs")
    return problems


def spread(trainer: Trainer, folder: Path, ways: tuple[Way, ...]) -> Tally:
    """Directions and parameters of one process, from several that share its batches."""
    tally = Tally(f"processes {', '.join(map(str, ways))}, {trainer.name}")
    undisturbed(trainer)
    for way in ways:
        out = folder / str(way) / "out"
        # A split model's checkpoint is hundreds of exchanges: not after every step.
        rarely = ("--checkpointing_steps", "6") if way.fsdp and trainer.main is train_dreambooth.main else ()
        statuses = [wait(pid) for pid in way.start(trainer, out, *rarely)]
        problems = [] if not any(statuses) else [f"status {statuses}: {log_of(out).read_text()[-500:]}"]
        tally.count(problems or [f"{way}: {text}" for text in different(trainer, out)])
    return tally


def worker_lost(trainer: Trainer, folder: Path, ways: tuple[Way, ...]) -> Tally:
    """One of several processes is killed: the others end within a minute, and another number of processes goes on; the
    last number goes to the end, with the parameters of the undisturbed run."""
    tally = Tally(f"a worker killed, processes {', then '.join(map(str, ways))}, {trainer.name}")
    undisturbed(trainer)
    out = folder / "out"
    for number, way in enumerate(ways[:-1], 1):
        *others, victim = way.start(trainer, out)
        end = time.monotonic() + PATIENCE
        while steps_kept(trainer, out) < (0, 3 * number) and time.monotonic() < end:
            time.sleep(0.05)
        started, place = time.monotonic(), len(log_of(out).read_text(errors="replace"))
        os.kill(victim, signal.SIGKILL)
        wait(victim)
        statuses = [wait(pid, max(1, started + 60 - time.monotonic())) for pid in others]
        problems = incomplete(out)
        if None in statuses:
            problems.append("the other processes did not end within a minute")
        elif UNDISTURBED in statuses:
            problems.append("it was done before the kill")
        else:
            problems += sentence(log_of(out), max(0, place - 2000))
        print(f"  the others of {way} ended after {time.monotonic() - started:.1f} s, status {statuses}", flush=True)
        tally.count(problems)
    statuses = [wait(pid) for pid in ways[-1].start(trainer, out)]
    problems = [] if not any(statuses) else [f"{ways[-1]} do not go on: {log_of(out).read_text()[-500:]}"]
    tally.count(problems or different(trainer, out))
    return tally


# -- all of it


@dataclass(frozen=True)
class Extent:
    """How much of everything."""

    kills: int
    stops: int
    sizes: tuple[int, ...]
    cycles: int
    steps: int
    spread: tuple[Way, ...]
    lost: tuple[Way, ...]
    mount: bool


_TWO, _FOUR, _SPLIT, _SPLIT_FOUR = Way(2), Way(4), Way(2, fsdp=True), Way(4, fsdp=True)
LONG = Extent(
    50,
    12,
    (20_000, 70_000, 120_000, 170_000, 300_000),
    200,
    2000,
    (_TWO, _FOUR, _SPLIT, _SPLIT_FOUR),
    (_TWO, _SPLIT_FOUR, _FOUR, _SPLIT),
    True,
)
SHORT = Extent(2, 1, (50_000,), 20, 20, (_FOUR, _SPLIT), (_TWO, Way(1)), False)


def possible(ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """FSDP needs a gloo that averages, which PyTorch has from 2.8 on."""
    recent = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 8)
    return tuple(way for way in ways if recent or not way.fsdp)


PARTS = ("kill", "stop", "disk", "memory", "processes")


def soak(folder: Path, parts: list[str], extent: Extent, minutes: float, seed: int) -> Iterator[Tally]:
    """The tally of every part, as it is done."""
    draw = random.Random(seed)
    both = trainers(folder / "base")
    for trainer in both:
        place = folder / trainer.name
        if "kill" in parts:
            share = 60 * minutes / len(both)
            yield killed(trainer, place / "kill", draw, extent.kills, time.monotonic() + share)
        if "stop" in parts:
            yield stopped(trainer, place / "stop", draw, extent.stops)
        if "disk" in parts:
            yield full(trainer, place / "full", extent.sizes)
            if extent.mount:
                yield full_disk(trainer, place / "disk", tuple(2 * size for size in extent.sizes))
            yield read_only(trainer, place / "read-only")
        if "processes" in parts:
            yield spread(trainer, place / "processes", possible(extent.spread))
            yield worker_lost(trainer, place / "worker", possible(extent.lost))
    if "memory" in parts:
        (folder / "memory").mkdir()
        yield memory(folder / "memory", extent.cycles, extent.steps)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Does a run lose anything?")
    parser.add_argument("--minutes", type=float, default=0, help="go on killing for this long (default: 50 kills each)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--short", action="store_true", help="a few of each, as the test suite does")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="dash-vision-soak-"))
    folder.chmod(0o755)  # for the child that gives up its rights
    lost, started = 0, time.monotonic()
    for tally in soak(folder, list(args.parts), SHORT if args.short else LONG, args.minutes, args.seed):
        print(f"{tally} ({time.monotonic() - started:.0f} s)", flush=True)
        print("".join(f"  lost: {text}\n" for text in tally.lost), end="", flush=True)
        lost += len(tally.lost)
    print(f"lost in all: {lost}" + (f"; what is left of the runs: {folder}" if lost else ""))
    if not lost:
        shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
