"""From a picture to the square or the bucket that the model sees: sizes, crops, flips, tensors.

Sizes need no torch, which is imported where a tensor is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from ..files.errors import InputError

if TYPE_CHECKING:
    import torch

Bucket = tuple[int, int]
"""Width and height in pixels."""

CROPS = ("center", "random")


class CropInfo(NamedTuple):
    """What SDXL is told about a crop (size and crop conditioning); everything in pixels, vertical first."""

    original_size: tuple[int, int]
    """(height, width) of the picture before any resizing."""
    crop_top_left: tuple[int, int]
    """(y, x) of the crop inside the resized, and if asked for mirrored, picture."""


def make_buckets(resolution: int, step: int = 64, max_ratio: float = 2.0) -> list[Bucket]:
    """The sizes that pictures of different shapes are brought to, all of about the same area.

    Each is (width, height) in multiples of `step`, with width * height <= resolution**2 and neither side more
    than `max_ratio` times the other; a size that fits inside another one of the list is left out. The largest
    square is always there. Swapping width and height gives the same sizes. Sorted from tall to wide.

    Raises:
        InputError: resolution < step.
        ValueError: step < 1, or max_ratio < 1.
    """
    if step < 1:
        raise ValueError(f"got step {step}; it takes 1 or more")
    if resolution < step:
        raise InputError(
            f"pictures of several shapes have sides in multiples of {step} pixels here, more than the resolution "
            f"{resolution}; give --resolution {step} or more, or leave out --aspect_ratio_buckets"
        )
    if not max_ratio >= 1:
        raise ValueError(f"got max_ratio {max_ratio}; it is long side / short side and cannot be below 1")
    side = resolution // step
    area = resolution**2 // step**2  # in cells of step x step pixels
    ratio = min(max_ratio, float(area))  # a cell row of that length is the most extreme shape there is
    widest = math.isqrt(math.floor(area * ratio))
    tallest = {w: min(area // w, math.floor(w * ratio)) for w in range(1, widest + 1)}
    fitting = {(w, h) for w, h in tallest.items() if w <= h * ratio}
    fitting |= {(h, w) for w, h in fitting}
    best = {(side, side)}
    reached = 0
    for w, h in sorted(fitting, reverse=True):  # from wide to narrow, only what is taller than all wider ones
        if h > reached:
            best.add((w, h))
            reached = h
    cells = sorted(best, key=lambda c: (c[0] / c[1], c))
    return [(w * step, h * step) for w, h in cells]


def nearest_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket whose shape is closest to width x height, so that least is cropped away.

    Distance is |log(width / height) - log(bucket width / bucket height)|: twice too wide is as bad as twice
    too tall. Of equally close ones the larger is taken, then the first.

    Raises:
        ValueError: no buckets, or a side below 1.
    """
    if not buckets:
        raise ValueError("got no buckets; make_buckets(resolution) gives a list")
    if width < 1 or height < 1:
        raise ValueError(f"got a picture of {width}x{height} pixels; both sides must be at least 1")

    def distance(bucket: Bucket) -> tuple[float, int]:
        # Rounded, so that two equally close buckets are equally close in floating point too.
        return round(abs(math.log(width * bucket[1] / (height * bucket[0]))), 9), -bucket[0] * bucket[1]

    return min(buckets, key=distance)


