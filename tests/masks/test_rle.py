from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from toolbox.masks import BitmapMask
from toolbox.masks.rle import decode_box, encode_bitmap, read_counts


def test_counts_by_hand() -> None:
    """3 × 4, column by column: 0 0 1 | 1 1 0 | 0 0 0 | 1 0 0."""
    rle = {"size": [3, 4], "counts": [2, 3, 4, 1, 2]}
    patch, x, y = decode_box(read_counts(rle), 3)
    np.testing.assert_array_equal(patch, [[0, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]])
    assert (x, y) == (0, 0)


def test_only_the_box_is_decoded() -> None:
    full = np.zeros((1000, 2000), np.uint8)
    full[300:310, 1500:1520] = 1
    full[303:305, 1505:1507] = 0
    mask = BitmapMask.from_rle(encode_bitmap(full))
    assert (mask.x, mask.y, mask.patch.shape) == (1500, 300, (10, 20))
    np.testing.assert_array_equal(mask.patch, full[300:310, 1500:1520])


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 1.0, 0.0])
def test_compressed_and_uncompressed_decode_as_pycocotools_does(density: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(1, 200, 2)
        full = np.asfortranarray(rng.random((height, width)) < density, dtype=np.uint8)
        compressed = coco_mask.encode(full)
        flat = full.ravel(order="F")
        changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
        runs = np.diff([0, *changes, flat.size]).tolist()
        text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
        for rle in (compressed, text, {"size": [height, width], "counts": runs}):
            assert read_counts(rle).tolist() == runs
            np.testing.assert_array_equal(BitmapMask.from_rle(rle).bitmap(height, width), full)


def test_long_runs_survive() -> None:
    full = np.zeros((5000, 4000), np.uint8, "F")
    full[10:4000, 3990] = 1
    mask = BitmapMask.from_rle(coco_mask.encode(full))
    assert (mask.x, mask.y, mask.patch.shape) == (3990, 10, (3990, 1)) and mask.patch.all()


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [3, 4], "counts": [2, 3, 4]}, "add up to 9, .* height 3 and width 4 has 12 pixels"),
        ({"size": [3, 4], "counts": [2, -3, 13]}, "count 1 is -3"),
        ({"size": [3, 4], "counts": [2.5, 9.5]}, "whole numbers"),
        ({"size": [3, 4], "counts": "2 3"}, "holds ' '"),
        ({"size": [3, 4], "counts": "P"}, "middle of a number"),
        ({"size": [3, 4], "counts": "P" * 20 + "1"}, "more than 7 characters"),
        ({"size": [3, 4], "counts": ""}, "add up to 0"),
        ({"counts": [12]}, "'size' and 'counts'"),
    ],
)
def test_broken_rle_says_what_is_wrong(rle: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BitmapMask.from_rle(rle)
