"""The judge of generated pictures: a small classifier of subject, place and colour that was trained on renders only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...files.errors import InputError
from ...runs.seeds import seed_everything
from ..world.scenes import COLOURS, KINDS, SETTINGS, Scene
from .data import to_tensor, training_scene
from .fit import Fit, Plan

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
