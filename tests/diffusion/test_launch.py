"""The launch in a DreamBooth run: a state of the shifts that begins there, and the control that chooses at random."""

import numpy as np
import pytest
import torch

from dash_vision.runs.loop import train as steps_until
from dash_vision.runs.signals import StopRequest
from tests.support import reference
from tests.support.dreambooth import prepare, settings


def shifts(job):
    return torch.cat([w.dsigma.detach() for adapter in job.adapters.values() for _, w in adapter.weights()])


@pytest.mark.parametrize("step", [4, 30])
def test_adams_first_update_of_the_shifts_is_one_rate_long(bases, tmp_path, step):
    """m / sqrt(v) of a first step is 1 in size for any gradient; with a count that had run since step 0, the bias
    correction would be spent: after 30 steps sqrt(1 - 0.999^31) / (1 - 0.9^31) * 0.1 / sqrt(0.001) = 0.57."""
    changes = {"prelaunch_steps": step, "max_train_steps": step + 4, "dash_lr": 3e-2, "adam_epsilon": 1e-12}
    config = settings(bases, tmp_path / "out", **changes)
    job = prepare(config)
    assert steps_until(job, job.training, job.runtime, step, StopRequest())
    assert job.training.schedule.launched
    assert not shifts(job).any()
    assert steps_until(job, job.training, job.runtime, step + 1, StopRequest())
    torch.testing.assert_close(shifts(job).abs(), torch.full_like(shifts(job), 3e-2), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["sd", "flux2-klein"])
def test_the_launch_of_a_run_chooses_by_the_dense_formula(bases, tiny, tmp_path, name):
    base = bases / "sd" if name == "sd" else tiny(name)
    size = {} if name == "sd" else {"max_sequence_length": 32}
    changes = {"pretrained_model_name_or_path": str(base), "resolution": 16, "prelaunch_steps": 2, "max_train_steps": 3}
    changes["lora_alpha"] = 3
    job = prepare(settings(bases, tmp_path / "out", **changes | size))
    assert steps_until(job, job.training, job.runtime, 2, StopRequest())
    (adapter,) = job.adapters.values()
    config = adapter.config
    for module, layer in adapter.layers.items():
        W = layer.base.weight.detach().double().numpy()
        (w,) = (w for key, w in adapter.weights() if key == module)
        A, B, U, V = (getattr(w, part).detach().double().numpy() for part in ("A", "B", "U", "V"))
        rates = reference.dense_rates(W, reference.dense_update(A, B, config.alpha, config.rank), config.eps)
        chosen = np.argsort(-rates)[:3]
        assert w.indices.tolist() == chosen.tolist(), module
        S = np.linalg.svd(W, compute_uv=False)
        for i, index in enumerate(chosen):
            np.testing.assert_allclose(W @ V[i], S[index] * U[:, i], atol=1e-5)
    job.close()


def test_directions_drawn_at_random_follow_from_the_seed(bases, tmp_path):
    def chosen(name, seed):
        config = settings(
            bases, tmp_path / name, dash_selection="random", prelaunch_steps=1, max_train_steps=2, seed=seed
        )
        job = prepare(config)
        torch.rand(len(name))
        assert steps_until(job, job.training, job.runtime, 1, StopRequest())
        return [w.indices.tolist() for _, w in job.adapters["unet"].weights()]

    assert chosen("a", 0) == chosen("another", 0)
    assert chosen("b", 1) != chosen("c", 2)
