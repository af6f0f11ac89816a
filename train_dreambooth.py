"""Teach a Stable Diffusion model your subject from a few pictures, with LoRA-Dash (arXiv 2409.01035).

accelerate launch train_dreambooth.py --instance_data cat/ --dash_k 8
"""

import os
import sys
import warnings
from pathlib import Path

DESCRIPTION = "DreamBooth training with LoRA-Dash: plain LoRA first, then also the task-specific directions."
EPILOG = """examples:
  accelerate launch train_dreambooth.py --instance_data cat/ --dash_k 8
  accelerate launch train_dreambooth.py --instance_data my_dog/ --instance_prompt "a photo of sks dog" \\
      --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --mixed_precision fp16

exit status: 0 finished; 1 could not go on; 2 wrong settings or input; 128 + n stopped by signal n, checkpoint written
"""


def main() -> int:
    """Parse, train, report. Returns the exit status."""
    from dash_vision.cli import parse
    from dash_vision.diffusion.config import DreamBoothConfig

    config = parse(DreamBoothConfig, DESCRIPTION, EPILOG)
    _quiet()
    # Late, so that --help and wrong settings are answered at once.
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    from dash_vision.cli import UsageError
    from dash_vision.diffusion.images import ImageFolderError
    from dash_vision.diffusion.training import DreamBoothRun, Stopped, TrainingError

    try:
        project = ProjectConfiguration(config.output_dir, str(Path(config.output_dir) / config.logging_dir))
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision, log_with=config.report_to, project_config=project
        )
        _use_cores()
        run = DreamBoothRun(config, accelerator, print)
        if config.report_to:
            accelerator.init_trackers("dash-vision", {k: str(v) for k, v in config.to_dict().items()})
        run.fit()
        run.save()
    except Stopped as stopped:
        return _say_stopped(stopped, config.output_dir, accelerator.is_main_process)
    except (UsageError, ImageFolderError) as error:
        return _fail(str(error), 2)
    except TrainingError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(
            f"{error.strerror or error}: {error.filename or config.output_dir}; what was written before is kept", 1
        )
    if accelerator.is_main_process:
        print(f"pictures: {run.output / 'samples.png'}")
        print(f"load it:  pipe.load_lora_weights({str(run.output)!r})")
    accelerator.end_training()
    return 0


def _fail(message: str, status: int) -> int:
    print(f"train_dreambooth.py: error: {message}", file=sys.stderr)
    return status


def _say_stopped(stopped: object, output_dir: str, main_process: bool) -> int:
    from dash_vision.diffusion.training import Stopped

    assert isinstance(stopped, Stopped)
    if main_process:
        where = f"wrote {stopped.checkpoint}" if stopped.checkpoint else "nothing trained yet"
        print(f"stopped by {stopped}; {where}; go on with the same command and --resume_from_checkpoint latest")
    return 128 + stopped.signum


def _quiet() -> None:
    """Leave out what libraries say that is no news to the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")


def _use_cores() -> None:
    """Share out the cores among the processes of this machine, where accelerate launch gave each one thread only."""
    import torch

    launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by accelerate launch, with OMP_NUM_THREADS=1
    if launched and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


if __name__ == "__main__":
    sys.exit(main())
