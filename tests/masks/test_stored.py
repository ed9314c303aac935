"""Masks as plain arrays: what comes back is bit for bit what went in."""

from __future__ import annotations

import numpy as np
import pytest

from toolbox.masks import BitmapMask, InstanceMasks, PolygonMask, mask_from_coco, masks_from_arrays, masks_to_arrays

TURN = [[0.6, -0.8, 31.25], [0.8, 0.6, -7.5]]


def masks() -> InstanceMasks:
    triangle = np.array([[1.5, 2.25], [17.0, 3.0], [9.0, 1 / 3]])
    square = np.array([[20.0, 20.0], [30.0, 20.0], [30.0, 30.0], [20.0, 30.0]])
    bitmap = np.zeros((16, 24), np.uint8)
    bitmap[3:9, 5:20] = 1
    bitmap[5, 8] = 0  # a hole
    rle = {"size": [16, 24], "counts": [0, 1, 383]}
    return InstanceMasks(
        [
            [PolygonMask([triangle, square]).transformed(TURN), BitmapMask(bitmap[3:9, 5:20], 5, 3, TURN)],
            [],
            [mask_from_coco(rle, 16, 24), PolygonMask([triangle]), PolygonMask([]), BitmapMask(bitmap[:0, :0], 0, 0)],
        ]
    )


def test_polygons_and_bitmaps_with_their_maps_come_back_equal() -> None:
    before = masks()
    arrays = masks_to_arrays(before)
    assert {array.dtype for array in arrays.values()} == {np.dtype(name) for name in ("int64", "float64", "uint8")}
    after = masks_from_arrays(arrays)
    assert [len(image) for image in after.images] == [2, 0, 4]
    for one, other in zip(sum(before.images, []), sum(after.images, []), strict=True):
        assert type(one) is type(other)
        assert np.array_equal(one.matrix, other.matrix)
        if isinstance(one, PolygonMask):
            assert len(one.parts) == len(other.parts) and all(map(np.array_equal, one.parts, other.parts))
        else:
            assert (one.x, one.y) == (other.x, other.y) and np.array_equal(one.patch, other.patch)
        assert np.array_equal(one.bitmap(60, 60), other.bitmap(60, 60))


def test_a_batch_without_masks_comes_back_too() -> None:
    assert masks_from_arrays(masks_to_arrays(InstanceMasks([[], []]))).images == [[], []]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("per_image", lambda a: a + 1),
        ("parts", lambda a: a + 1),
        ("vertices", lambda a: a - 5),
        ("patches", lambda a: a * 2),
        ("pixels", lambda a: a[:-1]),
        ("matrices", lambda a: a[:-1]),
        ("points", lambda a: a[1:]),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(name: str, change: object) -> None:
    arrays = masks_to_arrays(masks())
    arrays[name] = change(arrays[name])  # type: ignore[operator]
    with pytest.raises(ValueError):
        masks_from_arrays(arrays)
