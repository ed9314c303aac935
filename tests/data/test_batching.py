"""Which images make up which batch."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from toolbox.data.batching import Key, global_batches, permutation


def first(count: int, upright: list[bool], size: int, seed: int = 0) -> list[list[Key]]:
    return list(islice(global_batches(np.array(upright), size, seed), count))


@pytest.mark.parametrize(("images", "size"), [(10, 4), (7, 3), (12, 4), (3, 8), (1, 2), (5, 1)])
@pytest.mark.parametrize("portrait", [0, 1, 3])
def test_every_image_comes_once_per_epoch(images: int, size: int, portrait: int) -> None:
    upright = [i < portrait for i in range(images)]
    epochs = 6
    batches = first(images * epochs // size, upright, size)
    assert all(len(batch) == size for batch in batches)
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys)
    for epoch in range(epochs - 1 - size // images):
        assert sorted(index for e, index, _ in keys if e == epoch) == list(range(images))


@pytest.mark.parametrize(("images", "size", "portrait"), [(17, 4, 1), (40, 8, 13), (30, 4, 15)])
def test_no_image_waits_longer_than_an_epoch(images: int, size: int, portrait: int) -> None:
    upright = [i < portrait for i in range(images)]
    for position, batch in enumerate(first(images * 6 // size, upright, size)):
        now = position * size // images
        assert all(abs(epoch - now) <= 1 for epoch, *_ in batch)


def test_portrait_and_landscape_meet_at_most_twice_an_epoch() -> None:
    upright = [i % 3 == 0 for i in range(100)]
    mixed = [len({upright[index] for _, index, _ in batch}) == 2 for batch in first(100 * 10 // 8, upright, 8)]
    assert sum(mixed) <= 20
    assert sum(mixed) < len(mixed) / 5


def test_groups_that_fill_whole_batches_never_mix() -> None:
    upright = [i < 8 for i in range(20)]
    for batch in first(25, upright, 4):
        assert len({upright[index] for _, index, _ in batch}) == 1


def test_without_groups_the_order_is_the_permutation() -> None:
    keys = [key for batch in first(5, [False] * 10, 4) for key in batch]
    expected = [(epoch, int(i), 0) for epoch in (0, 1) for i in permutation(10, 0, epoch)]
    assert keys == expected


def test_the_order_depends_on_the_seed_and_the_epoch() -> None:
    assert first(3, [False] * 10, 4, seed=0) != first(3, [False] * 10, 4, seed=1)
    assert permutation(50, 0, 0).tolist() != permutation(50, 0, 1).tolist()
    assert sorted(permutation(50, 0, 1).tolist()) == list(range(50))
