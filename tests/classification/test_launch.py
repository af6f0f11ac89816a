"""The dash's launch in a VTAB run: the optimizer's state of the shifts, and the seed of a random choice."""

import pytest
import torch

from dash_vision.runs.signals import StopRequest
from tests.support.vtab import StopAt, job_of


def shifts(job):
    return [w.dsigma for _, w in job.tuned.adapter.weights()]


def test_adams_first_update_of_the_shifts_is_one_rate_long(data):
    """In its first step Adam moves every number by its rate, whatever the gradient's size."""
    job = job_of(data, prelaunch_steps=5, warmup_epochs=0, adam_weight_decay=0.0)
    job.fit(4, StopAt(5))
    assert job.tuned.launched
    assert all(parameter not in job.training.optimizers[0].state for parameter in shifts(job))
    rate = job.plan.rate(job.run.dash_lr, 5)
    job.fit(4, StopAt(1))
    moved = torch.cat([p.detach().abs() for p in shifts(job)])
    torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-2, atol=0)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_random_choice_of_directions_follows_from_the_runs_seed(data, seed):
    def chosen(run_seed):
        job = job_of(data, prelaunch_steps=2, dash_selection="random", seeds=[run_seed])
        job.fit(1, StopRequest())
        return [w.indices.tolist() for _, w in job.tuned.adapter.weights()]

    assert chosen(seed) == chosen(seed)
    assert chosen(seed) != chosen(seed + 1)
