from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from toolbox.masks import BitmapMask, PolygonMask, mask_from_coco

SQUARE = [[2.0, 1.0], [5.0, 1.0], [5.0, 4.0], [2.0, 4.0]]
DOUBLE = [[2.0, 0, 0], [0, 2.0, 0]]


def flip(width: float) -> list[list[float]]:
    return [[-1.0, 0, width], [0, 1.0, 0]]


def test_square_covers_exactly_its_pixels(geometry: str) -> None:
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:5] = 1
    np.testing.assert_array_equal(PolygonMask([SQUARE]).bitmap(6, 8), expected)
    np.testing.assert_array_equal(BitmapMask(np.ones((3, 3), np.uint8), 2, 1).bitmap(6, 8), expected)


def test_pixel_on_an_edge_belongs_to_one_of_two_neighbours(geometry: str) -> None:
    left = PolygonMask([[[0, 0], [2.5, 0], [2.5, 4.5], [0, 4.5]]]).bitmap(6, 6)
    right = PolygonMask([[[2.5, 0], [6, 0], [6, 4.5], [2.5, 4.5]]]).bitmap(6, 6)
    below = PolygonMask([[[0, 4.5], [6, 4.5], [6, 6], [0, 6]]]).bitmap(6, 6)
    np.testing.assert_array_equal(left + right + below, np.ones((6, 6), np.uint8))
    assert right[0, 2] == 1 and below[4, 0] == 1


def test_overlapping_parts_are_united(geometry: str) -> None:
    shifted = [[x + 1, y + 1] for x, y in SQUARE]
    got = PolygonMask([SQUARE, shifted]).bitmap(6, 8)
    assert got.sum() == 9 + 9 - 4 and got[2, 3] == 1


def test_self_crossing_part_follows_the_even_odd_rule(geometry: str) -> None:
    twice = [*SQUARE, *SQUARE]  # wound twice around: inside becomes outside
    assert PolygonMask([twice]).bitmap(6, 8).sum() == 0


def test_transformations_compose_in_the_order_given(geometry: str) -> None:
    expected = np.zeros((8, 16), np.uint8)
    expected[2:8, 16 - 10 : 16 - 4] = 1  # doubled to columns 4 … 10, then mirrored in a width of 16
    for mask in (PolygonMask([SQUARE]), BitmapMask(np.ones((3, 3), np.uint8), 2, 1)):
        moved = mask.transformed(DOUBLE).transformed(flip(16))
        assert type(moved) is type(mask)
        np.testing.assert_array_equal(moved.bitmap(8, 16), expected)
        np.testing.assert_array_equal(moved.box(), np.float32([6, 2, 12, 8]))
        np.testing.assert_array_equal(mask.box(), np.float32([2, 1, 5, 4]))  # the first is as it was


def test_flip_of_a_bitmap_is_the_flipped_bitmap(geometry: str) -> None:
    patch = (np.random.default_rng(0).random((5, 7)) < 0.5).astype(np.uint8)
    full = np.zeros((9, 12), np.uint8)
    full[3:8, 4:11] = patch
    np.testing.assert_array_equal(BitmapMask(patch, 4, 3).transformed(flip(12)).bitmap(9, 12), full[:, ::-1])


def test_box_of_a_bitmap_is_that_of_its_set_pixels() -> None:
    patch = np.zeros((6, 7), np.uint8)
    patch[2, 3] = patch[4, 1] = 1
    mask = BitmapMask(patch, 10, 20)
    np.testing.assert_array_equal(mask.box(), np.float32([11, 22, 14, 25]))
    turned = mask.transformed([[1.0, 1.0, 0], [-1.0, 1.0, 0]])  # by 45 degrees: x + y and y - x of all eight corners
    np.testing.assert_array_equal(turned.box(), np.float32([13 + 22, 22 - 14, 14 + 23, 25 - 11]))


def test_empty_masks_have_an_empty_box_and_bitmap(geometry: str) -> None:
    for mask in (PolygonMask([]), BitmapMask(np.zeros((0, 0), np.uint8), 0, 0), BitmapMask(np.zeros((2, 3)), 1, 1)):
        np.testing.assert_array_equal(mask.box(), np.zeros(4, np.float32))
        assert mask.bitmap(4, 5).sum() == 0 and coco_mask.area(mask.to_rle(4, 5)) == 0


def test_map_without_an_inverse_gives_an_empty_bitmap(geometry: str) -> None:
    mask = BitmapMask(np.ones((3, 3), np.uint8), 2, 1).transformed([[0.0, 0, 3], [0, 1.0, 0]])
    assert mask.bitmap(6, 8).sum() == 0


