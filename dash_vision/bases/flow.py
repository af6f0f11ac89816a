"""Flow matching: latents become noise along straight lines, and the base says in which direction (arXiv 2210.02747)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..files.errors import InputError
from .noise import NoiseOptions

_OPTIONS = ("timestep_sampling", "weighting_scheme", "logit_mean", "logit_std", "mode_scale")
_DRAWING = ("logit_normal", "mode")  # weighting schemes that say how times are drawn, not how they weigh
_MODE_SCALE = 1.29  # of diffusers' scripts


class Flow:
    """z_s = (1 - s) z + s noise; the base says noise - z. A time is the noise level s, from 0 to 1.

    grid: noise levels of diffusers' training scripts, which fall from 1, float32 [times]. shift: the factor by which
    the base's sampler moves its steps toward noise, for a picture of (width, height) in pixels.

    options.timestep_sampling: "uniform" draws from the grid as diffusers' scripts do, by options.weighting_scheme;
    "logit_normal" is sigmoid(logit_mean + logit_std n) of a normal n, "sigmoid" is sigmoid(n), and "shift" (the
    default) is the logit-normal moved by the base's shift, s -> shift s / (1 + (shift - 1) s).
    options.weighting_scheme: "sigma_sqrt" and "cosmap" weigh the loss (arXiv 2403.03206).

    Raises InputError for options that contradict each other or are not of flow matching.
    """

    prediction = "flow"

    def __init__(self, grid: Tensor, shift: Callable[[tuple[int, int]], float], options: NoiseOptions) -> None:
        options.only("flow matching", _OPTIONS)
        self.grid, self.shift, self.options = grid, shift, options
        scheme = options.weighting_scheme or "none"
        self.sampling = options.timestep_sampling or ("uniform" if scheme in _DRAWING else "shift")
        self.scheme = scheme
        self._check()

    @classmethod
    def of(cls, scheduler: Any, shift: Callable[[tuple[int, int]], float], options: NoiseOptions) -> Flow:
        """The process that the configuration of a diffusers scheduler describes, whatever sampler it is."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        training = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        return cls(training.sigmas.float().cpu(), shift, options)

    def _check(self) -> None:
        o = self.options
        if self.scheme in _DRAWING and self.sampling != "uniform":
            raise InputError(
                f"--weighting_scheme {self.scheme} draws the noise levels, and so does --timestep_sampling "
                f"{self.sampling}; leave one of them out"
            )
        normal = self.sampling in ("logit_normal", "shift") or self.scheme == "logit_normal"
        for name, idle, remedy in (
            ("logit_mean", not normal, "--timestep_sampling logit_normal or shift"),
            ("logit_std", not normal, "--timestep_sampling logit_normal or shift"),
            ("mode_scale", self.scheme != "mode", "--weighting_scheme mode"),
        ):
            if idle and getattr(o, name) is not None:
                raise InputError(f"--{name} does nothing here; give {remedy}, or leave it out")

    def to(self, device: torch.device) -> Flow:
        """Itself: nothing of it is needed on a device."""
        return self

    def sample_times(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Noise levels [count], float32 on the CPU, for pictures of `size`, (width, height) in pixels."""
        if self.sampling == "uniform":
            places = self._density(count, generator) * len(self.grid)
            return self.grid[places.long().clamp(0, len(self.grid) - 1)]
        if self.sampling == "sigmoid":
            return torch.randn(count, generator=generator).sigmoid()
        levels = self._logit_normal(count, generator)
        if self.sampling == "logit_normal":
            return levels
        shift = self.shift(size)
        return shift * levels / (1 + (shift - 1) * levels)

    def _density(self, count: int, generator: torch.Generator) -> Tensor:
        """Places in the grid, 0 to 1, by a weighting scheme that draws; uniform for the others."""
        if self.scheme == "logit_normal":
            return self._logit_normal(count, generator)
        u = torch.rand(count, generator=generator)
        if self.scheme == "mode":
            scale = _MODE_SCALE if self.options.mode_scale is None else self.options.mode_scale
            return 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
        return u

    def _logit_normal(self, count: int, generator: torch.Generator) -> Tensor:
        mean, std = self.options.logit_mean or 0.0, self.options.logit_std or 1.0
        return torch.normal(mean=mean, std=std, size=(count,), generator=generator).sigmoid()

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """z_s for latents and noise [N, C, h, w] at `times` [N]."""
        level = times.view(-1, *[1] * (latents.dim() - 1))
        return (1 - level) * latents + level * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The direction from the latents to the noise, the same at all times."""
        return noise - latents

    def weights(self, times: Tensor) -> Tensor:
        """1 / s^2 for "sigma_sqrt", 2 / (pi (1 - 2 s + 2 s^2)) for "cosmap", else ones."""
        if self.scheme == "sigma_sqrt":
            return times.float() ** -2.0
        if self.scheme == "cosmap":
            return 2 / (math.pi * (1 - 2 * times + 2 * times**2))
        return torch.ones_like(times, dtype=torch.float32)


def sampler_shift(config: Any, mu: float) -> float:
    """The shift of a FlowMatchEulerDiscreteScheduler's steps by its configuration. mu: of the picture's size, for
    schedulers that shift by it."""
    if not config.use_dynamic_shifting:
        return float(config.shift)
    return math.exp(mu) if config.time_shift_type == "exponential" else mu


def sized_mu(config: Any, tokens: int) -> float:
    """mu of a picture of so many tokens: linear between the sizes that the scheduler's configuration names."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return float(config.base_shift + slope * (tokens - config.base_image_seq_len))
