"""The command of DreamBooth training: settings in, exit status out."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.errors import InputError, RunError, Stopped, one_line
from ..runs.settings import parse
from .config import DreamBoothConfig

if TYPE_CHECKING:
    from ..runs.runtime import Runtime

DESCRIPTION = "DreamBooth training with LoRA-Dash: plain LoRA first, then also the task-specific directions."
EPILOG = """examples:
  accelerate launch train_dreambooth.py --instance_data cat/ --dash_k 8
  accelerate launch train_dreambooth.py --instance_data my_dog/ --instance_prompt "a photo of sks dog" \\
      --pretrained_model_name_or_path black-forest-labs/FLUX.2-klein-base-4B --mixed_precision bf16

exit status: 0 finished; 1 could not go on; 2 wrong settings or input; 128 + n stopped by signal n, checkpoint written
(accelerate launch itself reports every failure as 1)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, report. Returns the exit status."""
    config = parse(DreamBoothConfig, DESCRIPTION, EPILOG, arguments)
    _quiet()
    # Only now, so that --help and wrong settings do not wait for torch.
    import torch

    from ..runs.runtime import make_runtime

    signal.signal(signal.SIGTERM, _terminate)
    folder = Path(config.output_dir).expanduser()
    runtime: Runtime | None = None
    try:
        runtime = make_runtime(
            config.mixed_precision, log_with=config.report_to, folder=folder, logging_dir=config.logging_dir
        )
        _run(config, runtime)
    except Stopped as stopped:
        if runtime and runtime.main:
            print(f"stopped by {stopped.signal}; {stopped}; the same command goes on from there")
        return 128 + stopped.signum
    except InputError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted outside of training; checkpoints and adapters written before are kept", 130)
    except RunError as error:
        return _fail(f"{error}; what is in {config.output_dir} is kept", 1)
    except torch.cuda.OutOfMemoryError:
        return _fail(
            "the GPU's memory does not suffice; try --mixed_precision bf16 (or fp16), --gradient_checkpointing, "
            "--train_batch_size 1 or a smaller --resolution; checkpoints and adapters written before are kept",
            1,
        )
    except RuntimeError as error:
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
    from ..runs.runtime import use_cores
    from .run import finish, fit
    from .setup import prepare

    use_cores()
    job = prepare(config, runtime, partial(print, flush=True))
    if config.report_to:
        values = {name: str(value) for name, value in job.plan.arguments().items()}
        runtime.accelerator.init_trackers("dash-vision", values)
    fit(job)
    finish(job)
    if runtime.main:
        print(f"pictures: {job.plan.output / 'samples.png'}")
        print(f"load it:  pipe.load_lora_weights({str(job.plan.output)!r}, weight_name={DIFFUSERS_NAME!r})")


def _explain(error: RuntimeError, runtime: Runtime | None) -> str | None:
    """What to tell the user of an error of torch; None where there is nothing better than its traceback."""
    from ..runs.runtime import compile_failure

    uncompiled = compile_failure(error)
    if uncompiled or runtime is None or runtime.world == 1:
        return uncompiled
    # torch has no error of its own for a peer that is gone: gloo's is a plain RuntimeError.
    return (
        "another process of this run has ended or cannot be reached; what was written before is kept, and the same "
        "command goes on from the latest checkpoint"
    )


def _terminate(signum: int, frame: object) -> None:
    """SIGTERM outside of training, where the run handles it, ends the process as SIGINT does."""
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> int:
    print(f"{Path(sys.argv[0]).name}: error: {one_line(message)}", file=sys.stderr)
    return status


def _quiet() -> None:
    """Leave out what libraries say that is no news to the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
