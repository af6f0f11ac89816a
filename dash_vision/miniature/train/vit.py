"""Trains the miniature ViT from a seed: 64x64 scenes of the miniature's renderer, eight questions about each, and a
small copy of it to draw from memory.

The questions (place, colours, clothes, marks, ...) are none of the embedded tasks: what a subject is, its coat, how
many there are, where it is and how it is turned stay for fine-tuning to learn. The copy needs no label; without it
nothing would ask the class token to keep where things are.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ...bases.backbones import MINIATURE_SHAPE, plain_attention
from ...files.atomic import replacing
from ...runs.seeds import seed_everything
from ..world.scenes import COLOURS, MARKS, OUTFITS, PROPERTIES, SETTINGS, Scene, random_scene, render
from .fit import Fit, LossAt, Plan

SIZE = MINIATURE_SHAPE["img_size"]
THUMBNAIL = 8  # side in pixels of the copy that the class token has to hold
_NO_ANSWER = -100  # what cross_entropy leaves out

# Question -> its answers; "none" comes first where there may be nothing to see.
QUESTIONS: dict[str, list[str]] = {
    "place": ["none", *SETTINGS],
    "colour": list(COLOURS),
    "second colour": list(COLOURS),
    "look": ["none", *PROPERTIES],
    "outfit": ["none", *OUTFITS],
    "mark": ["none", *MARKS],
    "mark colour": list(COLOURS),
    "collar": ["none", *COLOURS],
}


@dataclass(frozen=True)
class BuildPlan:
    """work: folder for scenes and checkpoint. output: the .safetensors file to write. scenes, heldout: pictures to
    train on and to measure on. steps of batch_size pictures at a peak learning rate."""

    work: Path
    output: Path
    scenes: int = 48000
    heldout: int = 2000
    steps: int = 2400
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    device: str = "cpu"
    processes: int | None = None
    save_every: int = 250

    @property
    def training(self) -> Plan:
        """How `Fit` trains it."""
        return Plan(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            warmup=max(1, self.steps // 20),
            cosine=True,
            betas=(0.9, 0.95),
            weight_decay=self.weight_decay,
            average=0.0,
            save_every=self.save_every,
            log_every=50,
        )

    def identity(self) -> dict[str, float]:
        """The settings that the weights depend on."""
        values = asdict(self)
        return {k: values[k] for k in ("scenes", "steps", "batch_size", "learning_rate", "weight_decay", "seed")}


def answers(scene: Scene) -> list[int]:
    """The scene's answers, one index per question; _NO_ANSWER where the picture does not show it."""
    s = scene.subject
    shown: dict[str, str | None] = {
        "place": scene.setting or "none",
        "colour": s.colour,
        "second colour": s.second if s.pattern != "plain" else None,
        "look": scene.look or "none",
        "outfit": scene.outfit or "none",
        "mark": s.mark or "none",
        "mark colour": s.mark_colour if s.mark else None,
        "collar": s.collar or "none",
    }
    return [QUESTIONS[q].index(a) if a is not None else _NO_ANSWER for q, a in shown.items()]


def scene_at(seed: int, number: int) -> Scene:
    """Scene `number` of the training world: subjects of all sizes (30 to 72 % of the picture), anywhere in it."""
    rng = Random(f"vit {seed} {number}")
    scene = random_scene(rng)
    height = rng.uniform(0.3, 0.72)
    room = 1 - height
    pose = replace(
        scene.pose, x=0.5 + rng.uniform(-0.5, 0.5) * room, y=0.5 + rng.uniform(-0.5, 0.5) * room, height=height
    )
    return replace(scene, pose=pose)


def draw(seed: int, number: int) -> tuple[bytes, list[int]]:
    """(64 * 64 * 3 bytes of pixels, answers) of one scene."""
    scene = scene_at(seed, number)
    return render(scene, SIZE).tobytes(), answers(scene)


def world(plan: BuildPlan) -> tuple[np.ndarray, Tensor]:
    """All pictures [n, 64, 64, 3] uint8 (mapped from the work folder) and answers [n, 8] int64; drawn once."""
    count = plan.scenes + plan.heldout
    pixels, labels = plan.work / f"scenes-{plan.seed}-{count}.npy", plan.work / f"answers-{plan.seed}-{count}.json"
    if not labels.exists():
        plan.work.mkdir(parents=True, exist_ok=True)
        found = _draw_all(plan, count, pixels)
        with replacing(labels) as temporary:
            temporary.write_text(json.dumps(found))
    return np.load(pixels, mmap_mode="r"), torch.tensor(json.loads(labels.read_text()))


def _draw_all(plan: BuildPlan, count: int, file: Path) -> list[list[int]]:
    out = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3))
    found = []
    for number, (data, labels) in enumerate(_drawn(plan, count)):
        out[number] = np.frombuffer(data, np.uint8).reshape(SIZE, SIZE, 3)
        found.append(labels)
        if (number + 1) % 5000 == 0:
            print(f"drawn {number + 1} of {count} scenes", flush=True)
    out.flush()
    return found


