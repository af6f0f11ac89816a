"""The noise, the target and the loss, against diffusers'."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from dash_vision.bases.noise import NoiseSchedule, denoising_loss


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_target_and_weights_are_diffusers(prediction):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)
    ours = NoiseSchedule.of(scheduler)
    z, noise = torch.randn(6, 4, 3, 5), torch.randn(6, 4, 3, 5)
    t = torch.tensor([0, 1, 250, 600, 998, 999])
    assert torch.allclose(ours.noisy(z, noise, t), scheduler.add_noise(z, noise, t), atol=1e-6)
    target = noise if prediction == "epsilon" else scheduler.get_velocity(z, noise, t)
    assert torch.allclose(ours.target(z, noise, t), target, atol=1e-6)
    snr = compute_snr(scheduler, t)
    divisor = snr if prediction == "epsilon" else snr + 1
    expected = torch.minimum(snr, torch.tensor(5.0)) / divisor
    assert torch.allclose(ours.weights(t, 5.0), expected, rtol=1e-4)
    assert torch.equal(ours.weights(t, None), torch.ones(6))
    weights = torch.rand(6)
    by_hand = torch.stack([w * ((a - b) ** 2).mean() for w, a, b in zip(weights, z, noise, strict=True)])
    assert torch.allclose(denoising_loss(z, noise, weights), by_hand)


def test_a_zero_terminal_snr_is_trained_too():
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="epsilon")
    schedule = NoiseSchedule.of(scheduler)
    last = torch.tensor([999])
    assert schedule.weights(last, 5.0).item() == 1
    assert torch.isfinite(schedule.noisy(torch.ones(1, 1), torch.ones(1, 1), last)).all()
