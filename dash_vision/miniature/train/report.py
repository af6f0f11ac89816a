"""Measures the miniatures: `python -m dash_vision.miniature report` writes docs/miniature.md and its contact sheets.

Generated pictures are judged by a classifier that was trained on renders only. Every figure that concerns renders uses
"fresh" scenes, which no network was trained on. What was measured of a base is kept in the work folder, and is measured
again when its weights have changed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...bases.identity import of_network
from ...drawing.sheet import save_with_palette
from ...files.atomic import write_json
from ...files.errors import InputError
from ...runs.seeds import stream
from .. import EMBEDDED, FLOW, MINIATURE, WEIGHTS
from ..world.scenes import (
    COLOURS,
    KINDS,
    LIVE,
    OUTFITS,
    SETTINGS,
    SIZE,
    Scene,
    describe,
    random_pose,
    random_subject,
)
from .data import fresh_scene, prompt_ids, psnr, rendered, to_tensor
from .judge import QUESTIONS, Judge, labels, train_judge
from .vae import reconstructed, slope_distance

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

STEPS = 25
GUIDANCE = {MINIATURE: 4.0, FLOW: 4.0}
SHEETS = {MINIATURE: "miniature.png", FLOW: "miniature-flow.png"}
FRESH = 1000


def generate(pipeline: Any, prompts: Sequence[str], guidance: float, seed: int = 0, batch: int = 20) -> Tensor:
    """One picture a prompt, from noise seeded by (seed, position): float32 [N, 3, 64, 64] in -1..1."""
    parts = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [stream(seed, "report, noise", start + i) for i in range(len(part))]
        options = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "np"}
        pictures = pipeline(part, height=SIZE, width=SIZE, generator=generators, **options).images
        parts.append(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() * 2 - 1)
    return torch.cat(parts)


def retrieval(pictures: Tensor, texts: Tensor, ways: int = 100) -> tuple[float, float]:
    """Shares of right choices among `ways`: (text for a picture, picture for a text); unit features [N, D] in pairs."""
    of_picture, of_text, count = 0, 0, len(pictures) // ways * ways
    for start in range(0, count, ways):
        similar = pictures[start : start + ways] @ texts[start : start + ways].T
        right = torch.arange(ways)
        of_picture += int((similar.argmax(1) == right).sum())
        of_text += int((similar.argmax(0) == right).sum())
    return of_picture / count, of_text / count


@torch.no_grad()
def features(
    clip: CLIPModel, tokenizer: CLIPTokenizer, pictures: Tensor, prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """CLIP's unit features of pictures and prompts: two of [N, 128]."""
    model: Any = clip
    seen = torch.cat(
        [model(input_ids=prompt_ids(tokenizer, [""]), pixel_values=p).image_embeds for p in pictures.split(100)]
    )
    read = model(input_ids=prompt_ids(tokenizer, prompts), pixel_values=pictures[:1]).text_embeds
    return F.normalize(seen.float(), dim=1), F.normalize(read.float(), dim=1)


def nearest(pictures: Tensor, training: np.ndarray, chunk: int = 2000) -> Tensor:
    """Root mean squared distance of pictures to the nearest training picture, both reduced to 16x16; values 0..255.

    `pictures` is [N, 3, 64, 64] in -1..1, `training` uint8 [M, 64, 64, 3]; returns [N].
    """
    wanted = F.avg_pool2d(pictures, 4).flatten(1)
    best = torch.full((len(wanted),), math.inf)
    for start in range(0, len(training), chunk):
        known = F.avg_pool2d(to_tensor(np.array(training[start : start + chunk])), 4).flatten(1)
        best = torch.minimum(best, torch.cdist(wanted, known).amin(1))
    return best / math.sqrt(wanted.shape[1]) * 127.5


def sheet_prompts(columns: int = 6) -> list[list[str]]:
    """Rows of prompts for the contact sheet: every subject, going round the places and colours, then the outfits."""
    names, places = list(COLOURS), list(SETTINGS)
    rows = []
    for row, kind in enumerate(KINDS):
        numbers = range(columns * row, columns * (row + 1))
        rows.append([f"a photo of a {names[(3 * row + i) % 10]} {kind} {places[i % 20]}" for i in numbers])
    for row, kind in enumerate(LIVE):
        worn = OUTFITS[row * 4 : row * 4 + columns]
        rows.append([f"a photo of a {names[(row + 3 * i) % 10]} {kind} {outfit}" for i, outfit in enumerate(worn)])
    return rows


