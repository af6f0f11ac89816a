"""What a run will take of memory, from the base's configuration alone: see `estimate`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ..bases.family import Conditions
from ..bases.loading import Base
from ..bases.noise import NoiseProcess
from ..bases.offloading import waiting_share
from ..bases.quantization import BLOCK
from ..core.adapter import Adapter, inject
from ..core.directions import memory_of
from ..pictures.crops import CropInfo
from ..runs.seeds import stream
from .job import loss_of
from .latents import Batch
from .long_prompts import join_chunks, tokenize_chunks
from .metering import Meter, imagine, imagined, size_of, telling_shapes
from .plan import Plan
from .setup import noise_of, targets_of

# Bytes that an optimizer keeps for each number that it updates.
_STATE = {"adamw": 8, "8-bit adamw": 2, "prodigy": 16}
# Bytes of a weight in few bits, with bitsandbytes' scale of four bytes for a block; torchao has one for each row.
_QUANTIZED = {"nf4": 0.5 + 4 / BLOCK, "int8": 1.0, "fp8": 1.0}
_IN_AN_UPDATE = 8  # bytes a number that AdamW takes for a moment, for all tensors at once


@dataclass(frozen=True)
class Stage:
    """A part of a run, in bytes. device: on the GPU, by what takes them. host: of the machine's memory, beside what
    Python and the libraries take; of a run without a GPU it includes those of `device`."""

    name: str
    device: dict[str, int]
    host: int

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return sum(self.device.values())


@dataclass(frozen=True)
class Estimate:
    """stages: of a run, in their order. spectra: bytes of the machine's memory that the launch's decompositions take
    when they are all made ahead; they are made as far as there is room. decomposing: bytes that the largest of them
    takes while it is made."""

    stages: tuple[Stage, ...]
    spectra: int
    decomposing: int = 0

    @property
    def device(self) -> int:
        """Bytes on the GPU at most."""
        return max(stage.total for stage in self.stages)

    @property
    def host(self) -> int:
        """Bytes of the machine's memory at most."""
        return max(stage.host for stage in self.stages)


def estimate(plan: Plan, base: Base, dtype: torch.dtype, cuda: bool = True) -> Estimate:
    """What each stage of a run takes.

    base: from load_base(..., without_weights=True). dtype: what the denoiser is kept in.
    cuda: the run has a GPU. Activations are counted by making a training step, and by encoding and decoding a picture,
    with tensors that have no numbers (see metering). torch's allocator rounds its blocks up, and CUDA takes half a
    gigabyte for itself: neither is in it.
    """
    family, pipeline = base.family, base.pipeline
    vae, word = size_of(pipeline.vae), plan.settings.quantize_text_encoder
    encoders = sum(_kept(encoder, dtype, word) for encoder in base.text_encoders())
    conditions = _conditions(base, plan)
    denoiser, adapter, trained, activations, *spectra = _training(plan, base, dtype, cuda, conditions)
    encoding, decoding = _pictures(plan, base)
    stay = family.light_text_encoders or plan.settings.train_text_encoder  # else the text encoders are gone by then
    text = encoders if stay else 0
    state = "8-bit adamw" if plan.settings.use_8bit_adam else plan.settings.optimizer
    offload, waiting = plan.settings.offload, 0
    if offload == "group":
        waiting, at_work = _waiting(base, dtype)
        denoiser += at_work - waiting
    training = {"denoiser": denoiser, "adapter": adapter, "optimizer": trained * _STATE[state]}
    if plan.settings.train_text_encoder:
        training["text encoders"] = encoders
    training["gradients and activations"] = max(activations, trained * (4 + _IN_AN_UPDATE))
    drawing = {"denoiser": denoiser, "adapter": adapter, "VAE": vae, "activations": decoding}
    if offload == "model":  # the denoiser and the activations come one after the other
        drawing.pop("denoiser" if denoiser < decoding else "activations")
    stages = [
        ("prompts", {"text encoders": encoders}, encoders + vae),
        ("pictures", {"VAE": vae, "activations": encoding}, encoders + vae),
        ("training", training, waiting + denoiser + text + vae),
        ("samples", drawing, waiting + text + vae + (denoiser if offload == "model" else 0)),
    ]
    if not cuda:
        stages = [(name, parts, host - _moved(name, parts) + sum(parts.values())) for name, parts, host in stages]
    return Estimate(tuple(Stage(*stage) for stage in stages), *spectra)


