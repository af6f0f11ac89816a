"""A VTAB-1k folder and runs small enough to train in a second."""

import colorsys

import numpy as np
import torch
from PIL import Image
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from dash_vision.bases.backbones import Backbone, describe
from dash_vision.classification.config import VtabConfig
from dash_vision.classification.loop import Trainer
from dash_vision.classification.methods import prepare
from dash_vision.classification.run import backbone_of, execute, open_data
from dash_vision.classification.runtime import Runtime
from dash_vision.runs.tasks import find_task

CPU = Runtime(torch.device("cpu"))
COUNTS = {"train800": 24, "val200": 12, "test": 16}


default_cfgs = generate_default_cfgs(
    {"vtab_tiny.none": {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "classifier": "head"}}
)


@register_model
def vtab_tiny(pretrained=False, **options):
    """A ViT that timm knows by name, small enough to train in a moment."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return build_model_with_cfg(VisionTransformer, "vtab_tiny", pretrained, **{**shape, **options})


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


def one_run(tmp_path, **settings):
    """A Run of the tiny model on the task written by `write_task`."""
    values = {
        **TINY,
        "task": ["cifar"],
        "methods": ["dash"],
        "data_root": str(tmp_path / "data"),
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "runs"),
        "epochs": 4,
        "batch_size": 8,
        "rank": 2,
        "dash_k": 3,
        "prelaunch_steps": 5,
        "eval_batch_size": 7,
        **settings,
    }
    (run,) = VtabConfig(**values).runs()
    return run


def trained_run(tmp_path, **settings):
    """(run, result) of a finished run."""
    if not (tmp_path / "data").exists():
        write_task(tmp_path / "data")
    run = one_run(tmp_path, **settings)
    return run, execute(run, CPU)


CIFAR = find_task("cifar")


def trainer_of(tmp_path, runtime=CPU, val="val200", **settings):
    run = one_run(tmp_path, **settings)
    data, backbone = open_data(run), backbone_of(run)
    tuned = prepare(run, backbone, run.task.classes)
    return Trainer(run, tuned, backbone, data.split("train800"), data.split(val) if val else None, runtime, 0)


def tiny(**options):
    return describe("test_vit", 32, random=True, **options)


PEFT_CONFIGS = {
    "dora": {"peft_type": "LORA", "use_dora": True, "r": 2, "target_modules": ["qkv", "fc1"]},
    "pissa": {"peft_type": "LORA", "init_lora_weights": "pissa", "r": 2, "target_modules": ["qkv"]},
    "oft": {"peft_type": "OFT", "r": 0, "oft_block_size": 4, "target_modules": ["qkv"]},
    "ia3": {"peft_type": "IA3", "target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]},
}


BASE = Backbone("vtab_tiny", 32, (0.5,) * 3, (0.5,) * 3, random=True)
