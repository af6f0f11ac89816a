"""What others will load: a fresh stock pipeline with the run's own file, compared with what was trained.

The pipeline is made of copies of the networks that share every weight with the trained ones, so it takes no memory but
the adapter's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..bases.devices import cast_network
from ..bases.loading import Base, load_base
from ..bases.offloading import Offload, offload_of
from ..core.adapter import Adapter
from ..files.container import read_safetensors
from ..files.errors import InputError, RunError
from ..files.lora import DIFFUSERS_NAME
from ..runs.seeds import stream
from .job import DreamBoothJob
from .long_prompts import join_chunks

_ADAPTER = "exported"
# Float32 sums in another order; half precision also rounds the factors of the update, which were trained in float32.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Comparison:
    """difference: of the denoiser's outputs, relative to their size. recognised, tensors: of the file."""

    difference: float
    recognised: int
    tensors: int

    def __str__(self) -> str:
        return (
            f"the exported adapter gives the trained model: {self.difference:.0e}; {self.recognised} of {self.tensors} "
            "tensors recognised"
        )


def load_exported(job: DreamBoothJob) -> Base:
    """The job's base with a stock pipeline that has loaded the file of the run's folder, on the same device."""
    pipeline = stock_pipeline(job.base.pipeline, job.adapters)
    pipeline.load_lora_weights(str(job.plan.output), weight_name=DIFFUSERS_NAME, adapter_name=_ADAPTER)
    denoiser = getattr(pipeline, job.base.family.denoiser)
    offload = offload_of(denoiser)
    if offload is not None:  # the LoRA was put where the weights wait
        offload.place(denoiser)
    return replace(job.base, pipeline=pipeline)


def load_other(job: DreamBoothJob, name: str) -> Base:
    """The base of --sample_with, which has loaded the file of the run's folder. Raises InputError where it does not
    fit."""
    settings = job.plan.settings
    other = load_base(
        name,
        max_sequence_length=settings.max_sequence_length,
        clip_skip=settings.clip_skip,
        quantize=settings.quantize,
        dtype=job.runtime.dtype,
    )
    for network in (job.base.denoiser, *job.base.text_encoders()):
        network.to("cpu")  # the device's memory is for the one that draws
    try:
        other.pipeline.load_lora_weights(str(job.plan.output), weight_name=DIFFUSERS_NAME, adapter_name=_ADAPTER)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--sample_with {name} does not take the adapter ({reason}); give a base of the same size"
        ) from None
    cast_network(other.denoiser, job.runtime.dtype)
    if settings.offload == "group":
        Offload(other.denoiser, job.runtime.device, other.family.units)
    return other


def stock_pipeline(pipeline: Any, adapters: Mapping[str, Adapter]) -> Any:
    """The pipeline again, its adapted networks as they were before, sharing their weights."""
    parts = dict(pipeline.components)
    known = type(pipeline)._get_signature_types()
    settings = {name: pipeline.config[name] for name in known if name not in parts and name in pipeline.config}
    parts |= {name: _unadapted(getattr(pipeline, name), adapter) for name, adapter in adapters.items()}
    fresh = type(pipeline)(**parts, **settings)
    fresh.set_progress_bar_config(disable=True)
    return fresh


def _unadapted(network: nn.Module, adapter: Adapter) -> nn.Module:
    """A copy of the modules, not of their tensors, with the plain layers in the adapter's places."""
    kept: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    kept |= {id(layer): layer.base for layer in adapter.layers.values()}
    kept[id(network.__dict__["dash_adapters"])] = {}
    kept[id(network.__dict__["_dash_requires_grad"])] = []
    clone = copy.deepcopy(network, kept)
    del clone.__dict__["dash_adapters"], clone.__dict__["_dash_requires_grad"]
    return clone


@torch.no_grad()
def compare(job: DreamBoothJob, exported: Base) -> Comparison:
    """Compare the denoisers on one training picture, its prompt, fixed noise and a fixed time.

    Raises RunError when they do not agree, or when the stock pipeline does not hold every tensor of the file.
    """
    trained, loaded = _answer(job, job.base), _answer(job, exported)
    difference = ((loaded - trained).norm() / trained.norm()).item()
    recognised, tensors = _recognised(job, exported.pipeline)
    found = Comparison(difference, recognised, tensors)
    if not difference <= _TOLERANCE[job.runtime.dtype] or recognised != tensors:
        raise RunError(
            f"diffusers does not load {job.plan.output / DIFFUSERS_NAME} as it was trained (the denoiser's output "
            f"differs by {difference:.1e}, {recognised} of {tensors} tensors are recognised); the adapter in "
            "dash-vision's own format is right: please report this"
        )
    return found


def _answer(job: DreamBoothJob, base: Base) -> Tensor:
    """What the base's denoiser says, in float32."""
    example, device = job.material.examples[0], job.runtime.device
    view = example.views[0]
    generator = stream(job.plan.settings.seed, "exported")
    noise, times = torch.randn(view.mean.shape, generator=generator), job.process.sample_times(1, view.size, generator)
    latents, times = view.mean[None].to(device), times.to(device)
    family, entry = base.family, job.material.conditions[example.prompt]
    with job.runtime.autocast():
        if job.plan.settings.train_text_encoder:
            tokens = family.encode_tokens(base.trained_encoders(), entry, base.prompt_options)
            entry = join_chunks(tokens, job.plan.chunks)
        pictures = {k: v.to(device) for k, v in family.picture_conditions([view.info], view.size).items()}
        noisy = job.process.noisy(latents, noise[None].to(device), times)
        return family.denoise(base.denoiser, noisy, times, family.join([entry]) | pictures).float()


def _recognised(job: DreamBoothJob, pipeline: Any) -> tuple[int, int]:
    """(tensors of the file that the pipeline's networks hold under their names and unchanged, tensors of the file)."""
    _, written = read_safetensors(job.plan.output / DIFFUSERS_NAME)
    held: dict[str, Tensor] = {}
    for component in job.adapters:
        for name, parameter in getattr(pipeline, component).named_parameters():
            if f".{_ADAPTER}." in name:
                held[_portable(f"{component}.{name.replace(f'.{_ADAPTER}.', '.')}")] = parameter
    same = 0
    for key, tensor in written.items():
        mine = held.get(_portable(key))
        same += mine is not None and torch.equal(mine.cpu(), tensor.to(mine.dtype))
    return same, len(written)


def _portable(key: str) -> str:
    """transformers 4 calls the layers of a text encoder text_model.encoder.layers, 5 encoder.layers."""
    return key.replace(".text_model.", ".")
