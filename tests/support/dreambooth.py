"""DreamBooth runs on tiny local bases, small enough to train in a second."""

import gc

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.training import DreamBoothRun
from tests.support.paths import ROOT

SCRIPT = ROOT / "train_dreambooth.py"


def settings(folder, out, base="sd", **changes):
    common = {
        "pretrained_model_name_or_path": str(folder / base),
        "instance_data_dir": str(folder / "cat"),
        "output_dir": str(out),
        "rank": 2,
        "dash_k": 3,
        "max_train_steps": 8,
        "prelaunch_steps": 4,
        "train_batch_size": 2,
        "learning_rate": 1e-2,
        "num_inference_steps": 2,
        "validation_prompt": ["a photo of sks cat"],
    }
    return DreamBoothConfig(**{**common, **changes})


def accelerator(mixed_precision="no"):
    AcceleratorState._reset_state()
    PartialState._reset_state()
    return Accelerator(cpu=True, mixed_precision=mixed_precision)


def prepare(config, lines=None, mixed_precision="no"):
    gc.collect()  # runs that are done with let go of their folders
    return DreamBoothRun(config, accelerator(mixed_precision), (lines if lines is not None else []).append)


def train(config, lines=None, mixed_precision="no"):
    run = prepare(config, lines, mixed_precision)
    run.fit()
    run.save()
    return run
