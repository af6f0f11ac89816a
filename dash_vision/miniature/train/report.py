"""Measures the miniature: `python -m dash_vision.miniature report` writes docs/miniature.md and docs/miniature.png.

Generated pictures are judged by a classifier that was trained on renders only. Every figure that concerns renders uses
"fresh" scenes, which no network was trained on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ...files.errors import InputError
from ...runs.seeds import seed_everything, stream
from .. import WEIGHTS
from ..world.scenes import (
    COLOURS,
    KINDS,
    LIVE,
    OUTFITS,
    SETTINGS,
    Scene,
    describe,
    random_pose,
    random_subject,
)
from .data import fresh_scene, prompt_ids, psnr, rendered, to_tensor, training_scene
from .fit import Fit, Plan

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

STEPS, GUIDANCE = 25, 4.0
FRESH = 1000
JUDGE_PLAN = Plan(steps=1500, learning_rate=2e-3, batch_size=96, warmup=30, cooldown=0.5, muon=2e-3, save_every=100)
PLACES = (None, *SETTINGS)
QUESTIONS: dict[str, tuple[str | None, ...]] = {"subject": (*KINDS,), "setting": PLACES, "colour": (*COLOURS,)}


def labels(scene: Scene) -> list[int]:
    """The right answer to every question of `QUESTIONS`, as an index."""
    return [
        QUESTIONS["subject"].index(scene.subject.kind),
        PLACES.index(scene.setting),
        QUESTIONS["colour"].index(scene.subject.colour),
    ]


class Judge(nn.Module):
    """A convolutional classifier: pictures [N, 3, 64, 64] in -1..1 -> one tensor of logits a question."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out, stride in (
            (3, 32, 1),
            (32, 48, 2),
            (48, 64, 2),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 192, 2),
            (192, 192, 1),
        ):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride, 1), nn.GroupNorm(8, fan_out), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(2 * 192, len(answers)) for answers in QUESTIONS.values())

    def features(self, pictures: Tensor) -> Tensor:
        """What the answers are read from, [N, 384]."""
        maps = self.body(pictures)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Logits [N, answers] for each question of `QUESTIONS`."""
        features = self.features(pictures)
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def answers(self, pictures: Tensor) -> Tensor:
        """Most likely answers: int64 [N, questions]."""
        return torch.cat([torch.stack([logits.argmax(1) for logits in self(part)], 1) for part in pictures.split(250)])


def train_judge(work: Path, seed: int = 0) -> Judge:
    """The judge, trained on the work folder's renders (stage 'data' of the build) and kept there."""
    path = work / "images.npy"
    if not path.exists():
        raise InputError(f"there is no {path}; run `python -m dash_vision.miniature build --stages data` first")
    pictures = np.load(path, mmap_mode="r")
    seed_everything(seed, "judge, weights")
    judge = Judge()
    fit = Fit("judge", {"judge": judge}, JUDGE_PLAN, work, seed)

    def loss_at(batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(pictures), (JUDGE_PLAN.batch_size,), generator=generator).tolist()
        right = torch.tensor([labels(training_scene(i)) for i in index])
        with fit.runtime.autocast():
            logits = judge(to_tensor(np.stack([pictures[i] for i in index])))
        losses = [F.cross_entropy(part.float(), right[:, i]) for i, part in enumerate(logits)]
        return torch.stack(losses).sum(), {}

    fit.run(loss_at)
    fit.use_averages()
    return judge.eval()


def generate(pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int = 0, batch: int = 20) -> Tensor:
    """One picture a prompt, from noise seeded by (seed, position): float32 [N, 3, 64, 64] in -1..1."""
    call: Any = pipeline
    parts = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [stream(seed, "report, noise", start + i) for i in range(len(part))]
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
        pictures = call(part, generator=generators, **options).images
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


