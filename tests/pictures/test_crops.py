"""Buckets, crops and tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dash_vision.pictures.crops import make_buckets, nearest_bucket, to_tensor, variants
from tests.support.pictures import photo

# Buckets


def test_buckets_by_hand():
    # 512 = 8 cells of 64: of all w x h with w * h <= 64 and ratio <= 2, those that fit in no other one.
    assert make_buckets(512) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert make_buckets(64) == [(64, 64)]
    assert make_buckets(100, step=64) == [(64, 128), (64, 64), (128, 64)]  # 128 * 64 = 8,192 <= 10,000
    assert make_buckets(1024, max_ratio=1.0) == [(1024, 1024)]


@settings(max_examples=60, deadline=None)
@given(
    resolution=st.integers(8, 1100),
    step=st.sampled_from([8, 16, 32, 64]),
    max_ratio=st.floats(1, 5) | st.just(math.inf),
)
def test_buckets_are_complete_and_within_bounds(resolution, step, max_ratio):
    if resolution < step:
        with pytest.raises(ValueError, match="resolution"):
            make_buckets(resolution, step, max_ratio)
        return
    buckets = make_buckets(resolution, step, max_ratio)
    assert len(set(buckets)) == len(buckets)
    assert {(h, w) for w, h in buckets} == set(buckets)
    square = resolution // step * step
    assert (square, square) in buckets
    for w, h in buckets:
        assert w % step == h % step == 0
        assert w * h <= resolution**2
        assert max(w, h) <= max_ratio * min(w, h)
        grown = [(w + step, h), (w, h + step)]  # nothing to be gained by a larger one, the square apart
        for wide, high in grown if w != h else []:
            assert wide * high > resolution**2 or max(wide, high) > max_ratio * min(wide, high)


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000), ratio=st.floats(1, 4))
def test_the_nearest_bucket_is_nearest(width, height, ratio):
    buckets = make_buckets(512, 64, ratio)
    w, h = nearest_bucket(width, height, buckets)
    shapes = [abs(math.log(width / height) - math.log(a / b)) for a, b in buckets]
    assert abs(math.log(width / height) - math.log(w / h)) <= min(shapes) + 1e-8
    if width > height:
        assert w >= h


def test_bucket_arguments():
    assert nearest_bucket(512, 512, make_buckets(512)) == (512, 512)
    assert nearest_bucket(4000, 3000, make_buckets(512)) == (576, 448)
    for bad in ((512, 0, 2.0), (32, 64, 2.0), (512, 64, 0.5), (512, 64, math.nan)):
        with pytest.raises(ValueError):
            make_buckets(*bad)
    with pytest.raises(ValueError):
        nearest_bucket(1, 1, [])
    with pytest.raises(ValueError):
        nearest_bucket(0, 1, [(64, 64)])


# Tensors


def pixels_of(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.permute(1, 2, 0).numpy() + 1) * 127.5


def resized_then_cropped(image: Image.Image, size: tuple[int, int], place: tuple[int, int], flip: bool) -> np.ndarray:
    scale = max(size[0] / image.width, size[1] / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)[:, ::-1] if flip else np.asarray(image)
    y, x = place
    return pixels[y : y + size[1], x : x + size[0]]


def test_a_picture_of_the_right_size_is_only_rescaled():
    image = Image.fromarray(photo(48, 32))
    tensor, info = to_tensor(image, (48, 32))
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.equal(tensor, torch.from_numpy(photo(48, 32)).permute(2, 0, 1).float() / 127.5 - 1)
    assert info == ((32, 48), (0, 0))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize(("shape", "size"), [((90, 60), (32, 32)), ((61, 97), (40, 24)), ((20, 30), (64, 64))])
def test_crops_equal_resizing_first(shape, size, crop, flip):
    image = Image.fromarray(photo(*shape))
    generator = torch.Generator().manual_seed(5)
    tensor, info = to_tensor(image, size, crop=crop, flip=flip, generator=generator)
    assert tensor.shape == (3, size[1], size[0])
    wanted = resized_then_cropped(image, size, info.crop_top_left, flip)
    assert np.abs(pixels_of(tensor) - wanted).max() <= 1.01
    assert info.original_size == (shape[1], shape[0])


def test_the_centre_is_the_centre():
    image = Image.fromarray(photo(100, 50))
    _, info = to_tensor(image, (50, 50))
    assert info.crop_top_left == (0, 25)
    _, info = to_tensor(image, (50, 50), flip=True, original_size=(500, 1000))
    assert info == ((500, 1000), (0, 25))


def test_random_crops_follow_the_generator_and_reach_every_place():
    image = Image.fromarray(photo(36, 32))
    draws = [to_tensor(image, (32, 32), crop="random", generator=torch.Generator().manual_seed(0)) for _ in "ab"]
    assert torch.equal(draws[0][0], draws[1][0])
    generator = torch.Generator().manual_seed(1)
    places = {to_tensor(image, (32, 32), crop="random", generator=generator)[1].crop_top_left for _ in range(100)}
    assert places == {(0, x) for x in range(5)}


def test_an_extreme_strip_can_be_cropped():
    tensor, info = to_tensor(Image.fromarray(photo(20_000, 16)), (256, 256))
    assert tensor.shape == (3, 256, 256)
    assert info.crop_top_left == (0, (320_000 - 256) // 2)
    assert tensor.abs().max() <= 1


def test_variants_are_as_many_as_can_differ():
    image = Image.fromarray(photo(64, 48))

    def draw(n: int, **options: object) -> list[torch.Tensor]:
        return [t for t, _ in variants(image, (32, 32), n, generator=torch.Generator().manual_seed(0), **options)]

    assert len(draw(6)) == 1
    plain, mirrored = draw(1, flip=True)
    assert torch.equal(plain, draw(1)[0])
    assert np.abs(pixels_of(plain.flip(2)) - pixels_of(mirrored)).max() <= 7  # 43 columns: centres differ by one
    assert len(draw(6, crop="random")) == 6
    assert all(map(torch.equal, draw(6, crop="random"), draw(6, crop="random")))
    assert len(draw(6, crop="random", flip=True)) == 6


def test_variants_without_room_to_move_do_not_repeat():
    square = Image.fromarray(photo(64, 64))
    assert len(variants(square, (32, 32), 6, crop="random")) == 1
    (plain, _), (mirrored, _) = variants(square, (32, 32), 6, crop="random", flip=True)
    assert torch.equal(plain.flip(2), mirrored)


def test_crop_arguments():
    image = Image.fromarray(photo())
    with pytest.raises(ValueError, match="center or random"):
        to_tensor(image, (32, 32), crop="middle")
    with pytest.raises(ValueError, match="at least 1"):
        to_tensor(image, (0, 32))
    with pytest.raises(ValueError, match="n = 0"):
        variants(image, (32, 32), 0)
