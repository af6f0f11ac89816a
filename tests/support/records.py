"""Whole records of runs, written without training: what runs/record.py reads."""

import json
from dataclasses import asdict

from dash_vision.runs.record import BackboneRecord, BaseRecord, DreamBoothRecord, VtabRecord


def dreambooth_record(**changes):
    """The record of a DreamBooth run as JSON values, with fields exchanged."""
    record = DreamBoothRecord(
        method="lora",
        base=BaseRecord("sd", "Stable Diffusion", {"unet": "1"}, {"name": "sd"}, {"unet": "1"}),
        instance_prompt="a photo of sks cat",
        class_prompt="a photo of cat",
        subject="sks cat",
        validation_prompts=["a photo of sks cat"],
        instance_digest="0123456789abcdef",
        arguments={
            "rank": 1,
            "dash_k": 0,
            "learning_rate": 1e-3,
            "resolution": 64,
            "num_inference_steps": 2,
            "guidance_scale": 2.0,
            "num_validation_images": 1,
        },
        seed=0,
        steps=1,
        launch=None,
        losses=[1.0],
        trainable_parameters=10,
        processes=1,
        fsdp=False,
        mixed_precision="no",
        device="cpu, 1 thread",
        timings={"train": 1.0},
        started="2026-01-01T00:00:00Z",
        seconds=1.0,
        versions={},
    )
    return {**asdict(record), **changes}


def vtab_record(**changes):
    """The record of a VTAB run as JSON values, with fields exchanged."""
    score = {"epoch": 1, "train_loss": 1.0, "val_accuracy": 50.0, "val_loss": 1.0, "launched": False}
    record = VtabRecord(
        task="cifar",
        group="natural",
        synthetic=False,
        official_split=True,
        method="lora",
        seed=0,
        model="vit",
        backbone=BackboneRecord("vit", "0123456789abcdef", "timm's vit"),
        normalization={"mean": [0.5] * 3, "std": [0.5] * 3},
        selected_epoch=1,
        selected_settings={},
        val_accuracy=1.0,
        test_accuracy=None,
        selection={"rule": "best_val", "candidate": 0, "epoch": 1, "curves": [[score]]},
        launch=None,
        images={"train800": 24, "val200": 12, "train800val200": 36, "test": 16},
        parameters={"model": 1_000_000, "trained": 300_000, "trained_without_head": 290_000},
        data="data",
        arguments={"batch_size": 8, "prelaunch_steps": 5},
        processes=1,
        mixed_precision="no",
        device="cpu, 1 thread",
        seconds={"total": 1.0},
        finished="2026-01-01T00:00:00+00:00",
        versions={},
    )
    return {**asdict(record), **changes}


def write_record(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