def _drawn(plan: BuildPlan, count: int) -> Iterator[tuple[bytes, list[int]]]:
    if plan.processes == 1:
        yield from (draw(plan.seed, number) for number in range(count))
        return
    with multiprocessing.get_context("spawn").Pool(plan.processes) as pool:
        yield from pool.imap(partial(draw, plan.seed), range(count), chunksize=64)


def batch_at(plan: BuildPlan, pixels: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(pictures [n, 3, 64, 64] in -1..1, their numbers [n]) of a step, drawn from its generator: half of them mirrored,
    all moved by up to 4 pixels."""
    numbers = torch.randint(plan.scenes, (plan.batch_size,), generator=generator).sort().values
    images = to_input(pixels[numbers.numpy()])
    mirrored = torch.rand(plan.batch_size, generator=generator) < 0.5
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    padded = F.pad(images, (4, 4, 4, 4), mode="replicate")
    x, y = torch.randint(9, (2,), generator=generator).tolist()
    return padded[:, :, y : y + SIZE, x : x + SIZE], numbers


def to_input(pixels: np.ndarray) -> Tensor:
    """[n, 64, 64, 3] uint8 to [n, 3, 64, 64] float32 in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def outputs() -> int:
    """Numbers that the head gives: one per answer, and the thumbnail's."""
    return sum(map(len, QUESTIONS.values())) + 3 * THUMBNAIL**2


def split_answers(head: Tensor) -> list[Tensor]:
    """One [n, answers] tensor per question of the head's [n, outputs()]."""
    return list(head[:, : -3 * THUMBNAIL**2].split([len(a) for a in QUESTIONS.values()], dim=1))


def thumbnail_loss(head: Tensor, images: Tensor) -> Tensor:
    """Squared error of the copy [n, 3 * 8 * 8] at the end of `head`, divided by that of the batch's mean picture."""
    wanted = F.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)
    return F.mse_loss(head[:, -3 * THUMBNAIL**2 :], wanted) / (wanted - wanted.mean(0)).square().mean()


def question_loss(head: Tensor, labels: Tensor) -> Tensor:
    """Mean over the questions of their cross-entropy, each divided by that of guessing."""
    losses = []
    for part, column in zip(split_answers(head), labels.T, strict=True):
        if (column != _NO_ANSWER).any():
            losses.append(F.cross_entropy(part, column, ignore_index=_NO_ANSWER) / np.log(part.shape[1]))
    return torch.stack(losses).mean()


@torch.no_grad()
def measure(model: VisionTransformer, pixels: np.ndarray, labels: Tensor) -> dict[str, float]:
    """Accuracy in percent per question on held-out scenes."""
    device = next(model.parameters()).device
    parts = [model(to_input(pixels[i : i + 250]).to(device)).cpu() for i in range(0, len(pixels), 250)]
    found = {}
    for question, part, column in zip(QUESTIONS, split_answers(torch.cat(parts)), labels.T, strict=True):
        shown = column != _NO_ANSWER
        found[question] = round(100 * (part.argmax(1) == column)[shown].double().mean().item(), 1)
    return found


def build(plan: BuildPlan) -> dict[str, float]:
    """Draw the scenes, train (going on from the work folder's checkpoint), write the weights in float16 without the
    head; the held-out accuracies. Raises Stopped, RunError and InputError as `Fit.run`."""
    pixels, labels = world(plan)
    seed_everything(plan.seed, "vit, weights")
    model = VisionTransformer(**MINIATURE_SHAPE, num_classes=outputs()).to(plan.device)
    if plan.device == "cpu":
        plain_attention(model)
    fit = Fit("vit", {"vit": model}, plan.training, plan.work, plan.seed, plan.device)
    fit.run(_loss_of(model, pixels, labels, plan, fit))
    accuracies = measure(model.eval(), pixels[plan.scenes :], labels[plan.scenes :])
    export(plan, model, accuracies)
    return accuracies


def _loss_of(model: VisionTransformer, pixels: np.ndarray, labels: Tensor, plan: BuildPlan, fit: Fit) -> LossAt:
    """The loss of the questions and that of the copy, each a share of what guessing costs."""

    def loss_at(batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images, numbers = batch_at(plan, pixels, generator)
        images = images.to(plan.device)
        with fit.runtime.autocast():
            head = model(images)
        head = head.float()
        asked = question_loss(head, labels[numbers].to(plan.device))
        drawn = thumbnail_loss(head, images)
        return asked + drawn, {"questions": asked.detach(), "copy": drawn.detach()}

    return loss_at


def export(plan: BuildPlan, model: VisionTransformer, accuracies: dict[str, float]) -> None:
    """Write the trunk in float16, with what it was trained on and how well in the header."""
    trunk = {
        k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items() if not k.startswith("head.")
    }
    about = {"shape": MINIATURE_SHAPE, "trained": plan.identity(), "held_out_accuracy": accuracies}
    with replacing(plan.output) as temporary:
        save_file(trunk, temporary, {"dash_vision_miniature_vit": json.dumps(about)})
