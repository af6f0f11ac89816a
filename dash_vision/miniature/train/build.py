"""Trains the miniature from seeds: renders, tokenizer, VAE, denoisers with their text encoders, CLIP, export, ViT.

`python -m dash_vision.miniature build --work DIR` runs the stages in order. Each leaves its result in the work folder
and is skipped when that is there; a stage that was stopped goes on from its last checkpoint. With `--init FOLDER` every
network starts from exported weights instead of random ones, and the VAE's encoder, hence the latents, stays theirs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ...files.errors import InputError
from .. import WEIGHTS
from .clip import train_clip
from .data import Settings, make_data, make_latents, make_tokenizer
from .decoder import train_decoder
from .export import export
from .flow import flow_denoiser, save_flow, train_flow
from .unet import denoiser, save_unet, train_unet
from .vae import train_vae


def train_vit(settings: Settings) -> None:
    """The ViT that train_vtab.py takes for its embedded tasks, on scenes and questions of its own."""
    if settings.init:
        print("vit: left as it is; it does not go on from other weights", flush=True)
        return
    # It belongs to the classification, which imports the scenes from here.
    from ...bases.backbones import MINIATURE_WEIGHTS
    from .vit import BuildPlan
    from .vit import build as build_vit

    own = settings.output.resolve() == WEIGHTS.resolve()
    plan = BuildPlan(
        work=settings.work / "vit",
        output=MINIATURE_WEIGHTS if own else settings.output / "vit.safetensors",
        scenes=min(48_000, settings.scenes),
        steps=settings.vit_steps,
        seed=settings.seed,
        device=settings.device,
        processes=settings.processes,
    )
    plan.work.mkdir(parents=True, exist_ok=True)
    plan.output.parent.mkdir(parents=True, exist_ok=True)
    accuracies = build_vit(plan)
    print(f"vit: {plan.output} {plan.output.stat().st_size / 1e6:.2f} MB; accuracy on held-out scenes:", flush=True)
    print("\n".join(f"  {question}: {value} %" for question, value in accuracies.items()), flush=True)


STAGES: dict[str, Callable[[Settings], None]] = {
    "data": make_data,
    "tokenizer": make_tokenizer,
    "vae": train_vae,
    "latents": make_latents,
    "decoder": train_decoder,
    "unet": train_unet,
    "clip": train_clip,
    "flow": train_flow,
    "export": export,
    "vit": train_vit,
}


def build(settings: Settings, stages: Sequence[str] = tuple(STAGES)) -> None:
    """Run the stages in order; those whose result is in the work folder are skipped. Raises InputError for settings
    that cannot be, Stopped and RunError as `Fit.run`."""
    _check(settings, stages)
    settings.work.mkdir(parents=True, exist_ok=True)
    _claim(settings)
    torch.set_flush_denormal(True)  # numbers too small for full speed count as zero
    try:
        for stage in stages:
            print(f"stage {stage}", flush=True)
            STAGES[stage](settings)
    finally:
        torch.set_flush_denormal(False)


def _check(settings: Settings, stages: Sequence[str]) -> None:
    if settings.device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"--device {settings.device}: PyTorch finds no CUDA device here; use --device cpu")
    if settings.init and not settings.initial("pipeline").is_dir():
        missing = settings.initial("pipeline")
        raise InputError(f"--init {settings.init}: there is no {missing}; give a folder that a build exported")
    for stage in stages:
        if stage not in STAGES:
            raise InputError(f"unknown stage {stage!r}; stages: {', '.join(STAGES)}")


def _claim(settings: Settings) -> None:
    """Note what the work folder is made with. Raises InputError where it was begun with something else."""
    file = settings.work / "settings.json"
    wanted = {"scenes": settings.scenes, "seed": settings.seed, "init": settings.init and str(settings.init)}
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if any(found.get(key) != value for key, value in wanted.items()):
            raise InputError(f"{settings.work} was begun with {found}, not {wanted}; use another --work folder")
    file.write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def snapshot(settings: Settings) -> None:
    """Export the averaged weights of the denoisers' trainings, read from their latest checkpoints; these trainings may
    still be running. Raises InputError where there is no checkpoint."""
    names = [name for name in ("unet", "flow") if (settings.work / f"{name}.checkpoint.safetensors").is_file()]
    if not names:
        raise InputError(f"{settings.work} has no checkpoint of a denoiser; run the stage 'unet' or 'flow' first")
    now = replace(settings, work=settings.work / "snapshot")
    trained_on = ["decoder"] if (settings.work / "decoder").is_dir() else []
    for name in ("vae", *trained_on, "tokenizer"):
        shutil.copytree(settings.work / name, now.work / name, dirs_exist_ok=True)
    if "unet" in names:
        unet, text, fit, _ = denoiser(settings)
        fit.resume()
        save_unet(unet, text, fit, now)
    if "flow" in names:
        transformer, text, _, fit, _ = flow_denoiser(settings)
        fit.resume()
        save_flow(transformer, text, fit, now)
    export(now)
