"""Whatever transforms are put together: masks, boxes and joints are where the pixels of their objects are."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toolbox.data.composition import OneOf, RandomApply, in_order
from toolbox.data.copy_paste import CopyPaste
from toolbox.data.geometry import apply_view
from toolbox.data.interfaces import Sample, Transform, View
from toolbox.data.transforms import HorizontalFlip, MinIoUCrop, RandomCrop, ScaleJitter, VerticalFlip
from toolbox.data.turns import RandomAffine, RandomRotation
from toolbox.masks import BitmapMask, PolygonMask
from toolbox.structures import Skeleton

HEIGHT, WIDTH = 60, 80
SKELETON = Skeleton(names=("a", "left", "right"), pairs=((1, 2),), sigmas=(0.1, 0.1, 0.1))
FILL = (7, 7, 7)
SINGLE: list[Transform] = [
    HorizontalFlip(prob=1.0),
    VerticalFlip(prob=1.0),
    RandomRotation(degrees=180.0, fill=FILL),
    RandomRotation(degrees=[0, 90, 180, 270], draw="choice", fill=FILL),
    RandomRotation(degrees=45.0, expand=True, fill=FILL),
    RandomAffine(degrees=30.0, shear=15.0, min_scale=0.7, max_scale=1.4, shift=0.2, fill=FILL),
    RandomCrop(height=50, width=60, fill=FILL),
    RandomCrop(height=50, width=60, fill=FILL, on_object=True),
    ScaleJitter(height=70, width=70, min_scale=0.6, max_scale=1.8, fill=FILL),
    MinIoUCrop(),
]
MIXED: list[Transform] = [
    *SINGLE,
    RandomApply(transforms=SINGLE[1:3], prob=0.7),
    OneOf(transforms=SINGLE),
]
LISTS = st.lists(st.sampled_from(MIXED), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)


def star(x: float, y: float, radius: float, rng: np.random.Generator) -> PolygonMask:
    """A polygon with nine corners around a point."""
    angles = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    reach = radius * rng.uniform(0.5, 1, 9)
    return PolygonMask([np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)])


def scene(seed: int) -> Sample:
    """Two objects, a polygon and a bitmap, each painted into a channel of its own, with joints inside them."""
    rng = np.random.default_rng(seed)
    centres = np.array([[24, 30], [56, 30]]) + rng.uniform(-6, 6, (2, 2))
    masks = [star(*centre, 18, rng) for centre in centres]
    bitmaps = [mask.bitmap(HEIGHT, WIDTH) for mask in masks]
    rows, columns = (np.flatnonzero(bitmaps[1].any(axis=axis)) for axis in (1, 0))
    patch = bitmaps[1][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    masks = [masks[0], BitmapMask(patch, int(columns[0]), int(rows[0]))]
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., :2] = 255 * np.stack(bitmaps, axis=-1)
    joints = centres[:, None] + rng.uniform(-4, 4, (2, 3, 2))
    return Sample(
        image=image,
        boxes=np.array([mask.box() for mask in masks]),
        labels=np.arange(2),
        crowd=np.zeros(2, bool),
        area=np.array([bitmap.sum() for bitmap in bitmaps], np.float32),
        masks=list(masks),
        keypoints=np.concatenate([joints, np.full((2, 3, 1), 2)], axis=-1).astype(np.float32),
    )


def seen(transforms: list[Transform], seed: int) -> tuple[Sample, View]:
    sample = scene(seed)
    view = in_order(View(HEIGHT, WIDTH, sample=sample), transforms, np.random.default_rng(seed))
    return apply_view(sample, view, skeleton=SKELETON, min_visible=0.0), view


def agree_off_outline(mask: np.ndarray, warped: np.ndarray, view: View, where: np.ndarray | None = None) -> bool:
    """Whether a mask is 1 where all within a source pixel is clearly the object's, and 0 where it clearly is not.

    Clearly, for a tip one pixel wide is grey once it is warped. Beyond the canvas nobody knows.

    Args:
        mask: (h, w) of 0 and 1.
        warped: (h, w), the warped picture of an object, 255 where it was.
        where: what is compared; all if not given.
    """
    reach = math.ceil(np.linalg.norm(view.matrix[:, :2], ord=2) - 1e-6)
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    known = np.zeros(mask.shape, bool)
    known[reach:-reach, reach:-reach] = True
    known = known if where is None else known & where
    inside, outside = cv2.erode(warped, kernel) >= 192, cv2.dilate(warped, kernel) < 64
    return bool((mask[known & inside] == 1).all() and (mask[known & outside] == 0).all())


@settings(max_examples=150, deadline=None)
@given(LISTS, SEEDS)
def test_a_mask_is_where_the_warped_pixels_of_its_object_are(transforms: list[Transform], seed: int) -> None:
    """Every object has a channel that says where its pixels went; outlines may be off by a source pixel."""
    after, view = seen(transforms, seed)
    height, width = after.image.shape[:2]
    masks = dict(zip(after.labels.tolist(), after.masks, strict=True))
    for label in (0, 1):
        ours = masks[label].bitmap(height, width) if label in masks else np.zeros((height, width), np.uint8)
        assert agree_off_outline(ours, after.image[..., label], view)


@settings(max_examples=150, deadline=None)
@given(LISTS, SEEDS)
def test_boxes_hold_their_masks_tightly_where_the_canvas_does_not_cut(transforms: list[Transform], seed: int) -> None:
    after, _ = seen(transforms, seed)
    height, width = after.image.shape[:2]
    for box, mask in zip(after.boxes, after.masks, strict=True):
        rows, columns = (np.flatnonzero(mask.bitmap(height, width).any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            continue
        pixels = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # A set pixel has its centre in the mask, so the mask reaches to within half a pixel of its far side.
        assert (box[:2] <= pixels[:2] + 0.501).all()
        assert (box[2:] >= pixels[2:] - 0.501).all()
        whole = mask.box()
        if (whole[:2] >= 0).all() and whole[2] <= width and whole[3] <= height:
            assert np.allclose(box, whole, atol=0.01)


@settings(max_examples=150, deadline=None)
@given(LISTS, SEEDS)
def test_joints_inside_their_masks_stay_inside(transforms: list[Transform], seed: int) -> None:
    after, _ = seen(transforms, seed)
    for mask, joints in zip(after.masks, after.keypoints, strict=True):
        for x, y, visible in joints:
            if visible:
                spot = np.zeros((1, 1), np.uint8)
                mask.fill((x - 0.01, y - 0.01, x + 0.01, y + 0.01), spot)
                assert spot[0, 0] == 1


@settings(max_examples=100, deadline=None)
@given(LISTS, LISTS, SEEDS)
def test_with_copy_paste_between_each_visible_pixel_belongs_to_the_topmost_object(
    before: list[Transform], behind: list[Transform], seed: int
) -> None:
    """Pasted objects are painted into the blue channel of an image of their own, those below into red and green."""
    sample, other = scene(seed), scene(seed + 1)
    painted = np.zeros_like(other.image)
    painted[..., 2] = other.image[..., :2].max(axis=-1)
    other = replace(other, image=painted, labels=np.full(2, 2))
    view = View(HEIGHT, WIDTH, sample=sample, another=lambda rng: View(HEIGHT, WIDTH, sample=other))
    view = in_order(view, [*before, CopyPaste(), *behind], np.random.default_rng(seed))
    after = apply_view(sample, view, skeleton=SKELETON, min_visible=0.0)
    height, width = after.image.shape[:2]
    bitmaps = [mask.bitmap(height, width) for mask in after.masks]
    blue = np.any(
        [np.zeros((height, width)), *[m for m, label in zip(bitmaps, after.labels, strict=True) if label == 2]], 0
    )
    for label, bitmap in zip(after.labels, bitmaps, strict=True):
        if label == 2:
            continue
        assert not (bitmap.astype(bool) & blue).any()
        near_paste = cv2.dilate(blue.astype(np.uint8), np.ones((3, 3), np.uint8)) != 0
        assert agree_off_outline(bitmap, after.image[..., label], view, ~near_paste)
