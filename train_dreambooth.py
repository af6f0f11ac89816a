"""Teach a Stable Diffusion model your subject from a few pictures, with LoRA-Dash (arXiv 2409.01035).

accelerate launch train_dreambooth.py --instance_data cat/ --dash_k 8
"""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dash_vision.diffusion.config import DreamBoothConfig

DESCRIPTION = "DreamBooth training with LoRA-Dash: plain LoRA first, then also the task-specific directions."
EPILOG = """examples:
  accelerate launch train_dreambooth.py --instance_data cat/ --dash_k 8
  accelerate launch train_dreambooth.py --instance_data my_dog/ --instance_prompt "a photo of sks dog" \\
      --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --mixed_precision fp16

exit status: 0 finished; 1 could not go on; 2 wrong settings or input; 128 + n stopped by signal n, checkpoint written
(accelerate launch itself reports every failure as 1)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, report. Returns the exit status."""
    from dash_vision.diffusion.config import DreamBoothConfig
    from dash_vision.files.errors import InputError
    from dash_vision.runs.runtime import compile_failure, take_sharding
    from dash_vision.runs.settings import parse

    config = parse(DreamBoothConfig, DESCRIPTION, EPILOG, arguments)
    _quiet()
    # Late, so that --help and wrong settings do not wait for diffusers.
    import torch

    from dash_vision.diffusion.training import DreamBoothRun, Stopped, TrainingError
    from dash_vision.files.lora import DIFFUSERS_NAME

    signal.signal(signal.SIGTERM, _terminate)
    accelerator = None
    try:
        sharded = take_sharding()
        accelerator = _make_accelerator(config)
        _use_cores()
        run = DreamBoothRun(config, accelerator, partial(print, flush=True), sharded)
        if config.report_to:
            accelerator.init_trackers("dash-vision", {k: str(v) for k, v in config.to_dict().items()})
        run.fit()
        run.save()
    except Stopped as stopped:
        if accelerator and accelerator.is_main_process:
            print(
                f"stopped by {stopped}; wrote {stopped.checkpoint}; go on with the same command and "
                "--resume_from_checkpoint latest"
            )
        return 128 + stopped.signum
    except InputError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted outside of training; checkpoints and adapters written before are kept", 130)
    except (TrainingError, FloatingPointError) as error:
        return _fail(f"{error}; what is in {config.output_dir} is kept", 1)
    except torch.cuda.OutOfMemoryError:
        return _fail(
            "the GPU's memory does not suffice; try --mixed_precision bf16 (or fp16), --gradient_checkpointing, "
            "--train_batch_size 1 or a smaller --resolution; checkpoints and adapters written before are kept",
            1,
        )
    except RuntimeError as error:
        uncompiled = compile_failure(error)
        if uncompiled:
            return _fail(uncompiled, 1)
        if accelerator is None or accelerator.num_processes == 1:
            raise
        # torch has no error of its own for a peer that is gone: gloo's is a plain RuntimeError.
        return _fail(
            "another process of this run has ended or cannot be reached; what was written before is kept, go on with "
            "--resume_from_checkpoint latest",
            1,
        )
    except OSError as error:
        where = error.filename or config.output_dir
        return _fail(f"{error.strerror or error}: {where}; what was written before is kept", 1)
    finally:
        if accelerator:
            accelerator.end_training()
    if accelerator.is_main_process:
        print(f"pictures: {run.output / 'samples.png'}")
        print(f"load it:  pipe.load_lora_weights({str(run.output)!r}, weight_name={DIFFUSERS_NAME!r})")
    return 0


def _terminate(signum: int, frame: object) -> None:
    """SIGTERM outside of training, where the run handles it, ends the process as SIGINT does."""
    raise KeyboardInterrupt


def _make_accelerator(config: "DreamBoothConfig") -> "Accelerator":
    """The process's device, precision and trackers. Raises InputError for what accelerate does not take."""
    import torch
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        InitProcessGroupKwargs,
        ProjectConfiguration,
        TorchDynamoPlugin,
    )

    from dash_vision.files.errors import InputError

    if config.report_to not in (None, "all"):
        there = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
        if config.report_to not in there:
            raise InputError(
                f"--report_to is {config.report_to}; installed trackers: {', '.join(there) or 'none'}; tensorboard and "
                "wandb come with pip install 'dash-vision[trackers]'"
            )
    folder = Path(config.output_dir).expanduser()
    handlers = [
        # The launch leaves equal buffers on all ranks: nothing to send in every step.
        DistributedDataParallelKwargs(broadcast_buffers=False),
        # The others wait while one fetches a base or draws the samples.
        InitProcessGroupKwargs(timeout=timedelta(hours=2)),
    ]
    # Without being told, accelerate starts no process group where there is no GPU: each process would train by itself.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=several and not torch.accelerator.is_available(),
            log_with=config.report_to,
            project_config=ProjectConfiguration(str(folder), str(folder / config.logging_dir)),
            kwargs_handlers=handlers,
            # Without it accelerate asks its own settings.
            dynamo_plugin=TorchDynamoPlugin(backend="inductor") if config.compile else None,
        )
    except ValueError as error:
        raise InputError(f"{error}; give another --mixed_precision") from None
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # On a CPU accelerate leaves autocast and loss scaler out, without a word; torch has both.
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu")
    return accelerator


def _fail(message: str, status: int) -> int:
    from dash_vision.files.errors import one_line

    print(f"train_dreambooth.py: error: {one_line(message)}", file=sys.stderr)
    return status


def _quiet() -> None:
    """Leave out what libraries say that is no news to the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")


def _use_cores() -> None:
    """Share out the cores among the processes of this machine, where a launcher gave each one thread only."""
    import torch

    # accelerate launch sets the first, torchrun the second; both set OMP_NUM_THREADS=1 unless it was given.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


if __name__ == "__main__":
    sys.exit(main())
