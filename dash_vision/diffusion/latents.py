"""From pictures to batches: encoded once, drawn by number.

Every picture's views (crops, mirrored) pass the VAE once. What a batch holds then follows from the seed and the
batch's number alone: nothing about the order has to be saved for a resume, and one process with a batch of 4 sees
what two processes with batches of 2 see.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..bases.devices import placed
from ..bases.family import Conditions, moved
from ..bases.loading import Base
from ..bases.noise import NoiseProcess
from ..bases.sampling import encode_picture
from ..files.atomic import replacing
from ..pictures.crops import CropInfo, make_buckets, nearest_bucket, variants
from ..pictures.folder import InstanceImage
from ..runs.seeds import stream


@dataclass(frozen=True)
class View:
    """One crop of a picture as its latents' mean and standard deviation [C, H, W], and what was cut."""

    mean: Tensor
    std: Tensor
    info: CropInfo
    size: tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class Example:
    """A picture in all its views, with the prompt it is trained under. It is drawn `repeats` times in an epoch."""

    name: str
    prompt: str
    views: tuple[View, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Framing:
    """How pictures are cut. resolution in pixels; see DreamBoothConfig for the others."""

    resolution: int
    center_crop: bool
    random_flip: bool
    buckets: bool
    crops: int


def encode_examples(
    base: Base,
    images: Sequence[InstanceImage],
    prompt: str,
    framing: Framing,
    device: torch.device,
    seed: int,
    cache: Path | None = None,
    progress: Callable[[Iterable[InstanceImage]], Iterable[InstanceImage]] = iter,
) -> list[Example]:
    """Encode the views of every picture; a picture with a caption is trained under that instead of `prompt`.

    The VAE is moved to `device` for it and back. With `cache`, latents are kept there by the content of the view and
    by the VAE's weights and settings, and found again.
    """
    sizes = make_buckets(framing.resolution, base.grid) if framing.buckets else []
    vae_key = base.digest("vae") if cache else ""
    examples = []
    with placed([base.pipeline.vae], device):
        for i, picture in enumerate(progress(images)):
            width, height = picture.image.size
            square = (framing.resolution, framing.resolution)
            size = nearest_bucket(width, height, sizes) if framing.buckets else square
            views = variants(
                picture.image,
                size,
                framing.crops,
                crop="center" if framing.center_crop else "random",
                flip=framing.random_flip,
                generator=stream(seed, "crops", i),
                original_size=picture.original_size,
            )
            encoded = [_encode(base, pixels, device, cache, vae_key) for pixels, _ in views]
            examples.append(
                Example(
                    picture.name,
                    picture.caption or prompt,
                    tuple(View(*latents, info, size) for latents, (_, info) in zip(encoded, views, strict=True)),
                    picture.repeats,
                )
            )
    return examples


def _encode(base: Base, pixels: Tensor, device: torch.device, cache: Path | None, key: str) -> tuple[Tensor, Tensor]:
    if cache is None:
        return encode_picture(base, pixels, device)
    path = cache / f"{key}-{_fingerprint([pixels])}.safetensors"
    if path.is_file():
        try:
            stored = load_file(path)
            return stored["mean"], stored["std"]
        except (SafetensorError, OSError, KeyError):
            pass  # cut short or foreign: encode it again and write over it
    mean, std = encode_picture(base, pixels, device)
    with replacing(path) as temporary:
        try:
            save_file({"mean": mean.contiguous(), "std": std.contiguous()}, temporary)
        except SafetensorError as error:
            raise OSError(errno.ENOSPC, f"could not be written ({error})", str(path)) from None
    return mean, std


def _fingerprint(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# -- drawing


class Order:
    """An endless order of examples, each epoch a new permutation; `order[j]` follows from the seed and j alone.

    Batches hold pictures of one size. With several sizes an epoch is cut into batches of one size each, the last one
    of a size filled up from its beginning, and the batches are shuffled.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int, name: str) -> None:
        self.batch_size, self.seed, self.name = batch_size, seed, name
        groups: dict[tuple[int, int], list[int]] = {}
        for i, example in enumerate(examples):
            groups.setdefault(example.views[0].size, []).extend([i] * example.repeats)
        self.groups = list(groups.values())

    def batch(self, number: int) -> list[tuple[int, int]]:
        """(example, slot) of batch `number`; the slot is a number of its own for every draw, for its noise."""
        first = number * self.batch_size
        slots = range(first, first + self.batch_size)
        if len(self.groups) == 1:
            return [(self._place(slot), slot) for slot in slots]
        batches = sum(-(-len(group) // self.batch_size) for group in self.groups)
        chosen = self._sized_batches(number // batches)[number % batches]
        return list(zip(chosen, slots, strict=True))

    def _place(self, slot: int) -> int:
        group = self.groups[0]
        epoch, place = divmod(slot, len(group))
        return group[int(self._permutation(len(group), epoch, 0)[place])]

    def _sized_batches(self, epoch: int) -> list[list[int]]:
        batches = []
        for g, group in enumerate(self.groups):
            order = [group[i] for i in self._permutation(len(group), epoch, g + 1).tolist()]
            starts = range(0, len(order), self.batch_size)
            batches += [[order[(i + j) % len(order)] for j in range(self.batch_size)] for i in starts]
        return [batches[i] for i in self._permutation(len(batches), epoch, 0).tolist()]

    def _permutation(self, n: int, epoch: int, which: int) -> Tensor:
        return torch.randperm(n, generator=stream(self.seed, self.name, epoch, which))


@dataclass
class Batch:
    """Latents and noise [N, C, H, W], times of the noise process [N], prompts, and the pictures' own conditions; on
    the CPU at first.

    share [N]: the factor of each picture's loss in the batch's. kept: how many at the end are to be predicted as the
    frozen base does, instead of by the noise process.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    prompts: list[str]
    pictures: Conditions
    share: Tensor
    kept: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        latents, noise, times = (t.to(device) for t in (self.latents, self.noise, self.times))
        pictures, share = moved(self.pictures, device), self.share.to(device)
        return Batch(latents, noise, times, self.prompts, pictures, share, self.kept)

    def preserving(self, prompts: Sequence[str], weight: float) -> Batch:
        """The same noisy pictures under other prompts, to be predicted as the frozen base does. Their shares of the
        loss add up to `weight`."""
        share = torch.full_like(self.share, weight / len(self.share))
        return replace(self, prompts=list(prompts), share=share, kept=len(self.share))

    def of_base(self) -> Batch:
        """The pictures at the end that are to be predicted as the frozen base does."""
        first = len(self.prompts) - self.kept
        latents, noise, times, share = (t[first:] for t in (self.latents, self.noise, self.times, self.share))
        pictures = {key: value[first:] for key, value in self.pictures.items()}
        return Batch(latents, noise, times, self.prompts[first:], pictures, share, self.kept)


def draw_batch(
    base: Base,
    examples: Sequence[Example],
    order: Order,
    number: int,
    process: NoiseProcess,
    weight: float = 1.0,
    noise_offset: float = 0.0,
) -> Batch:
    """Batch `number` of an order: views, latents, noise and times of each slot from the slot's own generator.

    The pictures' shares of the loss add up to `weight`. noise_offset: factor of a normal number for each picture and
    channel that is added to its noise, so that a base also learns to move a picture's mean.
    """
    latents, noises, times, infos, prompts = [], [], [], [], []
    size = (0, 0)
    for index, slot in order.batch(number):
        generator = stream(order.seed, order.name + " slot", slot)
        example = examples[index]
        view = example.views[int(torch.randint(len(example.views), (), generator=generator))]
        latents.append(view.mean + view.std * torch.randn(view.mean.shape, generator=generator))
        noises.append(torch.randn(view.mean.shape, generator=generator))
        times.append(process.sample_times(1, view.size, generator))
        if noise_offset:
            noises[-1] += noise_offset * torch.randn(len(view.mean), 1, 1, generator=generator)
        infos.append(view.info)
        prompts.append(example.prompt)
        size = view.size
    pictures = base.family.picture_conditions(infos, size)
    share = torch.full((len(prompts),), weight / len(prompts))
    return Batch(torch.stack(latents), torch.stack(noises), torch.cat(times), prompts, pictures, share)


def join(first: Batch, second: Batch) -> Batch:
    """Both batches as one; the pictures must have one size, and those that are kept come last."""
    return Batch(
        torch.cat([first.latents, second.latents]),
        torch.cat([first.noise, second.noise]),
        torch.cat([first.times, second.times]),
        first.prompts + second.prompts,
        {key: torch.cat([value, second.pictures[key]]) for key, value in first.pictures.items()},
        torch.cat([first.share, second.share]),
        second.kept,
    )


def prompts_of(*groups: Sequence[Example]) -> list[str]:
    """Every prompt that the examples are trained under, each once."""
    return list(dict.fromkeys(example.prompt for group in groups for example in group))
