"""Batches: their order, their sizes and their random streams."""

import torch

from dash_vision.diffusion.data import Example, Order, View, generator
from dash_vision.pictures.crops import CropInfo


def examples(sizes):
    def view(size):
        return View(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), CropInfo((2, 2), (0, 0)), size)

    return [Example(str(i), "p", (view(size),)) for i, size in enumerate(sizes)]


def test_every_epoch_holds_every_picture_once():
    order = Order(examples([(2, 2)] * 5), 3, seed=4, stream="x")
    drawn = [index for number in range(10) for index, _ in order.batch(number)]
    epochs = [drawn[i : i + 5] for i in range(0, 30, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_batch_size_does_not_change_the_order():
    by_six, by_two = (Order(examples([(2, 2)] * 5), size, 4, "x") for size in (6, 2))
    assert by_six.batch(1) == by_two.batch(3) + by_two.batch(4) + by_two.batch(5)


def test_batches_hold_pictures_of_one_size():
    sizes = [(2, 2)] * 5 + [(4, 2)] * 2 + [(2, 4)]
    order = Order(examples(sizes), 3, seed=1, stream="x")
    for epoch in range(3):
        seen = set()
        for number in range(4 * epoch, 4 * epoch + 4):  # 2 + 1 + 1 batches
            batch = [index for index, _ in order.batch(number)]
            assert len(batch) == 3
            assert len({sizes[i] for i in batch}) == 1
            seen.update(batch)
        assert seen == set(range(8))


def test_streams_and_seeds_are_apart():
    draws = {
        (seed, stream, n): torch.rand(1, generator=generator(seed, stream, n)).item()
        for seed in (0, 1, 2**62)
        for stream in ("a", "b", "ab")
        for n in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)
    assert torch.rand(1, generator=generator(0, "a", 1)).item() == draws[0, "a", 1]
