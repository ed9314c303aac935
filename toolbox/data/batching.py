"""Which images make up which batch: a function of (seed, sizes, counts, batch size) and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Key(NamedTuple):
    """One appearance of an image: what its augmentation depends on, beside the seed.

    Attributes:
        epoch: from 0.
        image: its index.
        repeat: from 0, where an image comes several times in an epoch.
    """

    epoch: int
    image: int
    repeat: int = 0


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """Order (length,) of the images in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def global_batches(
    upright: np.ndarray, size: int, seed: int, counts: Callable[[int], np.ndarray] | None = None
) -> Iterator[list[Key]]:
    """Endless steps of `size` keys, over all ranks.

    Every image comes exactly once per epoch, or as often as `counts` says. Portrait and landscape images go to
    different batches, as padding costs time and memory; what is left of both at the end of an epoch shares a batch, and
    what does not fill one opens the next epoch.

    Args:
        upright: (I,) bool, portrait images; all False for no grouping.
        size: images per step.
        seed: of the order.
        counts: epoch → (I,) int, how often each image comes in it.
    """
    carried = np.zeros((0, 3), dtype=np.int64)
    epoch = 0
    while True:
        fresh = epoch_order(np.ones(len(upright), np.int64) if counts is None else counts(epoch), seed, epoch)
        batches, carried = _epoch_batches(carried, fresh, upright, size)
        for batch in batches:
            yield [Key(*key) for key in batch.tolist()]
        epoch += 1


def epoch_order(counts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """(sum of counts, 3) epoch, image and repeat of everything that an epoch shows, in its order before batching."""
    fresh = _appearances(counts, epoch)
    return fresh[permutation(len(fresh), seed, epoch)]


def _appearances(counts: np.ndarray, epoch: int) -> np.ndarray:
    """(sum of counts, 3) epoch, image and repeat, by image."""
    image = np.repeat(np.arange(len(counts)), counts)
    repeat = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.full_like(image, epoch), image, repeat], axis=1)


def _epoch_batches(
    carried: np.ndarray, fresh: np.ndarray, upright: np.ndarray, size: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Batches (size, 3) of one epoch, and the keys (fewer than `size`, 3) that did not fill one."""
    batches = []
    if len(carried):
        # The leftovers go first, so that none waits longer than an epoch, with company of their own kind if there is
        # enough.
        kind = upright[carried[:, 1]].mean() > 0.5
        alike_first = np.argsort(upright[fresh[:, 1]] != kind, kind="stable")
        chosen = np.sort(alike_first[: size - len(carried)])
        first = np.concatenate([carried, fresh[chosen]])
        fresh = np.delete(fresh, chosen, axis=0)
        if len(first) < size:
            return [], first
        batches.append(first)
    groups = [np.flatnonzero(upright[fresh[:, 1]] == kind) for kind in (False, True)]
    full = [rows for group in groups for rows in np.split(group, range(size, len(group), size)) if len(rows) == size]
    # In the order in which a reader of the epoch would have filled them.
    batches += [fresh[rows] for rows in sorted(full, key=lambda rows: rows[-1])]
    left = np.sort(np.concatenate([group[len(group) - len(group) % size :] for group in groups]))
    if len(left) >= size:
        batches.append(fresh[left[:size]])
        left = left[size:]
    return batches, fresh[left]
