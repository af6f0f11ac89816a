"""A VTAB-1k folder and runs small enough to train in a second."""

import colorsys
import signal

import numpy as np
from PIL import Image
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from dash_vision.bases.backbones import Backbone, describe
from dash_vision.classification.config import VtabConfig
from dash_vision.classification.job import Plan, VtabJob
from dash_vision.classification.methods import prepare
from dash_vision.classification.run import Progress, backbone_of, execute, open_data
from dash_vision.runs.runtime import make_runtime
from dash_vision.runs.signals import StopRequest
from dash_vision.runs.tasks import find_task

COUNTS = {"train800": 24, "val200": 12, "test": 16}


default_cfgs = generate_default_cfgs(
    {
        f"{name}.none": {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "classifier": "head"}
        for name in ("vtab_tiny", "vtab_eva")
    }
)


@register_model
def vtab_tiny(pretrained=False, **options):
    """A ViT that timm knows by name, small enough to train in a moment."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return build_model_with_cfg(VisionTransformer, "vtab_tiny", pretrained, **{**shape, **options})


@register_model
def vtab_eva(pretrained=False, **options):
    """The same size of an EVA, which reads the weight of qkv and does not call the layer."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return build_model_with_cfg(Eva, "vtab_eva", pretrained, **{**shape, **options})


TINY = {"model": "vtab_tiny", "random_weights": True}


def write_task(root, name="cifar", counts=COUNTS, classes=4, size=12, seed=0, kind="png"):
    """A task folder: `classes` of the task's labels are used, each with a colour of its own under noise."""
    folder = root / name
    rng = np.random.default_rng(seed)
    lines = {}
    for split, count in counts.items():
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        lines[split] = []
        for i in range(count):
            label = i % classes
            colour = np.array(colorsys.hsv_to_rgb(label / classes, 0.8, 0.8)) * 255
            pixels = np.clip(colour + rng.normal(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)
            path = f"images/{split}/{i:06d}.{kind}"
            Image.fromarray(pixels).save(folder / path)
            lines[split].append(f"{path} {label}")
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for split, rows in lines.items():
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


def one_run(tmp_path, processes=1, **settings):
    """A Run of the tiny model on the task written by `write_task`."""
    values = {
        **TINY,
        "task": ["cifar"],
        "methods": ["dash"],
        "data_root": str(tmp_path / "data"),
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "runs"),
        "epochs": 4,
        "train_batch_size": 8,
        "rank": 2,
        "dash_k": 3,
        "prelaunch_steps": 5,
        "eval_batch_size": 7,
        **settings,
    }
    (run,) = VtabConfig(**values).runs(processes)
    return run


def cpu(precision="no"):
    """The runtime of this process on the CPU; another one that is made afterwards takes its place."""
    return make_runtime(precision, "cpu")


class StopAt(StopRequest):
    """A SIGTERM that arrives before optimizer step number `step`, counted over all trainings from 0."""

    def __init__(self, step):
        self.left = step

    @property
    def signal(self):
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else None


class Watching(Progress):
    """Calls a function with the job after every epoch."""

    def __init__(self, epoch):
        self.epoch = epoch


def trained_run(tmp_path, **settings):
    """(run, record) of a finished run."""
    if not (tmp_path / "data").exists():
        write_task(tmp_path / "data")
    run = one_run(tmp_path, **settings)
    return run, execute(run, cpu())


CIFAR = find_task("cifar")


def job_of(tmp_path, runtime=None, **settings):
    """The job that selects the epoch of `one_run`."""
    run = one_run(tmp_path, **settings)
    data, backbone = open_data(run), backbone_of(run)
    images = data.split("train800")
    tuned = prepare(run, backbone, run.task.classes, Plan.of(run, len(images)).steps)
    return VtabJob(run, tuned, backbone, images, data.split("val200"), runtime or cpu(), 0)


def fit(job, until):
    """Train a job that nothing stops."""
    assert job.fit(until, StopRequest())


def tiny(**options):
    return describe("test_vit", 32, random=True, **options)


PEFT_CONFIGS = {
    "dora": {"peft_type": "LORA", "use_dora": True, "r": 2, "target_modules": ["qkv", "fc1"]},
    "pissa": {"peft_type": "LORA", "init_lora_weights": "pissa", "r": 2, "target_modules": ["qkv"]},
    "oft": {"peft_type": "OFT", "r": 0, "oft_block_size": 4, "target_modules": ["qkv"]},
    "ia3": {"peft_type": "IA3", "target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]},
}


BASE = Backbone("vtab_tiny", 32, (0.5,) * 3, (0.5,) * 3, random=True)