def captioned_sheet(pictures: Tensor, prompts: Sequence[Sequence[str]], zoom: int = 2) -> Image.Image:
    """The pictures [rows * columns, 3, 64, 64] with their prompts, without the leading "a photo of", underneath."""
    columns, side, text = len(prompts[0]), 64 * zoom, 30
    sheet = Image.new("RGB", (columns * (side + 4), len(prompts) * (side + text + 4)), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    array = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for i, prompt in enumerate(prompt for row in prompts for prompt in row):
        x, y = i % columns * (side + 4), i // columns * (side + text + 4)
        sheet.paste(Image.fromarray(array[i]).resize((side, side), Image.Resampling.LANCZOS), (x, y))
        lines = [""]
        for word in prompt.removeprefix("a photo of ").split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) <= side:
                lines[-1] = longer
            else:
                lines.append(word)
        draw.multiline_text((x, y + side), "\n".join(lines[:3]), (0, 0, 0), font, spacing=0)
    return sheet


class Figures(dict[str, str]):
    """What is measured, in the order of the table: what -> figure."""

    def add(self, what: str, figure: str) -> None:
        """Note a row and print it."""
        self[what] = figure
        print(f"report: {what}: {figure}", flush=True)


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Figures as a Markdown table: a column for each name, a row for each thing that any of them has."""
    rows = dict.fromkeys(what for figures in columns.values() for what in figures)
    lines = [f"| what | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    lines += [f"| {what} | {' | '.join(figures.get(what, '') for figures in columns.values())} |" for what in rows]
    return "\n".join(lines)


def _share(right: Tensor) -> str:
    return f"{100 * right.float().mean().item():.1f}% of {len(right)}"


def judged_scenes(count: int) -> list[Scene]:
    """Scenes that spread evenly over subjects, places and colours; every fourth live subject wears something."""
    rng = Random("judged")
    kinds, places, colours = list(KINDS), list(SETTINGS), list(COLOURS)
    scenes = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        subject = random_subject(rng, kind, colours[(i // len(kinds) + i) % len(colours)])
        outfit = rng.choice(OUTFITS) if kind in LIVE and rng.random() < 0.25 else None
        scenes.append(Scene(subject, places[(i * 7 + i // 20) % len(places)], random_pose(rng), outfit=outfit))
    return scenes


def report(work: Path, docs: Path, weights: Path | None = None, images: int = 1000) -> None:
    """Measure the exported weights and write miniature.md and SHEETS into the folder `docs`."""
    folder = weights or WEIGHTS
    for part in EMBEDDED.values():
        if not (folder / part).is_dir():
            raise InputError(f"there is no {folder / part}; run the stage 'export' of the build first")
    judge = train_judge(work)
    docs.mkdir(parents=True, exist_ok=True)
    columns = {name: _measure_base(name, folder, work, docs, judge, images) for name in EMBEDDED}
    page = PAGE.format(
        bases=table(columns),
        shared=table({"measured": _measure_shared(folder, work, judge)}),
        guidance=GUIDANCE[MINIATURE],
        flow_guidance=GUIDANCE[FLOW],
    )
    (docs / "miniature.md").write_text(page, encoding="utf-8")
    print(f"report: {docs / 'miniature.md'}, {' and '.join(SHEETS.values())}", flush=True)


def _measure_base(name: str, folder: Path, work: Path, docs: Path, judge: Judge, images: int) -> Figures:
    """The figures of one base, from the work folder where they are of these weights; and its contact sheet."""
    loading, figures, kept = Figures(), Figures(), work / f"report-{name}.json"
    pipeline = _measure_loading(loading, folder / EMBEDDED[name], GUIDANCE[name])
    identity = _identity(pipeline, name, images)
    if kept.exists() and (docs / SHEETS[name]).exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["identity"] == identity:
            return Figures(loading | found["figures"])
    asked = judged_scenes(images)
    pictures = generate(pipeline, [f"a photo of {describe(scene)}" for scene in asked], GUIDANCE[name], seed=1)
    right = _measure_answers(figures, judge, "generated pictures", pictures, asked)
    figures.add("judge on generated pictures, all three", _share(right.all(1)))
    _measure_nearest(figures, work, "generated picture", pictures[:200])
    prompts = sheet_prompts()
    sheet = captioned_sheet(generate(pipeline, [p for row in prompts for p in row], GUIDANCE[name], seed=2), prompts)
    save_with_palette(sheet, docs / SHEETS[name])
    write_json(kept, {"identity": identity, "figures": figures})
    return Figures(loading | figures)


def slopes(pictures: Tensor) -> float:
    """The mean absolute difference of pixels beside and below each other: what blurring makes less."""
    return slope_distance(pictures, torch.zeros_like(pictures)).item() / 2


def _identity(pipeline: Any, name: str, images: int) -> dict[str, Any]:
    """What the figures of a base depend on."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    networks = {"denoiser": of_network(denoiser), "vae": of_network(pipeline.vae)}
    return {**networks, "images": images, "guidance": GUIDANCE[name]}