def to_tensor(
    image: Image.Image,
    size: Bucket,
    *,
    crop: str = "center",
    flip: bool = False,
    generator: torch.Generator | None = None,
    original_size: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, CropInfo]:
    """Resize until `size` is covered, cut `size` out of it, and scale the pixels to [-1, 1].

    Args:
        image: an RGB picture, upright.
        size: (width, height) of the result in pixels.
        crop: "center", or "random": a place drawn evenly with `generator`.
        flip: mirror left to right. This is an order, not a chance; the mirroring comes before the crop.
        generator: draws the place of a random crop; None takes torch's global one. A centre crop
            leaves it untouched.
        original_size: (height, width) to report when `image` was already scaled down at reading.

    Returns:
        float32 tensor [3, height, width] in [-1, 1], and the numbers SDXL wants to know.

    Raises:
        ValueError: an unknown `crop`, or a side of `size` below 1.
    """
    _check(size, crop)
    width, height = size
    covered = _cover(image.size, size)
    slack = (covered[0] - width, covered[1] - height)
    left, top = _random_place(slack, generator) if crop == "random" else (slack[0] // 2, slack[1] // 2)
    pixels = _cut(image.convert("RGB"), covered, (slack[0] - left if flip else left, top), size)
    if flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    import torch

    values = torch.from_numpy(np.array(pixels, dtype=np.float32)).permute(2, 0, 1).contiguous()
    info = CropInfo(original_size or (image.height, image.width), (top, left))
    return values.div_(127.5).sub_(1.0), info


def variants(
    image: Image.Image,
    size: Bucket,
    n: int,
    *,
    crop: str = "center",
    flip: bool = False,
    generator: torch.Generator | None = None,
    original_size: tuple[int, int] | None = None,
) -> list[tuple[torch.Tensor, CropInfo]]:
    """The different views of one picture that are encoded once and then drawn from in training.

    There are never more than can differ: 1 for a centre crop, 2 (as it is, then mirrored) for a centre crop
    with `flip`. Random crops give `n`; with `flip` every second one is mirrored, beginning with the first, and of an
    odd `n` one more is made, so that it is half of them. Where `size` leaves no room to move, random crops count as
    centre crops. Other arguments, results and errors as in `to_tensor`.

    Raises:
        ValueError: n < 1 as well.
    """
    _check(size, crop)
    if n < 1:
        raise ValueError(f"got n = {n}; at least one variant is needed")
    if crop == "random" and _cover(image.size, size) != size:
        mirrored = [True, False] * ((n + 1) // 2) if flip else [False] * n
    else:
        crop, mirrored = "center", [False, True] if flip else [False]
    return [
        to_tensor(image, size, crop=crop, flip=mirror, generator=generator, original_size=original_size)
        for mirror in mirrored
    ]


def _check(size: Bucket, crop: str) -> None:
    if crop not in CROPS:
        raise ValueError(f"got crop {crop!r}; it takes {' or '.join(CROPS)}")
    if min(size) < 1:
        raise ValueError(f"got size {size[0]}x{size[1]}; both sides must be at least 1 pixel")


def kept_share(picture: tuple[int, int], size: Bucket) -> tuple[float, float]:
    """The shares of a picture's width and height that a crop of `size` keeps. Sizes are (width, height) in pixels."""
    covered = _cover(picture, size)
    return size[0] / covered[0], size[1] / covered[1]


def _cover(picture: tuple[int, int], size: Bucket) -> tuple[int, int]:
    """The (width, height) of the picture, shape kept, when it just covers `size`."""
    scale = max(size[0] / picture[0], size[1] / picture[1])
    return max(size[0], round(picture[0] * scale)), max(size[1], round(picture[1] * scale))


def _random_place(slack: tuple[int, int], generator: torch.Generator | None) -> tuple[int, int]:
    import torch

    device = generator.device if generator is not None else None
    x, y = (int(torch.randint(room + 1, (), generator=generator, device=device)) for room in slack)
    return x, y


def _cut(image: Image.Image, covered: tuple[int, int], corner: tuple[int, int], size: Bucket) -> Image.Image:
    """Resize to `covered` and crop `size` at `corner`, in one go.

    Only the wanted box is computed: a picture of 8000x20 pixels that has to cover 512x512 would otherwise
    become one of 204,800x512. Pillow's filter looks beyond the box, so the result is that of resizing first.
    """
    sx, sy = image.width / covered[0], image.height / covered[1]
    left, top = corner[0] * sx, corner[1] * sy
    right, bottom = min(image.width, left + size[0] * sx), min(image.height, top + size[1] * sy)
    return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, right, bottom))