def test_holes_and_parts_of_an_rle_are_kept(geometry: str) -> None:
    full = np.zeros((20, 30), np.uint8, "F")
    full[2:12, 3:15] = 1
    full[5:8, 6:9] = 0
    full[15:18, 22:28] = 1
    mask = mask_from_coco(coco_mask.encode(full), 20, 30)
    np.testing.assert_array_equal(mask.bitmap(20, 30), full)
    assert mask.to_rle(20, 30)["counts"] == coco_mask.encode(full)["counts"]


def test_masks_survive_the_way_from_a_worker(geometry: str) -> None:
    for mask in (PolygonMask([SQUARE], flip(8)), BitmapMask(np.ones((3, 3), np.uint8), 2, 1, flip(8))):
        mask.box()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(mask)).bitmap(6, 8), mask.bitmap(6, 8))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], r"polygon 0 has an odd number of coordinates \(7\)"),
        ([[0, 0, 4, 0, 4, 4], [1, 2, 3, 4]], "polygon 1 has 2 points; at least 3"),
        ([[0, 0, 4, 0, 4, float("nan")]], "not finite"),
        ([[[0, 0], [4, 0], [4, 4]]], "polygon 0 is not a flat list"),
        ([["a", "b"]], "polygon 0 is not a flat list"),
        ([0, 0, 4, 0, 4, 4], "polygon 0 is not a flat list"),
        ([], "no polygon"),
        (None, "got NoneType"),
        ({"size": [4, 3], "counts": [12]}, r"size is \[4, 3\], but the image has height and width \[3, 4\]"),
        ({"counts": [12]}, "size is None"),
        ({"size": [3, 4], "counts": [2, 3, 4]}, "add up to 9"),
    ],
)
def test_broken_segmentation_says_what_is_wrong(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_from_coco(segmentation, 3, 4)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(3, 3\)"):
        PolygonMask([SQUARE], np.eye(3))
    with pytest.raises(ValueError, match=r"at least 3 points, got \(2, 2\)"):
        PolygonMask([SQUARE[:2]])
    with pytest.raises(ValueError, match=r"\(h, w\), got \(3,\)"):
        BitmapMask(np.ones(3, np.uint8), 0, 0)


def distance_to_boundary(parts: list[np.ndarray], points: np.ndarray) -> np.ndarray:
    """(P,), from every point (P, 2) to the nearest edge."""
    nearest = np.full(len(points), np.inf)
    for part in parts:
        for a, b in zip(part, np.roll(part, -1, axis=0), strict=True):
            along = np.clip(((points - a) @ (b - a)) / max(((b - a) ** 2).sum(), 1e-12), 0, 1)
            nearest = np.minimum(nearest, np.linalg.norm(points - a - along[:, None] * (b - a), axis=1))
    return nearest


def test_real_polygons_differ_from_pycocotools_only_on_the_boundary(geometry: str, coco_small: dict[str, Any]) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco_small["images"]}
    polygons = [a for a in coco_small["annotations"] if isinstance(a["segmentation"], list)][::4]
    assert len(polygons) > 100
    for annotation in polygons:
        height, width = sizes[annotation["image_id"]]
        mask = mask_from_coco(annotation["segmentation"], height, width)
        theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], height, width)))
        y, x = np.nonzero(mask.bitmap(height, width) != theirs)
        if len(y):
            assert distance_to_boundary(mask.parts, np.column_stack([x, y]) + 0.5).max() < 1
        x1, y1, w, h = annotation["bbox"]
        np.testing.assert_allclose(mask.box(), [x1, y1, x1 + w, y1 + h], atol=0.02)


def test_real_rle_masks_equal_pycocotools(geometry: str, coco_small: dict[str, Any], nuclei: dict[str, Any]) -> None:
    for data in (coco_small, nuclei):
        sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
        encoded = [a for a in data["annotations"] if isinstance(a["segmentation"], dict)]
        for annotation in encoded[:: max(1, len(encoded) // 100)]:
            height, width = sizes[annotation["image_id"]]
            compressed = coco_mask.frPyObjects(annotation["segmentation"], height, width)
            full = coco_mask.decode(compressed)
            mask = mask_from_coco(annotation["segmentation"], height, width)
            np.testing.assert_array_equal(mask.bitmap(height, width), full)
            assert mask.to_rle(height, width)["counts"] == compressed["counts"]
            x, y, w, h = coco_mask.toBbox(compressed)
            np.testing.assert_array_equal(mask.box(), np.float32([x, y, x + w, y + h]))
