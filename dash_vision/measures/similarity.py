"""What is measured of pictures, from their features: unit vectors [n, d] that an encoder gave."""

from __future__ import annotations

from torch import Tensor


def likeness(drawn: Tensor, real: Tensor) -> Tensor:
    """[n]: each drawn picture's mean cosine with the real ones."""
    return (drawn @ real.T).mean(dim=1)


def adherence(drawn: Tensor, prompts: Tensor) -> Tensor:
    """[n]: each picture's cosine with its own prompt, which CLIP-T is the mean of."""
    return (drawn * prompts).sum(dim=1)


def drift(on: Tensor, off: Tensor) -> Tensor:
    """[n]: how far the adapter moves a picture that has nothing to do with the subject, 0 to 1.

    on, off: pictures of the same prompts from the same noise, with the adapter and without. It is (1 - cosine) / 2, as
    PEFT's benchmark of image generation defines it.
    """
    return (1 - (on * off).sum(dim=1)) / 2


def leak(on: Tensor, off: Tensor, real: Tensor) -> Tensor:
    """[n]: how much more the class looks like the subject with the adapter than without.

    on, off: pictures of the class prompt, which lacks the rare word, from the same noise. real: the subject. The base's
    own likeness, `likeness(off, real)`, is the floor from which a leak counts.
    """
    return likeness(on, real) - likeness(off, real)


def between(features: Tensor) -> float:
    """The mean cosine of two different pictures."""
    n = len(features)
    return ((features @ features.T).sum().item() - n) / (n * (n - 1))
