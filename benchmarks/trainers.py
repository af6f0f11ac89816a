"""Both trainers end to end, beside plain loops built the way that the well-known scripts are: picture files read by a
DataLoader in every step, pictures and prompts encoded anew, adapters from PEFT."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dash_vision import DashConfig, inject
from dash_vision.bases.backbones import build, head_names
from dash_vision.bases.loading import Base, load_base
from dash_vision.classification.config import Run, VtabConfig
from dash_vision.classification.layout import data_root, read_split, task_folder
from dash_vision.classification.run import backbone_of, execute
from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.setup import prepare
from dash_vision.miniature import pipeline_path
from dash_vision.runs.loop import train
from dash_vision.runs.runtime import make_runtime
from dash_vision.runs.signals import StopRequest

from .exactness import SD15
from .exactness import build as build_unet
from .measure import Settings, Table, autocast, interleaved, ratio
from .models import set_launched

PICTURES = Path(__file__).resolve().parents[1] / "cat"
# The public configurations of Stable Diffusion 1.5 beside its UNet's.
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
_UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
_VIT_TARGETS = r"blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12])"
_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16"}


# -- DreamBooth


class InstancePictures(Dataset):
    """Picture files as a DreamBooth script reads them: from disk in every epoch."""

    def __init__(self, folder: Path, base: Base, prompt: str) -> None:
        self.files = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg"))
        side = base.resolution
        steps = [transforms.Resize(side), transforms.RandomCrop(side), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize([0.5], [0.5])])
        self.tokenizer, self.prompt = base.pipeline.tokenizer, prompt

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.files[index]) as picture:
            pixels = self.transform(picture.convert("RGB"))
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(self.prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return pixels, ids.input_ids[0]


def endless(loader: DataLoader) -> Iterator[Any]:
    """Its batches, epoch after epoch."""
    while True:
        yield from loader


def plain_dreambooth(
    base_name: str | None, batch_size: int, steps: int, settings: Settings, adapt: Callable[[nn.Module], None]
) -> Callable[[], None]:
    """`steps` steps of a plain loop. adapt: puts an adapter into the UNet."""
    base = load_base(base_name)
    pipeline, device = base.pipeline, settings.device
    for network in base.components().values():
        network.requires_grad_(False).to(device)
        if settings.dtype != torch.float32:
            network.to(settings.dtype)
    adapt(pipeline.unet)
    trained = [p for p in pipeline.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    pictures = InstancePictures(PICTURES, base, "a photo of sks cat")
    batches = endless(DataLoader(pictures, batch_size, shuffle=True, drop_last=True))
    scheduler, scaling = pipeline.scheduler, pipeline.vae.config.scaling_factor

    def step() -> None:
        pixels, ids = next(batches)
        latents = pipeline.vae.encode(pixels.to(device, settings.dtype)).latent_dist.sample() * scaling
        noise = torch.randn_like(latents)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=device)
        noisy = scheduler.add_noise(latents, noise, t)
        with autocast(settings):
            states = pipeline.text_encoder(ids.to(device))[0]
            predicted = pipeline.unet(noisy, t, states).sample
        velocity = base.noise().prediction == "v_prediction"
        target = scheduler.get_velocity(latents, noise, t) if velocity else noise
        F.mse_loss(predicted.float(), target.float()).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def run() -> None:
        for _ in range(steps):
            step()

    return run


def trainer_dreambooth(
    base: str | None, rank: int, k: int, steps: int, settings: Settings, folder: Path, compiled: bool
) -> tuple[Callable[[], None], int]:
    """(`steps` further steps of train_dreambooth.py's own run, pictures a step)."""
    config = DreamBoothConfig(
        instance_data_dir=str(PICTURES),
        output_dir=str(folder / f"k{k}"),
        pretrained_model_name_or_path=base,
        rank=rank,
        dash_k=k,
        mixed_precision=_PRECISION[settings.dtype],
        checkpointing_steps=0,
        compile=compiled,
    )
    job = prepare(config, make_runtime(config.mixed_precision, settings.device.type), lambda line: None)
    for adapter in job.adapters.values() if k else ():
        set_launched(adapter)

    for network in job.networks.values():
        network.train()

    def go_on() -> None:
        train(job, job.training, job.runtime, job.training.step + steps, StopRequest())

    return go_on, job.plan.train_batch_size


def dreambooth(
    settings: Settings,
    base: str | None,
    shape: str | None,
    width: float,
    side: int,
    rank: int,
    k: int,
    steps: int,
    compiled: bool,
) -> list[Table]:
    """Pictures a second of the trainer, after encoding and launch, and of plain loops on the same base.

    shape: "sd15" for random weights in the shape of Stable Diffusion 1.5 instead of `base` (width, side: see
    write_sd15), and only the two ways at the ends of the comparison: each holds the whole base. compiled: the trainer
    runs with --compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        if shape is None:
            return [_dreambooth(settings, base, base or "the miniature", rank, k, steps, compiled, whole=True)]
        write_sd15(Path(folder), width, side)
        title = f"random weights in the shape of SD 1.5 (UNet's width x {width:g}, {8 * side} pixels)"
        return [_dreambooth(settings, folder, title, rank, k, steps, compiled, whole=False)]


def write_sd15(folder: Path, width: float, side: int) -> None:
    """A pipeline with random weights in the public configuration of Stable Diffusion 1.5, for latents of side x side:
    the VAE and the text encoder in full, the UNet with `width` of its channels; the tokenizer is the miniature's, and
    the text encoder's table has its words."""
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_path() / "tokenizer", model_max_length=77)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    pipeline: Any = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, vocab_size=len(tokenizer), **ids)),
        tokenizer=tokenizer,
        unet=build_unet({**SD15, "sample_size": side}, width),
        scheduler=DDIMScheduler(**noise, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def _dreambooth(
    settings: Settings, base: str | None, title: str, rank: int, k: int, steps: int, compiled: bool, whole: bool
) -> Table:
    """title: the base in words; whole: every way, not only the first and the last."""

    def peft(unet: nn.Module) -> None:
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_UNET_TARGETS))  # type: ignore[operator]
        cast_training_params(unet)

    def dash(unet: nn.Module) -> None:
        set_launched(inject(unet, DashConfig(rank=rank, dash_k=k, target="unet-attention")))

    trainer = "train_dreambooth.py --compile" if compiled else "train_dreambooth.py"
    plain = "plain loop, PEFT LoRA"
    with tempfile.TemporaryDirectory() as folder:
        own, batch = trainer_dreambooth(base, rank, k, steps, settings, Path(folder), compiled)
        ways = {f"{trainer}, LoRA-Dash": own}
        if whole:
            lora, _ = trainer_dreambooth(base, rank, 0, steps, settings, Path(folder), compiled)
            ways[f"{trainer}, LoRA (--dash_k 0)"] = lora
            ways["plain loop, LoRA-Dash, nothing cached"] = plain_dreambooth(base, batch, steps, settings, dash)
        ways[plain] = plain_dreambooth(base, batch, steps, settings, peft)
        times = interleaved(ways, settings)
    rows: list[list[str | float]] = []
    for name, found in times.items():
        median = sorted(found)[len(found) // 2]
        rows.append([name, steps * batch / median, ratio(times, plain, name)])
    title = f"DreamBooth on {title}, {batch} pictures a step, rank {rank}, k = {k}"
    return Table(title, ("way", "pictures/s", "times as fast as the plain loop with PEFT"), rows)


# -- VTAB


class PictureFiles(Dataset):
    """A split's files as VTAB codes read them: opened, resized and normalised whenever they are asked for."""

    def __init__(self, run: Run, split: str) -> None:
        root = data_root(run.settings.data_root)
        listing = read_split(task_folder(root, run.task), run.task, split)
        self.paths, self.labels = listing.paths, listing.labels
        backbone = backbone_of(run)
        size = (backbone.image_size, backbone.image_size)
        bicubic = transforms.InterpolationMode.BICUBIC
        normalize = transforms.Normalize(backbone.mean, backbone.std)
        self.transform = transforms.Compose([transforms.Resize(size, bicubic), transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as picture:
            return self.transform(picture.convert("RGB")), self.labels[index]


def plain_vtab(run: Run, settings: Settings, workers: int) -> None:
    """The protocol in a plain loop with PEFT's LoRA: measure every epoch on val200, train again, test once."""

    def loader(split: str, train: bool) -> DataLoader:
        size = run.batch_size if train else run.settings.eval_batch_size
        return DataLoader(PictureFiles(run, split), size, shuffle=train, num_workers=workers)

    _plain_training(run, settings, loader("train800", train=True), loader("val200", train=False))
    # All epochs again, in every way: what is compared is time, and the best epoch of each is another.
    model = _plain_training(run, settings, loader("train800val200", train=True), None)
    _plain_accuracy(model, loader("test", train=False), settings)


def _plain_training(run: Run, settings: Settings, batches: DataLoader, val: DataLoader | None) -> nn.Module:
    """The model after all epochs."""
    device = settings.device
    model = build(backbone_of(run), run.task.classes, run.drop_path, head_seed=run.seed)
    config = LoraConfig(
        r=run.rank, lora_alpha=run.rank, target_modules=_VIT_TARGETS, modules_to_save=list(head_names(model))
    )
    model = get_peft_model(model, config).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=run.learning_rate, weight_decay=run.settings.adam_weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.epochs * len(batches))
    for _ in range(run.epochs):
        model.train()
        for images, labels in batches:
            with autocast(settings):
                loss = F.cross_entropy(model(images.to(device)).float(), labels.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if val is not None:
            _plain_accuracy(model, val, settings)
    return model


@torch.no_grad()
def _plain_accuracy(model: nn.Module, batches: DataLoader, settings: Settings) -> float:
    """The share of right answers."""
    model.eval()
    right = total = 0
    for images, labels in batches:
        with autocast(settings):
            right += int((model(images.to(settings.device)).argmax(1).cpu() == labels).sum())
        total += len(labels)
    return right / total


def vtab(
    settings: Settings, task: str, data_root: str | None, model: str, rank: int, k: int, epochs: int, workers: int
) -> list[Table]:
    """Seconds of a whole task: train, choose, train again, test."""
    counter = iter(range(10**6))
    runtime = make_runtime(_PRECISION[settings.dtype], str(settings.device))
    with tempfile.TemporaryDirectory() as folder:

        def run_of(method: str) -> Run:
            config = VtabConfig(
                task=[task],
                methods=[method],
                data_root=data_root,
                model=model,
                random_weights=model != "miniature",  # time does not depend on them
                cache_dir=str(Path(folder) / f"cache{next(counter)}"),  # nothing is decoded ahead
                output_dir=str(Path(folder) / f"runs{next(counter)}"),
                epochs=epochs,
                rank=rank,
                dash_k=k,
                prelaunch_steps=1,
                selection="last",
            )
            (run,) = config.runs()
            return run

        ours, plain = "train_vtab.py, LoRA-Dash", f"DataLoader of files ({workers} workers), PEFT LoRA"
        ways: dict[str, Callable[[], object]] = {
            ours: lambda: execute(run_of("dash"), runtime),
            "train_vtab.py, LoRA": lambda: execute(run_of("lora"), runtime),
            plain: lambda: plain_vtab(run_of("lora"), settings, workers),
        }
        times = interleaved(ways, settings)
    rows: list[list[str | float]] = []
    for name, found in times.items():
        rows.append([name, sorted(found)[len(found) // 2], ratio(times, plain, name)])
    title = f"A whole task ({task}, {model}, {epochs} epochs twice, test once), rank {rank}, k = {k}"
    return [Table(title, ("way", "seconds", "times as fast as the plain loop with PEFT"), rows)]
