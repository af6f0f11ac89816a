"""Flow matching: noise levels, noise, target and weights, against diffusers' training functions and its sampler."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from dash_vision.bases.flow import Flow, sampler_shift, sized_mu
from dash_vision.bases.noise import NoiseOptions
from dash_vision.files.errors import InputError

SIZE = (64, 32)


def flow(scheduler=None, shift=3.0, **options):
    return Flow.of(scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0), lambda size: shift, NoiseOptions(**options))


def generator():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighting_scheme": "none"},
        {"weighting_scheme": "sigma_sqrt"},
        {"weighting_scheme": "logit_normal", "logit_mean": 0.3, "logit_std": 1.2},
        {"weighting_scheme": "mode", "mode_scale": 1.29},
        {"weighting_scheme": "cosmap"},
    ],
)
def test_uniform_sampling_and_the_weighting_schemes_are_those_of_diffusers_scripts(options, dynamic):
    """The scripts' own lines: a density, a place in the scheduler's steps, their noise levels, the weights of these."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    ours = flow(scheduler, timestep_sampling="uniform", **options)
    scheme = options.get("weighting_scheme", "none")
    numbers = {"logit_mean": 0.0, "logit_std": 1.0, "mode_scale": 1.29} | options
    numbers.pop("weighting_scheme", None)
    u = compute_density_for_timestep_sampling(scheme, 300, **numbers, generator=generator())
    steps = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()]
    sigmas = torch.stack([scheduler.sigmas[(scheduler.timesteps == step).nonzero().item()] for step in steps])
    times = ours.sample_times(300, SIZE, generator())
    assert torch.equal(times, sigmas)
    assert torch.allclose(times * 1000, steps, rtol=1e-6)
    assert torch.allclose(ours.weights(times), compute_loss_weighting_for_sd3(scheme, sigmas).float(), rtol=1e-6)


def test_noise_and_target_are_those_of_the_sampler():
    """diffusers' sampler, told the target of every step, walks from the noise to the latents."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    ours = flow()
    latents, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    z = noise
    for step, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        times = sigma.expand(2)
        assert torch.allclose(ours.noisy(latents, noise, times), z, atol=1e-5)
        z = scheduler.step(ours.target(latents, noise, times), step, z).prev_sample
    assert torch.allclose(z, latents, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "mean", "deviation"),
    [
        ({"timestep_sampling": "sigmoid"}, 0.0, 1.0),
        ({"timestep_sampling": "logit_normal", "logit_mean": 0.5, "logit_std": 2.0}, 0.5, 2.0),
        ({}, math.log(3.0), 1.0),
        ({"timestep_sampling": "shift", "logit_mean": -1.0}, math.log(3.0) - 1, 1.0),
    ],
)
def test_noise_levels_follow_the_logit_normal_and_its_shift(options, mean, deviation):
    """s -> shift s / (1 + (shift - 1) s) adds the logarithm of the shift to the logit. Kolmogorov and Smirnov's
    distance to the normal distribution is above 1.63 / sqrt(n) in one of a hundred cases."""
    levels = flow(**options).sample_times(4000, SIZE, generator()).double().sort().values
    below = torch.special.ndtr((levels.logit() - mean) / deviation)
    distance = (below - torch.arange(1, 4001) / 4000).abs().max()
    assert distance < 1.63 / 4000**0.5


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_the_shift_is_the_one_that_the_sampler_applies(kind):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    mu = sized_mu(scheduler.config, tokens=1024)
    assert mu == pytest.approx(0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256))
    shift = sampler_shift(scheduler.config, mu)
    s = torch.rand(9)
    assert torch.allclose(shift * s / (1 + (shift - 1) * s), scheduler.time_shift(mu, 1.0, s), rtol=1e-5)
    assert sampler_shift(FlowMatchEulerDiscreteScheduler(shift=6.0).config, mu) == 6.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"snr_gamma": 5.0}, "--snr_gamma does nothing for this base, which is trained by flow matching"),
        ({"weighting_scheme": "mode", "timestep_sampling": "shift"}, "leave one of them out"),
        ({"weighting_scheme": "logit_normal", "timestep_sampling": "sigmoid"}, "leave one of them out"),
        ({"timestep_sampling": "sigmoid", "logit_mean": 1.0}, "--logit_mean does nothing here"),
        ({"timestep_sampling": "uniform", "logit_std": 1.0}, "--logit_std does nothing here"),
        ({"mode_scale": 1.0}, "--mode_scale does nothing here"),
    ],
)
def test_options_that_do_nothing_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        flow(**options)


def test_a_weighting_scheme_that_draws_is_diffusers_without_another_flag():
    times = flow(weighting_scheme="mode").sample_times(20, SIZE, generator())
    assert torch.equal(
        times, flow(weighting_scheme="mode", timestep_sampling="uniform").sample_times(20, SIZE, generator())
    )
