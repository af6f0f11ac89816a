"""DreamBooth runs on tiny local bases, small enough to train in a second."""

import gc

from dash_vision.diffusion import setup
from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.run import finish, fit
from dash_vision.runs.runtime import make_runtime
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


def measured_settings(folder, out, **changes):
    """Of a run that is measured on two of the five pictures every second step, by the miniature's encoders."""
    common = {"holdout": "2", "evaluate_every": 2, "eval_encoders": ["miniature"], "num_inference_steps": 1}
    return settings(folder, out, **{**common, **changes})


def prepare(config, lines=None, mixed_precision="no", device="cpu", **options):
    """The job of a run. lines: takes what the run says. options: of make_runtime."""
    gc.collect()  # runs that are done with let go of their folders
    runtime = make_runtime(mixed_precision, device, **options)
    return setup.prepare(config, runtime, (lines if lines is not None else []).append)


def train(config, lines=None, mixed_precision="no", device="cpu"):
    """A whole run."""
    job = prepare(config, lines, mixed_precision, device)
    fit(job)
    finish(job)
    return job


def fitted(config, lines=None, mixed_precision="no", device="cpu"):
    """A run without its end: trained, with its checkpoints; no adapter is written and no picture drawn."""
    job = prepare(config, lines, mixed_precision, device)
    fit(job)
    job.close()
    return job


def states(job):
    """Every number of a job's adapters, by component and name."""
    found = {name: adapter.state_dict() for name, adapter in job.adapters.items()}
    return {f"{name}/{key}": tensor for name, state in found.items() for key, tensor in state.items()}


def before_each_batch(job, action):
    """Do `action(number)` before the loss of every batch."""
    loss = job.loss

    def watched(batch):
        action(batch)
        return loss(batch)

    job.loss = watched
