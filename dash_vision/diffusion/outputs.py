"""What a run leaves: adapters in every format, samples.png, a model card."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from ..bases.family import Family
from ..bases.loading import Base
from ..bases.sampling import Sampling, pictures_at_once, sample
from ..drawing.sheet import Row, draw_sheet
from ..files.atomic import replacing, write_text
from ..files.flux_names import unnamed
from ..files.lora import DIFFUSERS_NAME, export_states
from ..files.native import NATIVE_NAME, AdapterState, write_native
from ..files.readers import About, remarks
from ..miniature import EMBEDDED
from ..runs.record import METHODS, DreamBoothRecord
from ..runs.runtime import Runtime

PACKAGES = ("dash-vision", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pillow")


def write_adapters(
    states: Mapping[str, AdapterState], folder: Path, notes: Mapping[str, Any], layouts: Sequence[str], about: About
) -> list[str]:
    """dash_adapter.safetensors with `notes`, and plain LoRAs in `layouts` of files.lora, which say `about` their base:
    diffusers' in the folder, the others in one of their name. Returns a sentence for each program that would leave out
    a part of what is written for it."""
    write_native(dict(states), folder / NATIVE_NAME, dict(notes))
    layers = {name: list(state.kinds) for name, state in states.items()}
    notices = []
    for layout in layouts:
        lost = unnamed(layers.get("transformer", ())) if layout == "kohya" else []
        if lost:
            notices.append(f"there is no file in kohya's format, which has no name for {lost[0]} ({len(lost)} layers)")
            continue
        export_states(states, folder if layout == "diffusers" else folder / layout, layout, about=about)
        notices += remarks(layers, layout, about) if layout != "diffusers" else []
    return notices


# -- pictures


@dataclass(frozen=True)
class Sheet:
    """What a sheet of samples shows. inputs: the subject's pictures. columns: prompts. seed, steps, guidance: of the
    sampler. side: of a sample in pixels. method, note: the title of the trained row and the small print under it.
    makes_room: see bases.family.Sampling."""

    inputs: Sequence[Image.Image]
    instance_prompt: str
    subject: str
    columns: Sequence[str]
    seed: int
    steps: int
    guidance: float
    side: int
    method: str
    note: str
    makes_room: bool = False


def draw_samples(
    sheet: Sheet, base: Base, switch: Callable[[bool], object], runtime: Runtime, base_row: bool
) -> Image.Image:
    """The sheet of inputs, base (with `base_row`) and trained; pictures in one column start from the same noise.
    switch(whether): turns what was trained on and off."""
    # A process of a split base that halved its batch alone would leave the others waiting.
    at_once = 1 if runtime.sharded else pictures_at_once(sheet.side)
    how = Sampling(sheet.steps, sheet.guidance, (sheet.side, sheet.side), at_once, sheet.makes_room)
    noises, seed, device = range(len(sheet.columns)), sheet.seed, runtime.device
    titles = [(sheet.method, sheet.note, True)]
    if base_row:
        titles.insert(0, ("base", base.name if base.embedded else Path(base.name).name, False))
    rows = []
    with tqdm(total=len(titles) * len(noises), desc="samples", leave=False, disable=not runtime.main) as bar:
        for title, note, trained in titles:
            switch(trained)
            pictures = sample(base, sheet.columns, seed, noises, how, device, runtime.dtype, bar.update)
            rows.append(Row(title, note, pictures))
    inputs = Row("input", f"{len(sheet.inputs)} pictures, prompt: {sheet.instance_prompt}", sheet.inputs)
    sampler = f"{how.steps} sampling steps, guidance {how.guidance:g}, seed {sheet.seed}"
    footnote = f"{sampler}; same starting noise within a column."
    return draw_sheet(inputs, sheet.columns, rows, sheet.subject, footnote)


def track(runtime: Runtime, picture: Image.Image, step: int) -> None:
    """Give a picture to the trackers that take pictures."""
    for tracker in runtime.accelerator.trackers:
        if tracker.name == "tensorboard":
            import numpy as np

            tracker.writer.add_images("samples", np.asarray(picture)[None], step, dataformats="NHWC")
        elif tracker.name == "wandb":
            import wandb

            tracker.log({"samples": wandb.Image(picture)}, step=step)


def save_picture(picture: Image.Image, path: Path) -> None:
    """PNG, whole or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


