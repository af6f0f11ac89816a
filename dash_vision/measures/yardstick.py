"""What an adapter did to a base, measured on the same noise with it and without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from PIL import Image
from torch import Tensor

from .encoders import Encoders
from .similarity import adherence, drift, leak, likeness

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""(prompts, the number of each picture's starting noise) -> a picture for each prompt."""


@dataclass(frozen=True)
class Asked:
    """What is drawn. subject: prompts that name the subject, one a picture. class_: as many times the class without the
    rare word. unrelated: prompts that have nothing to do with it. said: what `subject` says without the rare word,
    which no CLIP knows."""

    subject: tuple[str, ...]
    class_: tuple[str, ...]
    unrelated: tuple[str, ...]
    said: tuple[str, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """All of them, in the order in which they are drawn."""
        return (*self.subject, *self.class_, *self.unrelated)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of each picture's starting noise: within a group from 0 on, so that the class is drawn from the noise of the
        subject."""
        return tuple(n for group in (self.subject, self.class_, self.unrelated) for n in range(len(group)))


@dataclass(frozen=True)
class Measured:
    """One value for each picture that was drawn, in the order of the prompts; empty where there is no encoder for it.

    likeness: mean cosine with the held-out pictures. adherence: cosine with the prompt (CLIP-T). drift: see similarity.
    leak: above the base's own likeness. class_likeness: of the class's pictures with the held-out ones, of which leak
    is a difference.
    """

    likeness: list[float] = field(default_factory=list)
    adherence: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    leak: list[float] = field(default_factory=list)
    class_likeness: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Features:
    subject: Tensor
    class_: Tensor
    unrelated: Tensor


@dataclass
class Yardstick:
    """Measures whatever draws. real: the held-out pictures. own: for each prompt of `asked.subject` the numbers of
    those among `real` that it describes. base: draws without any adapter.

        yardstick = Yardstick(encoders, asked, real, own, draw_with_the_base)
        measured = yardstick.measure(draw_with_the_adapter)
    """

    encoders: Encoders
    asked: Asked
    real: Sequence[Image.Image]
    own: Sequence[Sequence[int]]
    base: Draw

    @cached_property
    def _real(self) -> Tensor:
        assert self.encoders.likeness is not None
        return self.encoders.likeness.pictures(self.real)

    @cached_property
    def _said(self) -> Tensor:
        assert self.encoders.text is not None
        return self.encoders.text.texts(self.asked.said)

    @cached_property
    def drawn_by_base(self) -> list[Image.Image]:
        """The base's own pictures of all prompts, drawn once."""
        return self.base(self.asked.prompts, self.asked.numbers)

    @cached_property
    def _off(self) -> _Features:
        return self._seen(self.drawn_by_base)

    def measure(self, draw: Draw) -> Measured:
        """Of what `draw` draws."""
        if self.encoders.likeness is None:
            return Measured()
        return self.of(draw(self.asked.prompts, self.asked.numbers))

    def of_base(self) -> Measured:
        """Of the base's own pictures: drift and leak are zero, and the likeness is the floor."""
        return self.measure(lambda prompts, numbers: self.drawn_by_base)

    def of(self, pictures: Sequence[Image.Image]) -> Measured:
        """Of pictures of all prompts, in their order."""
        on, off, real, count = self._seen(pictures), self._off, self._real, len(self.asked.subject)
        like = [likeness(on.subject[i : i + 1], real[list(own)]).item() for i, own in enumerate(self.own)]
        said = []
        if self.encoders.text is not None:
            said = adherence(self.encoders.text.pictures(pictures[:count]), self._said).tolist()
        return Measured(
            like,
            said,
            drift(on.unrelated, off.unrelated).tolist(),
            leak(on.class_, off.class_, real).tolist(),
            likeness(on.class_, real).tolist(),
        )

    def _seen(self, pictures: Sequence[Image.Image]) -> _Features:
        assert self.encoders.likeness is not None
        features = self.encoders.likeness.pictures(pictures)
        first, second = len(self.asked.subject), len(self.asked.subject) + len(self.asked.class_)
        return _Features(features[:first], features[first:second], features[second:])
