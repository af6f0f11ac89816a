"""A run's score by PEFT's benchmark of image generation, and the record of it in the benchmark's format."""

from __future__ import annotations

import datetime as dt
import inspect
import json
import platform
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dash_vision.bases.devices import usable_device
from dash_vision.bases.loading import Base
from dash_vision.bases.recorded import check_recorded
from dash_vision.files.atomic import replacing, write_json
from dash_vision.files.errors import InputError
from dash_vision.files.lora import export_states
from dash_vision.measures.encoders import HubEncoder
from dash_vision.runs.runtime import device_name
from dash_vision.runs.versions import installed_versions

from ..bases import load_base, native_adapters
from ..runs import DreamBoothRun, read_run
from ..saving import check_output
from .params import Params
from .pictures import read_part
from .protocol import Draw, drift, sample_pictures, similarity

_PACKAGES = ("transformers", "peft", "datasets", "diffusers", "torch")


def score_run(
    folder: Path,
    params: Params,
    test: Path,
    output: Path,
    name: str | None = None,
    text_layers: Sequence[int] | None = None,
    place: str | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Score the run in `folder`, and write NAME.json and its sample pictures to `output`. test: the folder of the test
    pictures. Raises InputError."""
    from peft import PeftModel

    started, clock = dt.datetime.now(dt.timezone.utc).replace(microsecond=0), time.perf_counter()
    check_output(output, folder=True)
    where = usable_device(device)
    run = read_run(folder)
    name = name or named(run)
    _check_run(run, output / f"{_stem(name)}.json")
    states = native_adapters(run)
    if len(states) != 1:
        raise InputError(
            f"{folder} has adapters of {', '.join(states) or 'nothing'}; the benchmark scores one of the denoiser alone"
        )
    real, prompts = read_part(test)
    if len(real) != params.test_size:
        raise InputError(
            f"{test} holds {len(real)} pictures, and the benchmark compares {params.test_size}; give the folder "
            "test of what --prepare wrote, which writes them again"
        )
    for note in unlike(run, params):
        say(f"note: {note}")
    eyes = HubEncoder(params.dino_model_id, where)
    base = load_base(run, place, params.dtype)
    for note in check_recorded(base, run.record.base, run.folder, place):
        say(note)
    if base.name != params.model_id:
        say(f"note: the benchmark is of {params.model_id}, and this run of {base.name}: not comparable with its rows")
    pipeline, denoiser = base.pipeline, base.family.denoiser
    total = sum(p.numel() for p in base.denoiser.parameters())
    with tempfile.TemporaryDirectory() as written:
        file = export_states({"model": next(iter(states.values()))}, written, "peft").path
        size = file.stat().st_size
        model = PeftModel.from_pretrained(base.denoiser.to(where, getattr(torch, params.dtype)), written)
    config = {k: list(v) if isinstance(v, set) else v for k, v in model.peft_config["default"].to_dict().items()}
    pipeline.to(where, getattr(torch, params.dtype))
    setattr(pipeline, denoiser, model.eval())
    pipeline.set_progress_bar_config(disable=True)
    draw, told = _drawing(base, params, text_layers)
    seed, at_once = int(run.record.seed), params.batch_size_eval
    found = similarity(draw, eyes, real, prompts, seed, where, at_once)
    say(f"test dino_similarity: {found:.4f}")
    moved = drift(draw, model.disable_adapter, eyes, params.drift_image_prompts, seed, where, at_once)
    say(f"drift: {moved:.4f}")
    _save(sample_pictures(draw, params.sample_image_prompts, seed, where), output, name)
    record = {
        "run_info": {
            "created_at": started.isoformat(),
            "total_time": time.perf_counter() - clock,
            "experiment_name": name,
            "peft_branch": "dash-vision",
            "peft_worktree_is_dirty": False,
            "train_config": params.whole | _settings(run, params) | told,
            "peft_config": config,
            "error_msg": "",
        },
        "train_info": _trained(run, params, found, moved, size, total),
        "meta_info": _about(run, base, where),
    }
    write_json(output / f"{_stem(name)}.json", record)
    say(f"wrote {output / (_stem(name) + '.json')}")


def _drawing(base: Base, params: Params, text_layers: Sequence[int] | None) -> tuple[Draw, dict[str, Any]]:
    """What draws by the stock pipeline, and what the record says of it. Raises InputError."""
    pipeline = base.pipeline
    taken = inspect.signature(type(pipeline).__call__).parameters
    own = taken.get("text_encoder_out_layers")
    told: dict[str, Any] = {}
    if own is not None:
        told["text_encoder_out_layers"] = list(text_layers or own.default)
    elif text_layers:
        raise InputError(f"--text_encoder_out_layers is of FLUX.2, and the base is a {base.family.name}; leave it out")
    if "max_sequence_length" in taken:
        told["max_sequence_length"] = base.prompt_options.length or params.max_sequence_length
    layers = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}

    def draw(prompts: Sequence[str], generator: torch.Generator) -> list[Image.Image]:
        with torch.inference_mode():
            answer = pipeline(
                prompt=list(prompts),
                num_inference_steps=params.num_inference_steps,
                guidance_scale=params.guidance_scale,
                height=params.resolution,
                width=params.resolution,
                generator=generator,
                **layers,
            )
        pictures: list[Image.Image] = answer.images
        return pictures

    return draw, told


def _settings(run: DreamBoothRun, params: Params) -> dict[str, Any]:
    """How the run was trained, by the benchmark's names."""
    a = run.argument
    return {
        "model_id": run.base,
        "resolution": a("resolution"),
        "batch_size": a("train_batch_size") * a("gradient_accumulation_steps") * run.record.processes,
        "max_steps": run.record.steps,
        "use_gc": a("gradient_checkpointing"),
        "compile": a("compile"),
        "seed": run.record.seed,
        "grad_norm_clip": a("max_grad_norm") or 0.0,
        "optimizer_type": "AdamW" if a("optimizer") == "adamw" else a("optimizer"),
        "optimizer_kwargs": {"lr": a("learning_rate"), "weight_decay": a("adam_weight_decay")},
        "lr_scheduler": None if a("lr_scheduler") == "constant" else a("lr_scheduler"),
        "use_amp": run.record.mixed_precision != "no",
        "weighting_scheme": a("weighting_scheme") or "none",
    }


def _trained(
    run: DreamBoothRun, params: Params, similarity: float, drift: float, size: int, total: int
) -> dict[str, Any]:
    """What the record says of the training. The memory of a run is not in its record: zeros, as the benchmark's own
    evaluate.py writes them."""
    last = run.losses[-params.eval_steps :]
    samples = run.record.steps * _settings(run, params)["batch_size"]
    return {
        "accelerator_memory_reserved_avg": 0,
        "accelerator_memory_max": 0,
        "accelerator_memory_reserved_99th": 0,
        "train_time": run.record.timings.get("train", 0.0),
        "file_size": size,
        "num_trainable_params": run.record.trainable_parameters,
        "num_total_params": total + run.record.trainable_parameters,
        "status": "success",
        "metrics": [
            {
                "step": run.record.steps,
                "test dino_similarity": similarity,
                "drift": drift,
                "train loss": statistics.fmean(last) if last else 0.0,
                "train samples": samples,
            }
        ],
    }


def _about(run: DreamBoothRun, base: Base, device: str) -> dict[str, Any]:
    """The libraries and the machine; and, which the benchmark's own records lack, how dash-vision trained."""
    versions = installed_versions((*_PACKAGES, "dash-vision"))
    packages: dict[str, str | None] = {}
    for package in _PACKAGES:
        packages |= {f"{package}-version": versions.get(package), f"{package}-commit-hash": None}
    nothing = {"sha": None, "created_at": None}
    return {
        "model_info": nothing,
        "dataset_info": nothing,
        "package_info": packages,
        "system_info": {
            "system": platform.system(),
            "release": platform.release(),
            "version": platform.version(),
            "machine": platform.machine(),
            "processor": platform.processor(),
            "accelerator": device_name(torch.device(device)),
        },
        "pytorch_info": torch.__config__.show(),
        "dash_vision": {
            "version": versions.get("dash-vision"),
            "base": base.identity(),
            "arguments": run.record.arguments,
            "launch": run.launch,
            "trained_on": run.record.device,
        },
    }


def _check_run(run: DreamBoothRun, record: Path) -> None:
    """Raises InputError for a run whose folder holds the adapter of an earlier step, and where the record of another
    run would be lost."""
    if run.steps_of_adapter != run.record.steps:
        raise InputError(
            f"{run.folder} holds the adapter of step {run.steps_of_adapter}; the benchmark scores the end of a run: "
            f"put that back by python -m eval checkpoints {shlex.quote(str(run.folder))} --apply {run.record.steps}"
        )
    try:
        before = json.loads(record.read_text(encoding="utf-8"))["meta_info"]["dash_vision"]
        same = before["arguments"] == run.record.arguments and before["launch"] == run.launch
    except (OSError, ValueError, KeyError, TypeError):  # none, or none that is whole
        return
    if not same:
        raise InputError(f"{record} is the record of another run; give another --name or -o")


def unlike(run: DreamBoothRun, params: Params) -> Iterator[str]:
    """What keeps a run from standing beside the benchmark's rows, in sentences."""
    own = _settings(run, params)
    names = {"max_steps": "steps", "batch_size": "pictures a step", "resolution": "pixels"}
    unlike = [key for key in names if key in params.whole and params.whole[key] != own[key]]
    if unlike:
        theirs, mine = (", ".join(f"{of[key]} {names[key]}" for key in unlike) for of in (params.whole, own))
        yield f"the benchmark trains with {theirs}, and this run with {mine}: not comparable with its rows"
    if run.argument("dash_k") and run.launch is None:
        yield f"the run ended before its launch, so that it is LoRA of rank {run.argument('rank')}"


def named(run: DreamBoothRun) -> str:
    """ "lora-dash/rank-32-k-8-seed-0", as the benchmark names experiments."""
    k = f"-k-{run.argument('dash_k')}" if run.argument("dash_k") else ""
    k += "-not-launched" if k and run.launch is None else ""
    return f"{run.method.lower()}/rank-{run.argument('rank')}{k}-seed-{run.record.seed}"


def _stem(name: str) -> str:
    return name.replace("/", "--")


def _save(pictures: Sequence[Image.Image], output: Path, name: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures, 1):
        with replacing(output / f"{_stem(name)}_{number:02d}.png") as temporary:
            picture.save(temporary, format="PNG")
