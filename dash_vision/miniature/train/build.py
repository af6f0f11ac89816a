"""Trains the miniature from seeds: renders, tokenizer, VAE, UNet with its text encoder, CLIP, export.

`python -m dash_vision.miniature build --work DIR` runs the stages in order. Each leaves its result in the work folder
and is skipped when that is there; a stage that was stopped goes on from its last checkpoint. With `--init FOLDER` every
network starts from exported weights instead of random ones, and the VAE's encoder, hence the latents, stays theirs.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from ...files.atomic import replacing
from ...runs.runtime import autocast
from .. import WEIGHTS
from ..world.scenes import SIZE, Scene, caption, random_scene, render
from ..world.vocabulary import write_tokenizer
from .fit import Fit, Plan
from .networks import (
    PROMPT_LENGTH,
    new_clip,
    new_text_encoder,
    new_unet,
    new_vae,
    sampling_scheduler,
    training_scheduler,
)

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

STAGES = ("data", "tokenizer", "vae", "latents", "unet", "clip", "export", "vit")
CHUNK = 500

VAE_PLAN = Plan(
    steps=2600, learning_rate=2e-3, batch_size=16, warmup=100, weight_decay=1e-4, average=0.998, save_every=200
)
UNET_PLAN = Plan(steps=2080, learning_rate=1e-3, warmup=100, muon=2e-3, save_every=200)
CLIP_PLAN = Plan(steps=330, learning_rate=1e-3, batch_size=128, warmup=40, muon=2e-3, save_every=100)


@dataclass
class Settings:
    """What one build depends on. The defaults are those of the shipped weights."""

    work: Path
    output: Path  # the folder that receives pipeline/ and clip/, and vit.safetensors unless it is the package's
    device: str = "cpu"
    scenes: int = 64_000
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    seed: int = 0
    compile: bool = False  # the VAE's and the UNet's steps, by torch.compile
    init: Path | None = None  # exported weights to start from
    vae: Plan = VAE_PLAN
    unet: Plan = UNET_PLAN
    clip: Plan = CLIP_PLAN
    vit_steps: int = 2400


def training_scene(index: int) -> Scene:
    """Scene number `index` of the endless training set; drawing it again gives the same scene."""
    return random_scene(Random(f"train {index}"))


def fresh_scene(index: int) -> Scene:
    """Scene number `index` of the set that no network has seen: for measuring."""
    return random_scene(Random(f"fresh {index}"))


def _render_chunk(start: int) -> np.ndarray:
    return np.stack([np.asarray(render(training_scene(i))) for i in range(start, start + CHUNK)])


def to_tensor(pictures: np.ndarray | Tensor) -> Tensor:
    """uint8 [N, 64, 64, 3] -> float32 [N, 3, 64, 64] in -1..1."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def fresh_pictures(count: int) -> Tensor:
    """Renders of the first `count` fresh scenes: float32 [count, 3, 64, 64] in -1..1."""
    return to_tensor(np.stack([np.asarray(render(fresh_scene(i))) for i in range(count)]))