@dataclass
class Figures:
    """What is measured, in the order of the table: (what, figure)."""

    rows: list[tuple[str, str]]

    def add(self, what: str, figure: str) -> None:
        """Note a row and print it."""
        self.rows.append((what, figure))
        print(f"report: {what}: {figure}", flush=True)

    def table(self) -> str:
        """The rows as a Markdown table."""
        return "\n".join(["| what | measured |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in self.rows)])


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
    """Measure the exported weights and write `miniature.md` and `miniature.png` into the folder `docs`."""
    folder = weights or WEIGHTS
    if not (folder / "pipeline").is_dir():
        raise InputError(f"there is no {folder / 'pipeline'}; run the stage 'export' of the build first")
    figures = Figures([])
    pipeline = _measure_loading(figures, folder / "pipeline")
    scenes = [fresh_scene(i) for i in range(FRESH)]
    fresh = rendered(scenes)
    _measure_vae(figures, pipeline.vae, fresh[:500])
    if (folder / "clip").is_dir():
        _measure_clip(figures, folder / "clip", fresh, scenes)

    judge = train_judge(work)
    _measure_answers(figures, judge, "fresh renders", fresh, scenes)
    asked = judged_scenes(images)
    pictures = generate(pipeline, [f"a photo of {describe(scene)}" for scene in asked], seed=1)
    right = _measure_answers(figures, judge, "generated pictures", pictures, asked)
    figures.add("judge on generated pictures, all three", _share(right.all(1)))
    _measure_nearest(figures, work, {"generated picture": pictures[:200], "fresh render": fresh[:200]})

    prompts = sheet_prompts()
    sheet = captioned_sheet(generate(pipeline, [p for row in prompts for p in row], seed=2), prompts)
    docs.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(docs / "miniature.png", optimize=True)
    (docs / "miniature.md").write_text(PAGE.format(table=figures.table(), guidance=GUIDANCE), encoding="utf-8")
    print(f"report: {docs / 'miniature.md'} and {docs / 'miniature.png'}", flush=True)


def _measure_loading(figures: Figures, folder: Path) -> Any:
    """The pipeline, after its size and the time to a first picture are noted."""
    from diffusers import StableDiffusionPipeline

    started = time.monotonic()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generate(pipeline, ["a photo of a cat"])
    seconds = time.monotonic() - started
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    figures.add("size of the pipeline's folder", f"{size / 1e6:.1f} MB")
    figures.add(
        f"loading it and sampling one picture, {STEPS} steps, {torch.get_num_threads()} threads", f"{seconds:.1f} s"
    )
    return pipeline


@torch.no_grad()
def _measure_vae(figures: Figures, vae: Any, fresh: Tensor) -> None:
    encoded = [vae.encode(part).latent_dist.mean for part in fresh.split(50)]
    decoded = torch.cat([vae.decode(part).sample for part in encoded])
    figures.add(f"VAE, PSNR on {len(fresh)} fresh renders", f"{psnr(decoded, fresh):.2f} dB")


def _measure_answers(figures: Figures, judge: Judge, what: str, pictures: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Which of the judge's answers are right, bool [N, questions]."""
    right = judge.answers(pictures) == torch.tensor([labels(scene) for scene in scenes])
    for i, question in enumerate(QUESTIONS):
        figures.add(f"judge on {what}, {question}", _share(right[:, i]))
    return right


def _measure_nearest(figures: Figures, work: Path, pictures: dict[str, Tensor]) -> None:
    training = np.load(work / "images.npy", mmap_mode="r")
    for what, some in pictures.items():
        near = nearest(some, training)
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


PAGE = """# The embedded miniature

A complete, small Stable Diffusion stack that ships inside the package: `CLIPTokenizer`, `CLIPTextModel`,
`AutoencoderKL`, `UNet2DConditionModel` (v-prediction) and a DDIM scheduler, in stock diffusers format, for 64x64
pictures. It knows a world of rendered scenes (`dash_vision/miniature/world/scenes.py`): fourteen subjects, ten colours
and five patterns in the twenty places of the DreamBooth protocol, three of its properties, and ten outfits for cats and
dogs. Its purpose is to try, test and compare fine-tuning offline; it knows nothing else.

```python
from dash_vision.miniature import load_pipeline

picture = load_pipeline()("a photo of a red cat in the snow", num_inference_steps=25).images[0]
```

![Generated pictures with their prompts](miniature.png)

Generated, not selected; one seed a picture, 25 steps, guidance {guidance:g}.

## Measured

{table}

The judge is a small classifier of subject, place and colour that was trained on renders only. Fresh renders are scenes
that no network was trained on. The distances to the nearest training render are given for fresh renders too: a
generator that copied its training set would be nearer to it than they are.

## How it was made

`python -m dash_vision.miniature build --work DIR` renders the scenes and trains everything from seeds on a CPU; run
again after a stop, it goes on from the last checkpoint. `--init` goes on from exported weights: only the VAE's decoder
is trained further, so that the latents stay what they are. The shipped weights were made by both, on one and two CPU
cores:

```
python -m dash_vision.miniature build --work first --output first/weights
python -m dash_vision.miniature build --work second --init first/weights --seed 1 --compile \\
    --vae-steps 3000 --unet-steps 3400 --clip-steps 1400
```

These commands give other weights today than the shipped ones: random numbers are drawn in another way since then
(`dash_vision/runs/seeds.py`). The recipe, the scenes and the captions' grammar are the same.

`python -m dash_vision.miniature report --work DIR` rebuilds this page and its picture.

A DreamBooth subject that the base has not seen comes from
`python -m dash_vision.miniature individual --seed 7 OUT/`: five instance pictures, and held-out pictures of the same
individual in other places, which real photographs never give. One in six mixes of two colours and a pattern is kept
out of the training scenes for these individuals. [individuals.md](individuals.md) has what DreamBooth makes of ten.
"""
