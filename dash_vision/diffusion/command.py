"""The command of DreamBooth training: settings in, exit status out."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..files.errors import InputError, RunError, Stopped
from ..miniature import EMBEDDED
from ..runs.cores import choose_threads
from ..runs.faults import fail, hidden, launcher_note, printable_streams, report
from ..runs.settings import parse
from .config import DreamBoothConfig

if TYPE_CHECKING:
    from ..runs.runtime import Runtime

DESCRIPTION = (
    "DreamBooth training with LoRA-Dash: plain LoRA first, then also a few singular values of each adapted weight."
)
EPILOG = """examples:
  accelerate launch train_dreambooth.py --instance_data cat/ --dash_k 8
  accelerate launch train_dreambooth.py --instance_data my_dog/ --instance_prompt "a photo of sks dog" \\
      --pretrained_model_name_or_path black-forest-labs/FLUX.2-klein-base-4B --mixed_precision bf16
  python train_dreambooth.py --instance_data cat/       a single process needs no launcher

exit status: 0 the run is done; 1 the run could not continue; 2 a setting or an input cannot be used;
128 + n the run was stopped by signal n and wrote a checkpoint
(accelerate launch itself exits with 1 after every failure)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, report. Returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with printable_streams():
        config = parse(DreamBoothConfig, DESCRIPTION, EPILOG, words)
        sys.argv[1:] = hidden(sys.argv[1:])  # trackers record it
        try:
            return _main(config)
        except Exception as error:
            return _fail(report(error, Path(config.output_dir).expanduser(), words), 1)


def _main(config: DreamBoothConfig) -> int:
    quiet()
    if config.cache_dir:  # read when the hub's library is imported
        os.environ["HF_HUB_CACHE"] = str(Path(config.cache_dir).expanduser())
    signal.signal(signal.SIGTERM, _terminate)
    folder = Path(config.output_dir).expanduser()
    runtime: Runtime | None = None
    try:
        # Each as late as can be: --help and wrong settings wait for no library, missing pictures not for torch.
        from .early import look

        look(config)
        choose_threads(small=config.pretrained_model_name_or_path in (None, *EMBEDDED))
        from ..runs.runtime import make_runtime

        runtime = make_runtime(
            config.mixed_precision, log_with=config.report_to, folder=folder, logging_dir=config.logging_dir
        )
        _run(config, runtime)
    except Stopped as stopped:
        if runtime and runtime.main:
            print(f"stopped by {stopped.signal}; {stopped}; the same command goes on from there{launcher_note()}")
        return 128 + stopped.signum
    except InputError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted outside of training; checkpoints and adapters written before are kept", 130)
    except RunError as error:
        return _fail(f"{error}; what is in {config.output_dir} is kept", 1)
    except (RuntimeError, MemoryError) as error:
        explained = _explain(error, runtime)
        if explained is None:
            raise
        return _fail(explained, 1)
    except OSError as error:
        where = error.filename or config.output_dir
        return _fail(f"{error.strerror or error}: {where}; what was written before is kept", 1)
    finally:
        if runtime:
            runtime.close()
    return 0


def _run(config: DreamBoothConfig, runtime: Runtime) -> None:
    from ..files.lora import DIFFUSERS_NAME
    from .hub import push
    from .run import finish, fit
    from .setup import prepare

    job = prepare(config, runtime, partial(print, flush=True))
    try:
        if config.report_to:
            values = {name: str(value) for name, value in job.plan.arguments().items()}
            runtime.accelerator.init_trackers("dash-vision", values)
        fit(job)
        finish(job)
    finally:
        job.close()
    if runtime.main and config.push_to_hub:
        print(f"pushed:   {push(config, job.plan.output)}")
    if runtime.main:
        print(f"pictures: {job.plan.output / 'samples.png'}")
        print(f"load it:  pipe.load_lora_weights({str(job.plan.output)!r}, weight_name={DIFFUSERS_NAME!r})")


def _what_fits(runtime: Runtime | None) -> str:
    """What to do where the memory does not suffice."""
    import torch

    from ..core.decompositions import memory

    gpu = runtime is not None and runtime.device.type == "cuda"
    size = torch.cuda.get_device_properties(cast(Any, runtime).device).total_memory if gpu else memory()[0]
    budget = f"--budget {max(1, round(size / 2**30))}GB{'' if gpu else ' --no_gpu'}" if size else "--budget"
    return (
        f"dash-vision plan, with the settings of this run and {budget}, says which flags make it fit, such as "
        "--mixed_precision bf16, --gradient_checkpointing, --offload or --quantize; checkpoints and adapters written "
        "before are kept"
    )


def _explain(error: Exception, runtime: Runtime | None) -> str | None:
    """What to tell the user of an error of torch; None where there is nothing better than a report."""
    from ..runs.runtime import compile_failure, memory_failure

    known = compile_failure(error) or memory_failure(error, _what_fits(runtime))
    if known or runtime is None or runtime.world == 1:
        return known
    # torch has no error of its own for a peer that is gone: gloo's is a plain RuntimeError.
    return (
        "another process of this run has ended or cannot be reached; what was written before is kept, and the same "
        "command goes on from the latest checkpoint"
    )


def _terminate(signum: int, frame: object) -> None:
    """SIGTERM outside of training, where the run handles it, ends the process as SIGINT does."""
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> int:
    return fail(message, status, Path(sys.argv[0]).name)


def quiet() -> None:
    """Leave out what libraries say that is no news to the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
