from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from toolbox.masks import BitmapMask, InstanceMasks, PolygonMask, mask_from_coco
from toolbox.structures import MaskTargets


def targets(mask: PolygonMask | BitmapMask, roi: list[float], size: tuple[int, int]) -> np.ndarray:
    [target] = InstanceMasks([[mask]]).rasterise(torch.tensor([[0.0, *roi]]), torch.tensor([0]), size).numpy()
    return target


def centres(roi: list[float], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every target pixel's centre, (h, w) each."""
    x1, y1, x2, y2 = np.float32(roi).astype(np.float64)
    height, width = size
    xs, ys = x1 + (np.arange(width) + 0.5) * (x2 - x1) / width, y1 + (np.arange(height) + 0.5) * (y2 - y1) / height
    return np.meshgrid(xs, ys)


def inside_polygon(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Crossing number of a ray to the right, by the side of each edge on which the point lies; nothing is divided."""
    odd = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(part, np.roll(part, -1, axis=0), strict=True):
        crosses = (ay > y) != (by > y)
        left_of_edge = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
        odd ^= crosses & ((left_of_edge > 0) == (by > ay))
    return odd


def star(rng: np.random.Generator, points: int) -> np.ndarray:
    """A polygon of random radius around (50, 50); with many points it has notches and needles."""
    angles = np.sort(rng.random(points)) * 2 * np.pi
    radius = rng.uniform(5, 45, points)
    return np.stack([50 + radius * np.cos(angles), 50 + radius * np.sin(angles)], axis=1)


def random_roi(rng: np.random.Generator) -> list[float]:
    x1, y1 = rng.uniform(-20, 70, 2)
    return [x1, y1, *([x1, y1] + np.exp(rng.uniform(-1, 4.5, 2)))]


def test_target_by_hand(geometry: str) -> None:
    """A region over columns 2 … 6 in two: the square's half lies in the first."""
    square = PolygonMask([[[0, 0], [4, 0], [4, 4], [0, 4]]])
    np.testing.assert_array_equal(targets(square, [2, 0, 6, 8], (2, 2)), [[1, 0], [0, 0]])
    np.testing.assert_array_equal(targets(square, [2, 0, 6, 8], (4, 2)), [[1, 0], [1, 0], [0, 0], [0, 0]])


def test_polygon_target_is_the_centre_inside_any_part(geometry: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        parts = [star(rng, int(rng.integers(3, 40))) for _ in range(int(rng.integers(1, 4)))]
        matrix = np.concatenate([rng.normal(size=(2, 2)), rng.uniform(-10, 60, (2, 1))], axis=1)
        moved = [part @ matrix[:, :2].T + matrix[:, 2] for part in parts]
        roi, size = random_roi(rng), (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
        x, y = centres(roi, size)
        expected = np.any([inside_polygon(x, y, part) for part in moved], axis=0)
        np.testing.assert_array_equal(targets(PolygonMask(parts).transformed(matrix), roi, size), expected)


def test_bitmap_target_is_the_pixel_under_the_centre(geometry: str) -> None:
    rng = np.random.default_rng(1)
    full = np.zeros((100, 120), np.uint8, "F")
    full[20:80, 30:90] = rng.random((60, 60)) < 0.6
    mask = BitmapMask.from_rle(coco_mask.encode(full))
    for _ in range(60):
        matrix = np.concatenate([rng.normal(size=(2, 2)), rng.uniform(-10, 60, (2, 1))], axis=1)
        roi, size = random_roi(rng), (28, 28)
        whole = np.eye(3)
        whole[:2] = matrix
        x, y = centres(roi, size)
        u, v = np.floor(np.linalg.solve(whole, np.stack([x, y, np.ones_like(x)]).reshape(3, -1))[:2]).astype(int)
        inside = (u >= 0) & (u < 120) & (v >= 0) & (v < 100)
        expected = np.where(inside, full[v.clip(0, 99), u.clip(0, 119)], 0).reshape(size)
        np.testing.assert_array_equal(targets(mask.transformed(matrix), roi, size), expected)


def test_bitmap_target_at_its_own_scale_is_a_crop(geometry: str) -> None:
    full = (np.random.default_rng(2).random((40, 50)) < 0.5).astype(np.uint8)
    mask = BitmapMask.from_rle(coco_mask.encode(np.asfortranarray(full)))
    np.testing.assert_array_equal(targets(mask, [7, 3, 35, 31], (28, 28)), full[3:31, 7:35])


def test_rows_find_their_image_and_object(geometry: str) -> None:
    def square(x: float) -> PolygonMask:
        return PolygonMask([[[x, 0], [x + 2, 0], [x + 2, 2], [x, 2]]])

    masks = InstanceMasks([[square(0), square(2)], [], [square(4)]])
    rois = torch.tensor([[0, 0, 0, 6, 2], [0, 0, 0, 6, 2], [2, 0, 0, 6, 2]], dtype=torch.float32)
    got = masks.rasterise(rois, torch.tensor([1, 0, 0]), (1, 3))
    assert got.tolist() == [[[0, 1, 0]], [[1, 0, 0]], [[0, 0, 1]]]
    assert got.dtype == torch.float32 and got.device == rois.device and len(masks) == len(masks.images) == 3


def test_row_that_names_no_object_is_zero(geometry: str) -> None:
    everything = PolygonMask([[[-9, -9], [9, -9], [9, 9], [-9, 9]]])
    masks: MaskTargets = InstanceMasks([[everything], []])
    rois = torch.tensor([[0, 0, 0, 4, 4], [1, 0, 0, 4, 4], [0, 0, 0, 4, 4], [0, 0, 0, 4, 4]], dtype=torch.float32)
    got = masks.rasterise(rois, torch.tensor([0, 0, 5, -1]), (3, 3))
    assert got.sum(dim=(1, 2)).tolist() == [9, 0, 0, 0]


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ([1.0, 0, 1, 4], 1),
        ([1.0, 1, 1, 1], 1),
        ([7.0, 0, 7, 4], 0),
        ([3.0, 3, 1, 1], 0),
        ([float("nan")] * 4, 0),
        ([-float("inf"), 0, float("inf"), 4], 0),
        ([-1e30, -1e30, 1e30, 1e30], 0),
    ],
)
def test_degenerate_region_is_sampled_or_empty(geometry: str, roi: list[float], expected: int) -> None:
    """A region without width samples its line; an inverted or endless one is empty."""
    for mask in (PolygonMask([[[0, 0], [4, 0], [4, 4], [0, 4]]]), BitmapMask(np.ones((4, 4), np.uint8), 0, 0)):
        np.testing.assert_array_equal(targets(mask, roi, (14, 14)), np.full((14, 14), expected))


def test_no_regions_give_no_targets(geometry: str) -> None:
    assert InstanceMasks([[]]).rasterise(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), (28, 28)).shape == (
        0,
        28,
        28,
    )


def detectron2_target(segmentation: list[list[float]], roi: Tensor, size: int) -> np.ndarray:
    """Its way: polygons shifted and scaled into the region, then pycocotools' rasteriser."""
    x1, y1, x2, y2 = roi.double().tolist()
    scaled = [
        ((np.reshape(p, (-1, 2)) - [x1, y1]) * [size / max(x2 - x1, 0.1), size / max(y2 - y1, 0.1)]).ravel().tolist()
        for p in segmentation
    ]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(scaled, size, size)))


