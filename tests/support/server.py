"""A process that has imported what runs need, and forks: python -m tests.support.server FILE.

It writes its address to FILE and ends when its standard input does. Importing torch, diffusers and transformers takes
longer than most of what the tests do with them. Processes are not forked from pytest itself: autograd does not work in
a fork of a process that has used it on a GPU, and what other tests left in memory is none of a process's business.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import select
import signal
import sys
import traceback
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

IMPORTED = (
    *("torch.distributed.fsdp", "torch.distributed.tensor", "accelerate", "peft", "timm", "train_dreambooth"),
    *("train_vtab", "eval.__main__", "eval.subject", "eval.figure", "dash_vision.__main__"),
    *("diffusers.guiders", "diffusers.optimization", "dash_vision.diffusion.early", "eval.curves", "eval.report"),
    *(
        "dash_vision.diffusion.run",
        "dash_vision.diffusion.setup",
        "dash_vision.classification.sweep",
        "dash_vision.bases.loading",
    ),
    *("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.models.unets.unet_2d_condition"),
    *("diffusers.models.autoencoders.autoencoder_kl", "diffusers.schedulers.scheduling_ddim"),
    *("diffusers.loaders.peft", "transformers.models.clip.modeling_clip", "tests.support.networks"),
    *("transformers.models.clip.tokenization_clip", "tests.support.vtab", "tests.support.scripts"),
)


def serve(file: Path) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that answer are waited for by nobody
    with Listener() as listener:
        partial = file.with_suffix(".new")
        partial.write_text(str(listener.address))
        partial.replace(file)
        waiting = [listener._listener._socket, sys.stdin]
        while sys.stdin not in (ready := select.select(waiting, [], [])[0]):
            if ready:
                with listener.accept() as client:
                    if os.fork() == 0:
                        listener.close = lambda: None  # it is the server's to remove
                        _exit_with(lambda: answer(client))


def answer(client: Connection) -> int:
    """Start the process that the client asks for; tell its id, then how it ended. It does not outlive the client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = client.recv()
    pid = os.fork()
    if pid == 0:
        client.close()
        _exit_with(lambda: work(**request))
    client.send(pid)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if client.poll(0.02):  # nothing is sent: the test is gone
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 1
    client.send(os.waitstatus_to_exitcode(ended[1]))
    return 0


def work(job: Any, arguments: tuple, environment: dict[str, str], folder: str, out: str, errors: str) -> int:
    """`job(*arguments)` in an environment and a working folder; what it prints goes to the files `out` and `errors`."""
    encoding, _, handling = environment.get("PYTHONIOENCODING", "utf-8").partition(":")
    for number, path in ((0, os.devnull), (1, out), (2, errors)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding=encoding, errors=handling, buffering=1)
        for number, handling in ((1, handling or "strict"), (2, "backslashreplace"))
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return job(*arguments) or 0


def program(words: tuple[str, ...]) -> None:
    """What `python WORDS` does, where the first word is a script, or is -m and the second one a module."""
    if words[0] == "-m":
        sys.argv = list(words[1:])
        sys.modules.pop(f"{words[1]}.__main__", None)  # which the server may have imported
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def _exit_with(main: Any) -> None:
    """End this process, which is a fork, with the exit status of `main()`."""
    status = 1
    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
