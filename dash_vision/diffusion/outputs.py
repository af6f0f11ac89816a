"""What a run leaves: adapters in every format, samples.png, a model card, run.json."""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..bases.families import MINIATURE
from ..bases.sampling import Sampling, sample
from ..core.loading import adapter_state
from ..drawing.sheet import Row, draw_sheet
from ..files.atomic import replacing, write_json, write_text
from ..files.fingerprints import fingerprint
from ..files.lora import DIFFUSERS_NAME, export_states
from ..files.native import NATIVE_NAME, write_native
from ..runs.versions import installed_versions
from .config import default_validation_prompts

if TYPE_CHECKING:
    from .training import DreamBoothRun

PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pillow")


def save_results(run: DreamBoothRun) -> None:
    """Write everything of a finished run; only the first process does, the others wait, or give it their part of a
    split model."""
    if run.accelerator.is_main_process or run.sharded:
        save_adapters(run)
    if run.accelerator.is_main_process:
        write_card(run)
        write_json(run.output / "run.json", describe_run(run))  # before the pictures, which may take long or fail
        run.say(f"adapters: {run.output}")
    draw_samples(run, run.output / "samples.png", base_row=True)
    if run.accelerator.is_main_process:
        write_json(run.output / "run.json", describe_run(run))
    run.accelerator.wait_for_everyone()


def save_adapters(run: DreamBoothRun) -> None:
    """dash_adapter.safetensors, pytorch_lora_weights.safetensors, and kohya/ for ComfyUI and A1111."""
    states = {name: adapter_state(adapter) for name, adapter in run.adapters.items()}
    if not run.accelerator.is_main_process:
        return
    notes = {"base": run.base.name, "prompt": run.prompts.instance, "step": run.step}
    write_native(states, run.output / NATIVE_NAME, notes)
    export_states(states, run.output, "diffusers")
    export_states(states, run.output / "kohya", "kohya")


# -- pictures


def draw_samples(run: DreamBoothRun, path: Path, base_row: bool) -> None:
    """The sheet of inputs, base and trained; pictures in one column start from the same noise."""
    if not (run.accelerator.is_main_process or run.sharded):  # a split model computes only on all processes at once
        return
    c = run.config
    prompts = c.validation_prompt or default_validation_prompts(run.prompts)
    assert c.num_inference_steps is not None
    assert c.guidance_scale is not None
    assert c.resolution is not None
    how = Sampling(c.num_inference_steps, c.guidance_scale, (c.resolution, c.resolution), _sampling_batch(run))
    columns = [prompt for prompt in prompts for _ in range(c.num_validation_images)]
    seeds = [(c.seed, column) for column in range(len(columns))]
    method = f"LoRA-Dash, k = {c.dash_k}" if c.dash_k else "LoRA"
    method_rows = [(method, f"rank {c.rank}, step {run.step}", True)]
    if base_row:
        method_rows.insert(0, ("base", _short(run.base.name), False))
    rows, start, quiet = [], time.perf_counter(), not run.accelerator.is_main_process
    with tqdm(total=len(method_rows) * len(columns), desc="samples", leave=False, disable=quiet) as bar:
        for title, note, trained in method_rows:
            for adapter in run.adapters.values():
                (adapter.enable if trained else adapter.disable)()
            pictures = sample(run.base, columns, seeds, how, run.device, run._dtype(), bar.update)
            rows.append(Row(title, note, pictures))
    if quiet:
        return
    run.timings["samples"] = run.timings.get("samples", 0.0) + time.perf_counter() - start
    inputs = Row("input", f"{len(run.inputs)} pictures, prompt: {run.prompts.instance}", run.inputs)
    footnote = f"{how.steps} steps, guidance {how.guidance:g}, seed {c.seed}; same starting noise within a column."
    sheet = draw_sheet(inputs, columns, rows, run.prompts.subject or run.prompts.instance, footnote)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(sheet, path)
    for tracker in run.accelerator.trackers:
        if tracker.name in ("tensorboard", "wandb"):
            _track(tracker, sheet, run.step)


def _sampling_batch(run: DreamBoothRun) -> int:
    """As many pictures at once as a small base allows; one at a time for a large one, and for a split one, of which a
    process that halved its batch alone would leave the others waiting."""
    assert run.config.resolution is not None
    return 8 if run.config.resolution <= 128 and not run.sharded else 1


def _short(name: str) -> str:
    return name if name == MINIATURE else Path(name).name


def _track(tracker: Any, sheet: Image.Image, step: int) -> None:
    if tracker.name == "tensorboard":
        import numpy as np

        tracker.writer.add_images("samples", np.asarray(sheet)[None], step, dataformats="NHWC")
    else:
        import wandb

        tracker.log({"samples": wandb.Image(sheet)}, step=step)