def _waiting(base: Base, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the denoiser's blocks under --offload group: see offloading.waiting_share."""
    network = copy.deepcopy(base.denoiser).to(dtype)
    return waiting_share(network, base.family.units)


def _kept(encoder: nn.Module, dtype: torch.dtype, word: str) -> int:
    """Bytes of a text encoder: see load_base's dtype; the configuration says what the files hold."""
    stored = str(cast(Any, encoder).config.dtype).removeprefix("torch.")
    halves = word == "none" and dtype != torch.float32 and stored == "bfloat16"
    return _in_few_bits(encoder, word) // (2 if halves else 1)


def _in_few_bits(network: nn.Module, word: str) -> int:
    """Bytes of a network whose linear layers are quantized by a word of bases.quantization."""
    saved = 0.0
    for layer in network.modules() if word != "none" else ():
        if isinstance(layer, nn.Linear):
            saved += layer.weight.numel() * (layer.weight.element_size() - _QUANTIZED[word])
    return size_of(network) - int(saved)


def _unpacked(network: nn.Module, word: str) -> int:
    """Bytes of the largest quantized weight while it is unpacked for a product."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    sizes = [layer.weight.numel() * layer.weight.element_size() for layer in linear]
    return max(sizes, default=0) if word != "none" else 0


def _moved(name: str, parts: dict[str, int]) -> int:
    """Bytes of the networks that a run with a GPU moves there, and which are in `parts` too."""
    return sum(parts.get(part, 0) for part in ("text encoders", "VAE") + (("denoiser",) if name == "training" else ()))


def _conditions(base: Base, plan: Plan) -> Conditions:
    """The conditions of the training's prompt, in their shapes."""
    prompt = plan.prompts.instance
    with telling_shapes(base.text_encoders()):
        found = base.family.encode_prompts(base.pipeline, [prompt], torch.device("cpu"), base.prompt_options)
    return found[prompt]


def _training(
    plan: Plan, base: Base, dtype: torch.dtype, cuda: bool, conditions: Conditions
) -> tuple[int, int, int, int, int, int]:
    """(bytes of the denoiser, bytes of the adapter, numbers that are trained, bytes of a step's gradients and
    activations, bytes of the decompositions, bytes that the largest of them takes while it is made)."""
    family, settings = base.family, plan.settings
    process = noise_of(settings, base)
    networks = {name: copy.deepcopy(getattr(base.pipeline, name)) for name in targets_of(plan, base)}
    for network in networks.values():
        network.to(dtype)
    size = _in_few_bits(networks[family.denoiser], settings.quantize)
    unpacked = _unpacked(networks[family.denoiser], settings.quantize)
    batch = _batch(plan, base, process)
    with imagined(dtype, cuda):
        adapters = [_adapted(plan, base, name, network) for name, network in networks.items()]
        batch.latents, batch.noise = torch.empty_like(batch.latents), torch.empty_like(batch.noise)
        with Meter() as meter:
            told = _told(plan, base, networks, conditions) | batch.pictures
            loss_of(family, networks[family.denoiser], process, batch, told).backward()
            peak = meter.peak + unpacked
    layers = [layer for adapter in adapters for layer in adapter.layers.values()]
    kept = sum(size_of(layer.adapters) for layer in layers)
    trained = sum(p.numel() for adapter in adapters for p in adapter.parameters())
    shapes = [(layer.out_features, layer.in_features) for layer in layers if settings.dash_k > 0]
    spectra = sum(8 * min(shape) ** 2 for shape in shapes)
    return size, kept, trained, peak, spectra, max((memory_of(*shape) for shape in shapes), default=0)


def _told(plan: Plan, base: Base, networks: dict[str, nn.Module], conditions: Conditions) -> Conditions:
    """What the denoiser is told of a batch: encoded in the step where text encoders are trained."""
    family, number = base.family, _batch_size(plan)
    if not plan.settings.train_text_encoder:
        return family.join([conditions] * number)
    if plan.chunks > 1:
        ids = tokenize_chunks(family, base.pipeline, plan.prompts.instance, plan.chunks)
    else:
        ids = family.tokenize(base.pipeline, [plan.prompts.instance], torch.device("cpu"), base.prompt_options)
    ids = [torch.cat([torch.zeros_like(part)] * number) for part in ids]
    encoders = [networks[name] for name in family.trained_encoders]
    return join_chunks(family.encode_tokens(encoders, ids, base.prompt_options), plan.chunks)


def _adapted(plan: Plan, base: Base, name: str, network: nn.Module) -> Adapter:
    """The adapter in a network whose weights are made fake."""
    imagine(network)
    if plan.settings.gradient_checkpointing and name == base.family.denoiser:
        cast(Any, network).enable_gradient_checkpointing()
    elif plan.settings.gradient_checkpointing:
        cast(Any, network).gradient_checkpointing_enable({"use_reentrant": False})
    network.requires_grad_(False)
    adapter = inject(network, plan.settings.dash_config(plan.rank, targets_of(plan, base)[name]))
    network.train()
    return adapter


def _batch_size(plan: Plan) -> int:
    """Pictures that one pass through the denoiser sees: with prior preservation also as many of the class, and where
    the class is preserved those of the subject once more. The base's own pass keeps nothing, and is over by then."""
    return plan.train_batch_size * (1 + plan.settings.with_prior_preservation + plan.settings.preserve_class)


def _batch(plan: Plan, base: Base, process: NoiseProcess) -> Batch:
    """A batch of square pictures."""
    number, size = _batch_size(plan), (plan.resolution, plan.resolution)
    shape = (number, *base.family.latent_shape(base.pipeline, size))
    latents = torch.zeros(()).expand(shape)  # in no memory
    infos = [CropInfo(size, (0, 0))] * number
    return Batch(
        latents=latents,
        noise=latents,
        times=process.sample_times(number, size, stream(0, "plan")),
        prompts=[plan.prompts.instance] * number,
        pictures=base.family.picture_conditions(infos, size),
        share=torch.ones(number),
    )


def _pictures(plan: Plan, base: Base) -> tuple[int, int]:
    """Bytes of activations when one picture is encoded, and when one is decoded."""
    pipeline, side = base.pipeline, plan.resolution
    own, vae = pipeline.vae, copy.deepcopy(pipeline.vae)
    shape = base.family.latent_shape(pipeline, (side, side))
    peaks = []
    try:
        pipeline.register_modules(vae=vae)
        with imagined(torch.float32, cuda=False), torch.no_grad():
            imagine(vae)
            for work, given in (
                (base.family.encode_picture, torch.empty(1, 3, side, side)),
                (base.family.decode, torch.empty(1, *shape)),
            ):
                with Meter() as meter:
                    work(pipeline, given)
                peaks.append(meter.peak)
    finally:
        pipeline.register_modules(vae=own)
    return peaks[0], peaks[1]
