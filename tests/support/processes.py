"""Processes of their own that start at once, and several that do one job together."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from multiprocessing.connection import Client, Connection
from pathlib import Path

import torch
import torch.distributed as dist

from tests.support.paths import ROOT
from tests.support.server import program

_number = count()
_kept: list[Path] = []
_servers: list[subprocess.Popen] = []


class Process:
    """A process that a server forked for us. pid: its id. stdout, stderr: what it has printed so far."""

    def __init__(self, job: Callable, arguments: tuple, folder: Path, **environment: str) -> None:
        self._files = [_kept[-1] / f"{os.getpid()}-{next(_number)}.{name}" for name in ("out", "errors")]
        self._connection = _connect()
        out, errors = map(str, self._files)
        environment = {**os.environ, **environment}
        request = {"job": job, "arguments": arguments, "environment": environment, "folder": str(folder)}
        self._connection.send({**request, "out": out, "errors": errors})
        self.pid: int = self._connection.recv()
        self._status: int | None = None

    def poll(self, seconds: float = 0) -> int | None:
        """The exit status, minus a signal's number if that ended it; None while it is at work after `seconds`."""
        if self._status is None and self._connection.poll(seconds):
            self._status = self._connection.recv()
        return self._status

    def wait(self, seconds: float = 300) -> int:
        """The exit status. Raises TimeoutError, and kills it, if it is at work after `seconds`."""
        status = self.poll(seconds)
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            raise TimeoutError(f"it did not end: {self.stdout}{self.stderr}")
        return status

    @property
    def stdout(self) -> str:
        return _written(self._files[0])

    @property
    def stderr(self) -> str:
        return _written(self._files[1])


def _written(file: Path) -> str:
    """What the process has written so far; it makes the file."""
    return file.read_text(errors="replace") if file.exists() else ""


def start(words: Sequence[object], folder: Path = ROOT, **environment: str) -> Process:
    """`python WORDS` at work in `folder`, with more environment than ours; the first word is a script or -m."""
    return Process(program, (tuple(map(str, words)),), folder, **environment)


def run(words: Sequence[object], folder: Path = ROOT, **environment: str) -> Process:
    """The same at its end."""
    process = start(words, folder, **environment)
    process.wait()
    return process


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def place_of(rank: int, world: int) -> dict[str, str]:
    """What launchers tell the process number `rank` of `world`."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}


def spread(job: Callable, world: int, folder: Path, *more: object) -> None:
    """`job(rank, world, folder, *more)` on `world` gloo processes."""
    # accelerate asks for an address too; the processes find each other by a file.
    places = [{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **place_of(rank, world)} for rank in range(world)]
    arguments = [(job, rank, world, str(folder), *more) for rank in range(world)]
    processes = [Process(_joined, each, ROOT, **place) for each, place in zip(arguments, places, strict=True)]
    while None in (statuses := [process.poll(0.02) for process in processes]) and not any(statuses):
        pass
    for process in processes:  # one that failed leaves the others waiting
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    assert not any(statuses), [process.stderr for process in processes]


def _joined(job: Callable, rank: int, world: int, folder: str, *more: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    job(rank, world, folder, *more)
    dist.destroy_process_group()


# -- the server, one for all processes of pytest-xdist


def keep_in(folder: Path) -> None:
    """Where the server's address and what processes print are kept; to be said before the first process is started."""
    folder.mkdir(exist_ok=True)
    _kept.append(folder)


def _connect() -> Connection:
    """A connection to the server, which is started if there is none."""
    address = _kept[-1] / "address"
    with open(_kept[-1] / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return Client(address.read_text())
        except OSError:  # none was started, or it ended with the process of pytest that had started it
            address.unlink(missing_ok=True)
        with open(_kept[-1] / "server.txt", "w") as log:
            words = [sys.executable, "-m", "tests.support.server", str(address)]
            server = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log)
        _servers.append(server)  # its standard input lasts as long as this process
        while not address.exists():
            assert server.poll() is None, (_kept[-1] / "server.txt").read_text()
            time.sleep(0.05)
        return Client(address.read_text())