def save_picture(picture: Image.Image, path: Path) -> None:
    """PNG, whole or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


# -- words


def describe_run(run: DreamBoothRun) -> dict[str, Any]:
    """run.json: settings, base, versions, phases, losses, timings in seconds."""
    first = {"phase": "pre-launch" if run.config.dash_k else "LoRA", "after_step": 0}
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else platform.processor() or "CPU"
    return {
        "kind": "dreambooth",
        "method": "lora-dash" if run.config.dash_k else "lora",
        "base": {
            "name": run.base.name,
            "family": run.base.family.name,
            "prediction_type": run.base.prediction_type,
            "fingerprints": {name: fingerprint(probes) for name, probes in run.probes.items()},
        },
        "instance_prompt": run.prompts.instance,
        "class_prompt": run.prompts.class_,
        "instance_digest": _digest(run.inputs),
        "arguments": run.config.to_dict(),
        "seed": run.config.seed,
        "steps": run.step,
        "processes": run.accelerator.num_processes,
        "fsdp": run.sharded,
        "mixed_precision": str(run.accelerator.mixed_precision),
        "device": {"type": run.device.type, "name": device, "threads": torch.get_num_threads()},
        "trainable_parameters": sum(p.numel() for a in run.adapters.values() for p in a.parameters()),
        "phases": [first, *run.phases],
        "losses": [round(value, 6) for value in run.losses],
        "timings_s": {key: round(value, 2) for key, value in run.timings.items()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.started)),
        "seconds": round(time.time() - run.started, 1),
        "versions": installed_versions(PACKAGES),
    }


def _digest(pictures: Sequence[Image.Image]) -> str:
    """By which the same pictures in another folder are recognised: 16 hex digits of their sizes and pixels."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
    return digest.hexdigest()[:16]


def write_card(run: DreamBoothRun) -> None:
    """README.md in the output folder: the picture, how to load the adapter, the settings."""
    c = run.config
    method = "LoRA-Dash" if c.dash_k else "LoRA"
    embedded = run.base.name == MINIATURE
    base_line = "" if embedded else f"base_model: {run.base.name}\n"
    rank = c.rank + c.dash_k
    launch = next((p for p in run.phases if p["phase"] == "dash"), None)
    rows = {
        "base": run.base.name,
        "method": f"{method}, rank {c.rank}" + (f", k = {c.dash_k}" if c.dash_k else ""),
        "instance prompt": run.prompts.instance,
        "steps": f"{run.step}" + (f", dash launched after {launch['after_step']}" if launch else ""),
        "learning rate": f"{c.learning_rate:g} ({c.lr_scheduler})",
        "batch": f"{c.train_batch_size} x {c.gradient_accumulation_steps} x {run.accelerator.num_processes}",
        "resolution": f"{c.resolution}",
        "prior preservation": f'"{run.prompts.class_}"' if c.with_prior_preservation else "no",
        "text encoder": "trained" if c.train_text_encoder else "frozen",
        "seed": f"{c.seed}",
        "versions": ", ".join(f"{name} {number}" for name, number in installed_versions(PACKAGES).items()),
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    subject = run.prompts.subject or run.prompts.instance
    card = f"""---
library_name: diffusers
{base_line}tags:
- lora
- lora-dash
- dreambooth
- text-to-image
instance_prompt: {_yaml(run.prompts.instance)}
---

# {_cell(subject)}: a {method} adapter

![inputs, base and trained](samples.png)

```python
{_snippet(run, embedded)}
```

`{DIFFUSERS_NAME}` is a plain LoRA of rank {rank} that holds all that was learned{_dash_words(c.dash_k)}; nothing but
diffusers and peft is needed to load it. `kohya/` has the same for ComfyUI and A1111. `{NATIVE_NAME}` is the adapter in
dash-vision's own format, for further work with it: `python -m dash_vision inspect {NATIVE_NAME}`.

| setting | value |
| --- | --- |
{table}
"""
    write_text(run.output / "README.md", card)


def _dash_words(k: int) -> str:
    return " (the low-rank update and the singular-value shifts)" if k else ""


def _snippet(run: DreamBoothRun, embedded: bool) -> str:
    prompt = (run.config.validation_prompt or default_validation_prompts(run.prompts))[-1]
    if embedded:
        lines = ["from dash_vision.miniature import load_pipeline", "pipe = load_pipeline()"]
    else:
        load = "from_single_file" if Path(run.base.name).is_file() else "from_pretrained"
        kind = run.base.family.pipeline_class
        lines = [f"from diffusers import {kind}", f"pipe = {kind}.{load}({run.base.name!r})"]
    lines.append(f"pipe.load_lora_weights('.', weight_name='{DIFFUSERS_NAME}')")
    lines.append(f"pipe({prompt!r}).images[0].save('out.png')")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Safe inside a Markdown table or heading."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _yaml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
