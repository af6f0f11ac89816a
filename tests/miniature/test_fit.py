"""The training loop of the miniature's networks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dash_vision.files.errors import InputError, RunError, Stopped
from dash_vision.miniature.train.fit import Fit, Plan, orthogonalized

# ------------------------------------------------------------------------------------------------ the training loop


class Toy:
    """A network of an embedding, a convolution and a linear layer, and its training."""

    def __init__(self, folder: Path, muon: float) -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"e": nn.Embedding(5, 8), "c": nn.Conv2d(2, 8, 3), "l": nn.Linear(8, 3)})
        plan = Plan(steps=12, learning_rate=1e-2, batch_size=4, warmup=3, muon=muon, save_every=5, log_every=4)
        self.fit = Fit("toy", {"net": self.net}, plan, folder, seed=1)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(4, 2, 6, 6, generator=generator)
        index = torch.randint(5, (4,), generator=generator)
        hidden = self.net["c"](x).mean((2, 3)) + self.net["e"](index)
        return (self.net["l"](hidden.tanh()) - x.mean()).square().mean(), {}

    def run(self) -> list[Tensor]:
        self.fit.run(self.loss)
        return [*self.fit.parameters, *self.fit.averages]


@pytest.mark.parametrize("muon", [0.0, 2e-2])
def test_training_resumes_bit_for_bit(muon: float, tmp_path: Path) -> None:
    whole, stopped, killed = (tmp_path / name for name in ("whole", "stopped", "killed"))
    for folder in (whole, stopped, killed):
        folder.mkdir()
    expected = Toy(whole, muon).run()

    polite, step_loss = Toy(stopped, muon), Toy.loss

    def ask_to_stop(self: Toy, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_loss(self, step, generator)

    with pytest.raises(Stopped, match="stopped at step 7"):
        polite.fit.run(lambda step, generator: ask_to_stop(polite, step, generator))

    crashing = Toy(killed, muon)

    def crash(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if step == 8:
            raise RuntimeError("power cut")
        return crashing.loss(step, generator)

    with pytest.raises(RuntimeError):
        crashing.fit.run(crash)
    for folder in (stopped, killed):
        found = Toy(folder, muon).run()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_loss_that_is_not_a_number_stops_the_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 0.0)

    def poisoned(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = toy.loss(step, generator)
        return (loss * float("nan") if step == 7 else loss), figures

    with pytest.raises(RunError, match="nan at step 8"):
        toy.fit.run(poisoned)
    again = Toy(tmp_path, 0.0)
    again.fit.resume()
    assert again.fit.step == 5
    assert all(torch.isfinite(p).all() for p in again.fit.parameters)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    Toy(tmp_path, 0.0).run()
    with pytest.raises(InputError, match="another --work folder"):
        Toy(tmp_path, 2e-2).run()


def test_the_average_of_the_weights_is_the_running_mean_that_the_plan_says(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 0.0)
    seen = []

    def watched(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append([p.detach().double().clone() for p in toy.fit.parameters])
        return toy.loss(step, generator)

    toy.fit.run(watched)
    seen.append([p.detach().double().clone() for p in toy.fit.parameters])
    expected = seen[0]
    for update, weights in enumerate(seen[1:], 1):
        kept = min(0.999, update / (update + 10))
        expected = [kept * e + (1 - kept) * w for e, w in zip(expected, weights, strict=True)]
    for average, wanted in zip(toy.fit.averages, expected, strict=True):
        torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=1e-6)
    toy.fit.use_averages()
    assert all(torch.equal(p, a) for p, a in zip(toy.fit.parameters, toy.fit.averages, strict=True))


def test_a_stop_at_the_last_step_is_not_forgotten(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 0.0)

    def stops(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if step == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return toy.loss(step, generator)

    with pytest.raises(Stopped) as stopped:
        toy.fit.run(stops)
    assert stopped.value.signum == signal.SIGINT
    again = Toy(tmp_path, 0.0)
    again.fit.resume()
    assert again.fit.step == 12


def test_half_a_cosine_falls_to_zero_after_its_warm_up() -> None:
    plan = Plan(steps=100, learning_rate=1.0, warmup=5, cosine=True)
    assert plan.rate_at(0) == pytest.approx(1 / 5)
    assert plan.rate_at(50) == pytest.approx(0.5)
    assert plan.rate_at(100) == pytest.approx(0)


def test_prolonging_a_plan_changes_nothing_before_its_cooldown() -> None:
    short, long = Plan(steps=1000, learning_rate=1.0), Plan(steps=3000, learning_rate=1.0)
    assert all(short.rate_at(step) == long.rate_at(step) for step in range(700))
    assert short.rate_at(850) == pytest.approx(0.5)
    assert short.rate_at(0) == pytest.approx(1 / 200)


@pytest.mark.parametrize("shape", [(3, 16, 24), (2, 40, 8)])
def test_orthogonalized_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalized(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.4
    # In the basis of the singular vectors the result is about diagonal, and all of its diagonal is about one.
    inside = u.mT @ found @ vh.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 0.1
