"""What the miniature's networks are trained on: scenes, their renders, prompts and latents, kept in a work folder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...files.atomic import replacing
from ...files.errors import InputError
from ...runs.runtime import autocast
from ..world.scenes import SIZE, Scene, caption, random_scene, render
from ..world.vocabulary import write_tokenizer
from .fit import Plan
from .networks import PROMPT_LENGTH

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CHUNK = 500

VAE_PLAN = Plan(
    steps=2600, learning_rate=2e-3, batch_size=16, warmup=100, weight_decay=1e-4, average=0.998, save_every=200
)
DECODER_PLAN = Plan(
    steps=3000,
    learning_rate=4e-4,
    batch_size=16,
    warmup=100,
    betas=(0.5, 0.99),
    weight_decay=0,
    average=0.998,
    save_every=200,
)
UNET_PLAN = Plan(steps=2080, learning_rate=1e-3, warmup=100, muon=2e-3, save_every=200)
FLOW_PLAN = Plan(steps=6000, learning_rate=1e-3, warmup=100, muon=3e-3, save_every=100)
CLIP_PLAN = Plan(steps=330, learning_rate=1e-3, batch_size=128, warmup=40, muon=2e-3, save_every=100)


@dataclass
class Settings:
    """What one build depends on. docs/miniature.md says how the shipped weights were made."""

    work: Path
    output: Path  # the folder that receives pipeline/ and clip/, and vit.safetensors unless it is the package's
    device: str = "cpu"
    scenes: int = 64_000
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    seed: int = 0
    compile: bool = False  # the steps of the VAE, its decoder and the UNet, by torch.compile
    init: Path | None = None  # exported weights to start from
    vae: Plan = VAE_PLAN
    decoder: Plan = DECODER_PLAN
    unet: Plan = UNET_PLAN
    flow: Plan = FLOW_PLAN
    clip: Plan = CLIP_PLAN
    vit_steps: int = 2400

    def initial(self, name: str) -> Path:
        """The exported weights that a network starts from. Only for a build with `init`."""
        assert self.init is not None
        return self.init / name


# -- scenes: two endless sets, the same ones in every build


def training_scene(index: int) -> Scene:
    """Scene number `index` of the endless training set; drawing it again gives the same scene."""
    return random_scene(Random(f"train {index}"))


def fresh_scene(index: int) -> Scene:
    """Scene number `index` of the set that no network has seen: for measuring."""
    return random_scene(Random(f"fresh {index}"))


def to_tensor(pictures: np.ndarray | Tensor) -> Tensor:
    """uint8 [N, 64, 64, 3] -> float32 [N, 3, 64, 64] in -1..1."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def rendered(scenes: Sequence[Scene]) -> Tensor:
    """Renders of the scenes: float32 [N, 3, 64, 64] in -1..1."""
    return to_tensor(np.stack([np.asarray(render(scene)) for scene in scenes]))


def psnr(pictures: Tensor, others: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; values in -1..1, so the peak is 2."""
    error = (pictures.clamp(-1, 1) - others.clamp(-1, 1)).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


# -- stages of the build


def make_data(settings: Settings) -> None:
    """images.npy: uint8 [scenes, 64, 64, 3]."""
    path = settings.work / "images.npy"
    if path.exists():
        return
    if settings.scenes % CHUNK:
        raise InputError(f"--scenes must be a multiple of {CHUNK}, got {settings.scenes}")
    temporary = settings.work / "images.npy.tmp"
    shape = (settings.scenes, SIZE, SIZE, 3)
    pictures = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
    with multiprocessing.get_context("spawn").Pool(settings.processes) as pool:
        for i, chunk in enumerate(pool.imap(_render_chunk, range(0, settings.scenes, CHUNK))):
            pictures[i * CHUNK : (i + 1) * CHUNK] = chunk
            if i % 10 == 9:
                print(f"data: {(i + 1) * CHUNK}/{settings.scenes} scenes", flush=True)
    pictures.flush()
    os.replace(temporary, path)


def _render_chunk(start: int) -> np.ndarray:
    return np.stack([np.asarray(render(training_scene(i))) for i in range(start, start + CHUNK)])


def make_tokenizer(settings: Settings) -> None:
    """tokenizer/."""
    if (settings.work / "tokenizer" / "tokenizer_config.json").exists():
        return
    if settings.init:
        shutil.copytree(settings.initial("pipeline/tokenizer"), settings.work / "tokenizer", dirs_exist_ok=True)
    else:
        write_tokenizer(settings.work / "tokenizer", PROMPT_LENGTH)


def make_latents(settings: Settings) -> None:
    """latents.npy: float16 [scenes, 4, 16, 16], scaled to unit variance."""
    from diffusers import AutoencoderKL

    path = settings.work / "latents.npy"
    if path.exists():
        return
    vae = AutoencoderKL.from_pretrained(settings.work / "vae").to(settings.device).eval()
    pictures = load_pictures(settings)
    latents = np.empty((len(pictures), 4, SIZE // 4, SIZE // 4), np.float16)
    for start in range(0, len(pictures), CHUNK):
        x = to_tensor(pictures[start : start + CHUNK]).to(settings.device)
        with torch.no_grad(), autocast(settings.device):
            mean = vae.encode(x).latent_dist.mean
        latents[start : start + CHUNK] = (mean.float() * vae.config.scaling_factor).cpu().numpy()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, latents)


# -- what the stages left


def load_pictures(settings: Settings) -> Tensor:
    """All renders, uint8 [scenes, 64, 64, 3]. Raises InputError where they are missing."""
    path = settings.work / "images.npy"
    if not path.exists():
        raise InputError(f"there is no {path}; run the stage 'data' first")
    return torch.from_numpy(np.load(path))


def load_latents(settings: Settings) -> Tensor:
    """All latents, float16 [scenes, 4, 16, 16]. Raises InputError where they are missing."""
    path = settings.work / "latents.npy"
    if not path.exists():
        raise InputError(f"there is no {path}; run the stages 'vae' and 'latents' first")
    return torch.from_numpy(np.load(path))


def load_tokenizer(settings: Settings) -> CLIPTokenizer:
    """The work folder's tokenizer."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(settings.work / "tokenizer")


def prompt_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Padded token ids [N, PROMPT_LENGTH]."""
    options = {"padding": "max_length", "max_length": PROMPT_LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids


def save_model(model: Any, folder: Path) -> None:
    """save_pretrained to a temporary folder, then rename: no half-written model is ever taken for a whole one."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def noisy_batch(
    latents: Tensor, scenes: Sequence[Scene], rng: Random, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[str]]:
    """What a denoiser learns from in one step: the numbers of its scenes [size]; latents and noise, both
    [size, 4, 16, 16]; places [size] in 0..1, one drawn from each of `size` equal ranges, which varies less than
    independent draws; and prompts, of which one in ten is empty, so that classifier-free guidance has its other half.
    """
    index = torch.randint(len(latents), (size,), generator=generator)
    prompts = ["" if rng.random() < 0.1 else caption(scenes[i], rng) for i in index.tolist()]
    z = latents[index].float()
    noise = torch.randn(z.shape, generator=generator)
    places = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    return index, z, noise, places, prompts