def test_real_targets_agree_with_detectron2s_but_for_boundary_pixels(geometry: str, coco_small: dict[str, Any]) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco_small["images"]}
    polygons = [a for a in coco_small["annotations"] if isinstance(a["segmentation"], list) and a["area"] > 400][::4]
    assert len(polygons) > 50
    masks = InstanceMasks([[mask_from_coco(a["segmentation"], *sizes[a["image_id"]]) for a in polygons]])
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in polygons)])
    torch.manual_seed(0)
    boxes += torch.randn(len(boxes), 4) * 0.1 * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    got = masks.rasterise(rois, torch.arange(len(boxes)), (28, 28)).numpy().astype(np.uint8)
    different, boundary = 0, 0
    for target, annotation, box in zip(got, polygons, boxes, strict=True):
        theirs = detectron2_target(annotation["segmentation"], box, 28)
        # A pixel of theirs whose eight neighbours are all alike is off the boundary.
        padded = np.pad(theirs, 1, mode="edge")
        around = np.stack([padded[i : i + 28, j : j + 28] for i in range(3) for j in range(3)])
        edge = around.min(axis=0) != around.max(axis=0)
        different += int(((target != theirs) & edge).sum())
        boundary += int(edge.sum())
        assert ((target != theirs) & ~edge).sum() <= 2  # needles thinner than a pixel, which theirs draws
    assert different < 0.15 * boundary