def _measure_shared(folder: Path, work: Path, judge: Judge) -> Figures:
    """What both bases have in common, and what the judge says of renders."""
    from diffusers import AutoencoderKL

    figures = Figures()
    scenes = [fresh_scene(i) for i in range(FRESH)]
    fresh = rendered(scenes)
    vae = AutoencoderKL.from_pretrained(folder / EMBEDDED[MINIATURE], subfolder="vae", torch_dtype=torch.float32)
    _measure_vae(figures, vae, fresh[:500])
    if (folder / "clip").is_dir():
        _measure_clip(figures, folder / "clip", fresh, scenes)
    _measure_answers(figures, judge, "fresh renders", fresh, scenes)
    _measure_nearest(figures, work, "fresh render", fresh[:200])
    return figures


def _measure_loading(figures: Figures, folder: Path, guidance: float) -> Any:
    """The pipeline, after its size and the time to a first picture are noted; the time to import it does not count."""
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    started = time.monotonic()
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generate(pipeline, ["a photo of a cat"], guidance)
    seconds = time.monotonic() - started
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    figures.add("size of the pipeline's folder", f"{size / 1e6:.1f} MB")
    figures.add(
        f"loading it and sampling one picture, {STEPS} steps, {torch.get_num_threads()} threads", f"{seconds:.1f} s"
    )
    return pipeline


@torch.no_grad()
def _measure_vae(figures: Figures, vae: Any, fresh: Tensor) -> None:
    decoded = reconstructed(vae, fresh)
    figures.add(f"VAE, PSNR on {len(fresh)} fresh renders", f"{psnr(decoded, fresh):.2f} dB")
    steepness = f"{100 * slopes(decoded) / slopes(fresh):.0f}%"
    figures.add("VAE, differences of neighbouring pixels against those in the renders", steepness)