# -- words


def write_card(folder: Path, record: DreamBoothRecord, loading: Sequence[str], family: Family) -> None:
    """README.md in the output folder: the picture, how to load the adapter, which file is for whom, the settings.
    loading: lines of Python that load the base."""
    k, rank = record.arguments["dash_k"], record.arguments["rank"]
    base_line = "" if record.base.name in EMBEDDED else f"base_model: {record.base.name}\n"
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in _rows(record).items())
    card = f"""---
library_name: diffusers
{base_line}tags:
- lora
- lora-dash
- dreambooth
- text-to-image
instance_prompt: {_yaml(record.instance_prompt)}
---

# {_cell(record.subject)}: a {METHODS[record.method]} adapter

![inputs, base and trained](samples.png)

```python
{_snippet(record, loading, family)}
```

`{DIFFUSERS_NAME}` is a plain LoRA of rank {rank + k} that holds all that was learned{_dash_words(k)}; nothing but
diffusers and peft is needed to load it. {_other_programs(folder, family)} `{NATIVE_NAME}` is the adapter in
dash-vision's own format, for further work with it: `python -m dash_vision inspect {NATIVE_NAME}`.

| setting | value |
| --- | --- |
{table}
"""
    write_text(folder / "README.md", card)


def _other_programs(folder: Path, family: Family) -> str:
    if "kohya" in family.layouts and not (folder / "kohya").is_dir():
        return "There is no file for other programs, which have no names for some of the trained layers."
    return family.other_programs


def _rows(record: DreamBoothRecord) -> dict[str, str]:
    """The card's table."""
    a = record.arguments
    batch = f"{a['train_batch_size']} x {a['gradient_accumulation_steps']} x {record.processes}"
    return {
        "base": record.base.name,
        "method": f"{METHODS[record.method]}, rank {a['rank']}" + (f", k = {a['dash_k']}" if a["dash_k"] else ""),
        "instance prompt": record.instance_prompt,
        "steps": f"{record.steps}" + (f", dash launched after {record.launch.step}" if record.launch else ""),
        **({"clip skip": f"{a['clip_skip']} (A1111: {a['clip_skip'] + 1})"} if a["clip_skip"] else {}),
        "learning rate": f"{a['learning_rate']:g} ({a['lr_scheduler']})",
        "batch": batch,
        "resolution": f"{a['resolution']}",
        "prior preservation": f'"{record.class_prompt}"' if a["with_prior_preservation"] else "no",
        **({"class preserved": f"weight {a['preserve_class_weight']:g}"} if a["preserve_class"] else {}),
        "text encoder": "trained" if a["train_text_encoder"] else "frozen",
        "seed": f"{record.seed}",
        "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
    }


def _dash_words(k: int) -> str:
    return " (the low-rank update and the singular-value shifts)" if k else ""


def _snippet(record: DreamBoothRecord, loading: Sequence[str], family: Family) -> str:
    how = record.arguments
    settings = {"prompt": record.validation_prompts[-1], "num_inference_steps": how["num_inference_steps"]}
    settings |= family.guided_call(float(f"{how['guidance_scale']:g}"))
    settings |= {"width": how["resolution"], "height": how["resolution"]}
    if how["max_sequence_length"] is not None:
        settings["max_sequence_length"] = how["max_sequence_length"]
    if how["clip_skip"]:
        settings["clip_skip"] = how["clip_skip"]
    words = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    lines = [
        *loading,
        f"pipe.load_lora_weights('.', weight_name='{DIFFUSERS_NAME}')",
        *(_CLIP_SKIP if how["clip_skip"] else ()),
        f"pipe({words}).images[0].save('out.png')",
    ]
    return "\n".join(lines)


# diffusers asks CLIP for a part of that name, which it has no longer since transformers 5; it is the model itself now.
_CLIP_SKIP = (
    "if not hasattr(pipe.text_encoder, 'text_model'):  # clip_skip asks for it, and transformers 5 has none",
    "    vars(pipe.text_encoder)['text_model'] = pipe.text_encoder",
)


def _cell(text: str) -> str:
    """Safe inside a Markdown table or heading."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _yaml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
