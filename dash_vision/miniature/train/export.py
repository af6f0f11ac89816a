"""The build's stage "export": the trained networks as folders that diffusers and transformers load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...files.errors import InputError
from ..world.scenes import SIZE
from .data import Settings, load_tokenizer
from .networks import flow_scheduler, flow_tokenizer, sampling_scheduler


def export(settings: Settings) -> None:
    """In the output folder what was trained: pipeline/ (Stable Diffusion) with clip/ (CLIP), and flow/ (Z-Image), all
    as float16 safetensors. Raises InputError where there is neither."""
    unet, flow = (settings.work / part / "config.json" for part in ("unet", "flow/transformer"))
    if not unet.exists() and not flow.exists():
        raise InputError(f"there is no trained denoiser in {settings.work}; run the stage 'unet' or 'flow' first")
    if unet.exists():
        _replace_folder(settings.output / "pipeline", _pipeline(settings).save_pretrained)
        if (settings.work / "clip" / "config.json").exists():
            _export_clip(settings)
    if flow.exists():
        export_flow(settings)
    for folder in sorted(p for p in settings.output.iterdir() if p.is_dir()):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"export: {folder} {size / 1e6:.1f} MB", flush=True)


def export_flow(settings: Settings) -> None:
    """flow/ (Z-Image, float16 safetensors) in the output folder."""
    _replace_folder(settings.output / "flow", _flow_pipeline(settings).save_pretrained)


def _pipeline(settings: Settings) -> Any:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    work = settings.work
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(_vae_folder(settings)).half(),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder").half(),
        tokenizer=load_tokenizer(settings),
        unet=UNet2DConditionModel.from_pretrained(work / "unet").half(),
        scheduler=sampling_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _vae_folder(settings: Settings) -> Path:
    """That of the stage "decoder", or where it did not run that of "vae"."""
    trained_on = settings.work / "decoder"
    return trained_on if trained_on.is_dir() else settings.work / "vae"


def _flow_pipeline(settings: Settings) -> Any:
    from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Model

    work = settings.work
    vae: Any = AutoencoderKL.from_pretrained(_vae_folder(settings)).half()
    vae.register_to_config(shift_factor=0.0)  # this pipeline adds it
    return ZImagePipeline(
        vae=vae,
        text_encoder=Qwen3Model.from_pretrained(work / "flow" / "text_encoder").half(),
        tokenizer=flow_tokenizer(work / "tokenizer"),
        transformer=ZImageTransformer2DModel.from_pretrained(work / "flow" / "transformer").half(),
        scheduler=flow_scheduler(),
    )


def _export_clip(settings: Settings) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = settings.output / "clip"
    _replace_folder(folder, CLIPModel.from_pretrained(settings.work / "clip").half().save_pretrained)
    # What CLIPProcessor needs, so that the folder is whole: pictures to 64 pixels and to -1..1, and the tokenizer.
    pixels: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    processor = CLIPImageProcessor(**pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    CLIPProcessor(processor, load_tokenizer(settings)).save_pretrained(folder)
    _tidy(folder)


def _replace_folder(folder: Path, save: Callable[..., Any]) -> None:
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(temporary, safe_serialization=True)
    text_encoder = temporary / "text_encoder"
    if _is_clip(text_encoder / "config.json"):
        _name_for_every_version(text_encoder / "model.safetensors")
    _tidy(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _is_clip(config: Path) -> bool:
    return config.is_file() and json.loads(config.read_text(encoding="utf-8"))["model_type"].startswith("clip")


def _name_for_every_version(file: Path) -> None:
    """A CLIPTextModel's tensors under "text_model.", as in every published checkpoint: transformers before 5.6 reads no
    other names (and draws at random what it misses), later ones read both."""
    from safetensors.torch import load_file, save_file

    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def _tidy(folder: Path) -> None:
    """Make exported files readable for everybody; keep the work folder's path and the file's dtype out of their use."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
        if path.name == "config.json":
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)
            if "dtype" in config:
                # transformers would load in the dtype named here and diffusers in float32: they must agree.
                config["dtype"] = "float32"
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
