"""Packed batches are the batches that they were made of, whatever they hold."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from toolbox.data.interfaces import Sample
from toolbox.data.packing import packed
from toolbox.data.shapes import Shapes
from toolbox.data.source import collate


def sample(objects: int, height: int, width: int) -> Sample:
    rng = np.random.default_rng(objects)
    return Sample(
        image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        boxes=rng.random((objects, 4), dtype=np.float32),
        labels=np.arange(objects),
        crowd=np.arange(objects) % 2 == 0,
        area=rng.random(objects, dtype=np.float32),
        keypoints=rng.random((objects, 5, 3), dtype=np.float32),
        image_id=objects,
    )


@pytest.mark.parametrize("counts", [[3, 1], [0, 0], [7], [0, 5, 2]])
def test_what_went_in_comes_out(counts: list[int]) -> None:
    batch = collate([sample(count, 5 + count, 7 * (1 + position)) for position, count in enumerate(counts)])
    sent = pickle.loads(ForkingPickler.dumps(packed(batch)))
    found = sent.unpacked()
    assert sent.block.is_shared()
    assert (found.image_ids, found.original_sizes) == (batch.image_ids, batch.original_sizes)
    for ours, own in zip(found.images, batch.images, strict=True):
        assert torch.equal(ours, own) and ours.stride() == own.stride()
    for name, value in vars(batch.targets).items():
        there = getattr(found.targets, name)
        assert there is None if value is None else torch.equal(there, value) and there.dtype == value.dtype


def test_a_batch_is_one_block_and_a_batch_without_targets_stays_one() -> None:
    batch = collate([Shapes(length=2).load(0)])
    batch.targets = None
    sent = packed(batch)
    assert sent.unpacked().targets is None
    assert sent.unpacked().images[0].untyped_storage().data_ptr() == sent.block.untyped_storage().data_ptr()