def psnr(pictures: Tensor, others: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; values in -1..1, so the peak is 2."""
    error = (pictures.clamp(-1, 1) - others.clamp(-1, 1)).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


# -------------------------------------------------------------------------------------------------- the stages


def make_data(settings: Settings) -> None:
    """images.npy: uint8 [scenes, 64, 64, 3]."""
    path = settings.work / "images.npy"
    if path.exists():
        return
    if settings.scenes % CHUNK:
        raise ValueError(f"--scenes must be a multiple of {CHUNK}, got {settings.scenes}")
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


def make_tokenizer(settings: Settings) -> None:
    """tokenizer/."""
    if (settings.work / "tokenizer" / "tokenizer_config.json").exists():
        return
    if settings.init:
        shutil.copytree(settings.init / "pipeline" / "tokenizer", settings.work / "tokenizer", dirs_exist_ok=True)
    else:
        write_tokenizer(settings.work / "tokenizer", PROMPT_LENGTH)


def _load_pictures(settings: Settings) -> Tensor:
    path = settings.work / "images.npy"
    if not path.exists():
        raise ValueError(f"there is no {path}; run the stage 'data' first")
    return torch.from_numpy(np.load(path))


def _slopes(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def train_vae(settings: Settings) -> None:
    """vae/: the autoencoder, with the scaling factor that gives its latents unit variance."""
    if (settings.work / "vae" / "config.json").exists():
        return
    device = settings.device
    pictures = _load_pictures(settings)
    torch.manual_seed(settings.seed)
    vae = new_vae()
    if settings.init:
        vae = type(vae).from_pretrained(settings.init / "pipeline" / "vae").train()
        for encoding in (vae.encoder, vae.quant_conv):
            encoding.requires_grad_(False)
    vae.to(device).to(memory_format=torch.channels_last)  # its wide, shallow convolutions are faster so
    fit = Fit("vae", {"vae": vae}, settings.vae, settings.work, settings.seed)
    encode, decode = vae.encode, vae.decode
    if settings.compile:
        encode, decode = torch.compile(encode), torch.compile(decode)

    def loss_at(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(pictures), (settings.vae.batch_size,), generator=generator)
        x = to_tensor(pictures[index]).to(device, memory_format=torch.channels_last)
        with autocast(device):
            posterior = encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            y = decode(posterior.mean + posterior.std * noise).sample
        y = y.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        # Edges carry the subjects' small parts, and a plain distance forgives blurring them.
        slope = sum(
            (F.l1_loss(a, b) for a, b in zip(_slopes(y), _slopes(x), strict=True)), torch.zeros((), device=device)
        )
        squared = F.mse_loss(y, x)
        loss = F.l1_loss(y, x) + 2 * squared + 0.5 * slope + 1e-4 * divergence
        return loss, {"psnr": 10 * math.log10(4 / squared.item()), "kl": divergence.item()}

    fit.run(loss_at)
    fit.use_averages()
    vae.eval()
    if not settings.init:
        with torch.no_grad():
            sample = to_tensor(pictures[:2000])
            latents = torch.cat([vae.encode(x.to(device)).latent_dist.mean for x in sample.split(250)])
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    _save_model(vae, settings.work / "vae")
    fresh = fresh_pictures(500)
    with torch.no_grad():
        back = torch.cat([vae.decode(vae.encode(x.to(device)).latent_dist.mean).sample.cpu() for x in fresh.split(100)])
    print(f"vae: PSNR on 500 fresh renders {psnr(back, fresh):.2f} dB", flush=True)


def _save_model(model: Any, folder: Path) -> None:
    """save_pretrained to a temporary folder, then rename: no half-written model is ever taken for a whole one."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def make_latents(settings: Settings) -> None:
    """latents.npy: float16 [scenes, 4, 16, 16], scaled to unit variance."""
    from diffusers import AutoencoderKL

    path = settings.work / "latents.npy"
    if path.exists():
        return
    vae = AutoencoderKL.from_pretrained(settings.work / "vae").to(settings.device).eval()
    pictures = _load_pictures(settings)
    latents = np.empty((len(pictures), 4, SIZE // 4, SIZE // 4), np.float16)
    for start in range(0, len(pictures), CHUNK):
        x = to_tensor(pictures[start : start + CHUNK]).to(settings.device)
        with torch.no_grad(), autocast(settings.device):
            mean = vae.encode(x).latent_dist.mean
        latents[start : start + CHUNK] = (mean.float() * vae.config.scaling_factor).cpu().numpy()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, latents)


def load_tokenizer(settings: Settings) -> CLIPTokenizer:
    """The work folder's tokenizer."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(settings.work / "tokenizer")


def prompt_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Padded token ids [N, PROMPT_LENGTH]."""
    options = {"padding": "max_length", "max_length": PROMPT_LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids


def _denoiser(settings: Settings) -> tuple[Any, Any, Fit, CLIPTokenizer]:
    tokenizer = load_tokenizer(settings)
    torch.manual_seed(settings.seed + 1)
    unet = new_unet()
    text: Any = new_text_encoder(tokenizer)
    if settings.init:
        unet = type(unet).from_pretrained(settings.init / "pipeline" / "unet").train()
        text = type(text).from_pretrained(settings.init / "pipeline" / "text_encoder").train()
    unet.to(settings.device)
    if settings.device == "cpu":
        # The backward pass of PyTorch's fused attention took 40% of a step on CPU; the plain product is faster there.
        unet.set_attn_processor(AttnProcessor())
        unet.to(memory_format=torch.channels_last)  # with torch.compile 50 pictures/s instead of 44 on 2 cores
    text.to(settings.device)
    if settings.device == "cpu":
        text.set_attn_implementation("eager")
    fit = Fit("unet", {"unet": unet, "text_encoder": text}, settings.unet, settings.work, settings.seed + 1)
    return unet, text, fit, tokenizer


def train_unet(settings: Settings) -> None:
    """unet/ and text_encoder/: the denoiser and the text encoder that conditions it, trained together.

    v-prediction; each step's loss is weighted by min(SNR, 5) / (SNR + 1) (arXiv 2303.09556); one caption in ten is
    empty, so that classifier-free guidance has its other half.
    """
    if (settings.work / "unet" / "config.json").exists():
        return
    device, plan = settings.device, settings.unet
    path = settings.work / "latents.npy"
    if not path.exists():
        raise ValueError(f"there is no {path}; run the stages 'vae' and 'latents' first")
    latents = torch.from_numpy(np.load(path))
    scenes = [training_scene(i) for i in range(len(latents))]
    unet, text, fit, tokenizer = _denoiser(settings)
    denoise = torch.compile(unet) if settings.compile else unet
    scheduler = training_scheduler()
    signal = scheduler.alphas_cumprod

    def loss_at(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = Random(f"captions {settings.seed} {step}")
        index = torch.randint(len(latents), (plan.batch_size,), generator=generator)
        prompts = ["" if rng.random() < 0.1 else caption(scenes[i], rng) for i in index.tolist()]
        z = latents[index].float()
        noise = torch.randn(z.shape, generator=generator)
        # One step drawn from each of batch_size equal ranges: less variance than independent draws.
        spread = (torch.arange(plan.batch_size) + torch.rand(plan.batch_size, generator=generator)) / plan.batch_size
        t = (spread * scheduler.config.num_train_timesteps).long()
        target = scheduler.get_velocity(z, noise, t).to(device)
        noisy = scheduler.add_noise(z, noise, t).to(device)
        with autocast(device):
            states = text(prompt_ids(tokenizer, prompts).to(device)).last_hidden_state
            predicted = denoise(noisy, t.to(device), states).sample
        snr = signal[t] / (1 - signal[t])
        weight = (snr.clamp(max=5) / (snr + 1)).to(device)
        return (weight * (predicted.float() - target).square().flatten(1).mean(1)).mean(), {}

    fit.run(loss_at)
    fit.use_averages()
    _save_model(unet.eval(), settings.work / "unet")
    _save_model(text.eval(), settings.work / "text_encoder")


def train_clip(settings: Settings) -> None:
    """clip/: a vision tower and both projections, fitted to the UNet's frozen text encoder.

    The text tower stays what conditions the UNet, so pictures are measured in the space that drew them; fitting only
    the other side is "locked" contrastive tuning (arXiv 2111.07991).
    """
    from transformers import CLIPTextModel

    if (settings.work / "clip" / "config.json").exists():
        return
    device, plan = settings.device, settings.clip
    pictures = _load_pictures(settings)
    scenes = [training_scene(i) for i in range(len(pictures))]
    tokenizer = load_tokenizer(settings)
    torch.manual_seed(settings.seed + 2)
    clip: Any = new_clip(tokenizer)
    if settings.init:
        clip = type(clip).from_pretrained(settings.init / "clip").train()
    clip.to(device)
    if device == "cpu":
        clip.set_attn_implementation("eager")
    text = CLIPTextModel.from_pretrained(settings.work / "text_encoder")
    clip.text_model.load_state_dict(_inner(text).state_dict())
    clip.text_model.requires_grad_(False)
    fit = Fit("clip", {"clip": clip}, plan, settings.work, settings.seed + 2)

    def loss_at(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = Random(f"clip captions {settings.seed} {step}")
        index = torch.randint(len(pictures), (plan.batch_size,), generator=generator)
        prompts = [caption(scenes[i], rng) for i in index.tolist()]
        with autocast(device):
            result = clip(
                input_ids=prompt_ids(tokenizer, prompts).to(device), pixel_values=to_tensor(pictures[index]).to(device)
            )
        logits = result.logits_per_text.float()
        # Pictures that share a caption are equally right answers.
        same = torch.tensor([[float(a == b) for b in prompts] for a in prompts], device=device)
        answers = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, answers) + F.cross_entropy(logits.T, answers)) / 2
        hits = (logits.argmax(1).cpu() == torch.arange(len(prompts))).float().mean().item()
        return loss, {"hits": hits}

    fit.run(loss_at)
    fit.use_averages()
    _save_model(clip.eval(), settings.work / "clip")


def _inner(text: nn.Module) -> nn.Module:
    """The transformer inside a CLIPTextModel, which wraps it in some versions of transformers and is it in others."""
    inner = getattr(text, "text_model", text)
    return inner if isinstance(inner, nn.Module) else text


def export(settings: Settings) -> None:
    """pipeline/ (Stable Diffusion, float16 safetensors) and clip/ (CLIP, likewise) in the output folder."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextModel

    work = settings.work
    if not (work / "unet" / "config.json").exists():
        raise ValueError(f"there is no trained UNet in {work}; run the stage 'unet' first")
    pipeline: Any = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae").half(),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder").half(),
        tokenizer=load_tokenizer(settings),
        unet=UNet2DConditionModel.from_pretrained(work / "unet").half(),
        scheduler=sampling_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

    def save(folder: Path, **options: Any) -> None:
        pipeline.save_pretrained(folder, **options)
        _name_for_every_version(folder / "text_encoder" / "model.safetensors")

    _replace_folder(settings.output / "pipeline", save)
    if (work / "clip" / "config.json").exists():
        clip = CLIPModel.from_pretrained(work / "clip").half()
        _replace_folder(settings.output / "clip", clip.save_pretrained)
        # What CLIPProcessor needs, so that the folder is whole: pictures to 64 pixels and to -1..1, and the tokenizer.
        pixels: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
        processor = CLIPImageProcessor(**pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        CLIPProcessor(processor, load_tokenizer(settings)).save_pretrained(settings.output / "clip")
        _tidy(settings.output / "clip")
    for folder in sorted(p for p in settings.output.iterdir() if p.is_dir()):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"export: {folder} {size / 1e6:.1f} MB", flush=True)


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


def _name_for_every_version(file: Path) -> None:
    """A CLIPTextModel's tensors under "text_model.", as in every published checkpoint: transformers before 5.6 reads no
    other names (and draws at random what it misses), later ones read both."""
    from safetensors.torch import load_file, save_file

    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def _replace_folder(folder: Path, save: Callable[..., Any]) -> None:
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(temporary, safe_serialization=True)
    _tidy(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


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


def snapshot(settings: Settings) -> None:
    """Export the averaged weights of a UNet training that is still running (read from its checkpoint)."""
    unet, text, fit, _ = _denoiser(settings)
    fit.resume()
    fit.use_averages()
    now = replace(settings, work=settings.work / "snapshot")
    now.work.mkdir(exist_ok=True)
    for name in ("vae", "tokenizer"):
        shutil.copytree(settings.work / name, now.work / name, dirs_exist_ok=True)
    _save_model(unet.eval(), now.work / "unet")
    _save_model(text.eval(), now.work / "text_encoder")
    export(now)


def build(settings: Settings, stages: Sequence[str] = STAGES) -> None:
    """Run the stages in order; those whose result is in the work folder are skipped."""
    if settings.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {settings.device}: PyTorch finds no CUDA device here; use --device cpu")
    if settings.init and not (settings.init / "pipeline").is_dir():
        raise ValueError(
            f"--init {settings.init}: there is no {settings.init / 'pipeline'}; give a folder that a build exported"
        )
    settings.work.mkdir(parents=True, exist_ok=True)
    steps = {
        "data": make_data,
        "tokenizer": make_tokenizer,
        "vae": train_vae,
        "latents": make_latents,
        "unet": train_unet,
        "clip": train_clip,
        "export": export,
        "vit": train_vit,
    }
    for stage in stages:
        if stage not in steps:
            raise ValueError(f"unknown stage {stage!r}; stages: {', '.join(STAGES)}")
    settings_file = settings.work / "settings.json"
    wanted = {"scenes": settings.scenes, "seed": settings.seed, "init": settings.init and str(settings.init)}
    if settings_file.exists():
        found = json.loads(settings_file.read_text(encoding="utf-8"))
        if any(found.get(key) != value for key, value in wanted.items()):
            raise ValueError(f"{settings.work} was begun with {found}, not {wanted}; use another --work folder")
    settings_file.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    torch.set_flush_denormal(True)  # numbers too small for full speed count as zero
    try:
        for stage in stages:
            print(f"stage {stage}", flush=True)
            steps[stage](settings)
    finally:
        torch.set_flush_denormal(False)