def _measure_answers(figures: Figures, judge: Judge, what: str, pictures: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Which of the judge's answers are right, bool [N, questions]."""
    right = judge.answers(pictures) == torch.tensor([labels(scene) for scene in scenes])
    for i, question in enumerate(QUESTIONS):
        figures.add(f"judge on {what}, {question}", _share(right[:, i]))
    return right


def _measure_nearest(figures: Figures, work: Path, what: str, pictures: Tensor) -> None:
    training = np.load(work / "images.npy", mmap_mode="r")
    near = nearest(pictures, training)
    figures.add(
        f"{what} to the nearest of {len(training)} training renders, RMS at 16x16 (0..255)",
        f"median {near.median().item():.1f}, least {near.min().item():.1f}",
    )


def _measure_clip(figures: Figures, folder: Path, fresh: Tensor, scenes: list[Scene]) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    prompts = [describe(scene, two=True, pattern=True, mark=True) for scene in scenes]
    for_picture, for_text = retrieval(*features(clip, tokenizer, fresh, prompts))
    figures.add(f"CLIP, the caption of a fresh render among 100 ({len(scenes)} renders)", f"{100 * for_picture:.1f}%")
    figures.add("CLIP, the render of a caption among 100", f"{100 * for_text:.1f}%")


PAGE = """# The embedded miniatures

Two complete, small text-to-image stacks ship inside the package, in stock diffusers format, for 64x64 pictures. They
know a world of rendered scenes (`dash_vision/miniature/world/scenes.py`): fourteen subjects, ten colours and five
patterns in the twenty places of the DreamBooth protocol, three of its properties, and ten outfits for cats and dogs.
Their purpose is to try, test and compare fine-tuning offline; they know nothing else.

- `miniature` is a Stable Diffusion: `CLIPTokenizer`, `CLIPTextModel`, `AutoencoderKL`, `UNet2DConditionModel`
  (v-prediction) and a DDIM scheduler.
- `miniature-flow` is a Z-Image: `ZImageTransformer2DModel`, trained by rectified flow on latents of the same
  `AutoencoderKL`, with a `Qwen3Model` that reads prompts and a `FlowMatchEulerDiscreteScheduler`.

```python
from dash_vision.miniature import load_flow_pipeline, load_pipeline

prompt = "a photo of a red cat in the snow"
picture = load_pipeline()(prompt, num_inference_steps=25).images[0]
picture = load_flow_pipeline()(prompt, num_inference_steps=25, height=64, width=64).images[0]
```

![Generated pictures of the miniature with their prompts](miniature.png)

By `miniature`: generated, not selected; one seed a picture, 25 steps, guidance {guidance:g}.

![Generated pictures of the flow-matching miniature with their prompts](miniature-flow.png)

By `miniature-flow`, likewise; guidance {flow_guidance:g}.

## Measured

{bases}

Both have one VAE, and the same judge:

{shared}

The judge is a small classifier of subject, place and colour that was trained on renders only. Fresh renders are scenes
that no network was trained on. The distances to the nearest training render are given for fresh renders too: a
generator that copied its training set would be nearer to it than they are.

## How they were made

`python -m dash_vision.miniature build --work DIR` renders the scenes and trains everything from seeds on a CPU; run
again after a stop, it goes on from the last checkpoint. `--init` goes on from exported weights: only the VAE's decoder
is trained further, so that the latents stay what they are. The weights of `miniature` were made by both, on one and two
CPU cores:

```
python -m dash_vision.miniature build --work first --output first/weights
python -m dash_vision.miniature build --work second --init first/weights --seed 1 --compile \\
    --vae-steps 3000 --unet-steps 3400 --clip-steps 1400
```

These commands give other weights today than the shipped ones: random numbers are drawn in another way since then
(`dash_vision/runs/seeds.py`). The recipe, the scenes and the captions' grammar are the same.

`miniature-flow` was trained on the latents of the shipped VAE: 2,158 steps of 32 pictures at a constant rate, and from
these weights 3,900 steps more with representation alignment (arXiv 2410.06940), in the last 1,155 of which the rate
fell to zero. That was three hours of one core. The flow-matching loss was .528 after 1,186 of the aligned steps and
.498 after 2,745, both at the constant rate, and .441 at the end. It has seen a tenth more pictures than `miniature`,
and still draws softer ones. The build trains it with the alignment from the first step now, for 6,000 steps:

```
mkdir third && cp -r dash_vision/miniature/weights/{{pipeline/vae,pipeline/tokenizer,clip}} third/
python -m dash_vision.miniature build --work third --output third/weights --stages data latents flow export
```

The VAE's decoder was trained on last, for 3,000 steps of 16 pictures, 40 minutes of a core that other work shared. The
denoisers stayed as they were. A critic learned beside it to tell decoded patches from renders, and the decoder learned
to pass for a render (`dash_vision/miniature/train/decoder.py`). Neighbouring pixels of a decoded picture now differ as
much as those of a render (99%; 90% before). The PSNR fell from 28.3 to 27.9 dB: a blurred picture is nearer on average.

```
mkdir fourth && cp -r dash_vision/miniature/weights/{{pipeline/vae,pipeline/unet,pipeline/text_encoder}} fourth/
cp -r dash_vision/miniature/weights/{{pipeline/tokenizer,clip,flow}} fourth/
python -m dash_vision.miniature build --work fourth --output fourth/weights --stages data latents decoder export
```

`python -m dash_vision.miniature report --work DIR` rebuilds this page and its pictures.

A DreamBooth subject that the bases have not seen comes from
`python -m dash_vision.miniature individual --seed 7 OUT/`: five instance pictures, and held-out pictures of the same
individual in other places, which real photographs never give. One in six mixes of two colours and a pattern is kept
out of the training scenes for these individuals. [individuals.md](individuals.md) has what DreamBooth makes of ten.
"""
