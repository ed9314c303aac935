"""One affine map for pixels, boxes, masks and keypoints."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from toolbox.data.geometry import (
    apply_view,
    horizontal_flip,
    scaling,
    transform_boxes,
    transform_keypoints,
    translation,
    vertical_flip,
)
from toolbox.data.interfaces import Sample, View
from toolbox.data.rendering import render
from toolbox.masks import BitmapMask, PolygonMask
from toolbox.structures import Skeleton

SKELETON = Skeleton(names=("nose", "left_eye", "right_eye"), pairs=((1, 2),), sigmas=(0.1, 0.1, 0.1))


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sample(**changes: object) -> Sample:
    """Two objects on an image 20 high and 30 wide; the second is a crowd in the corner."""
    settings: dict = {
        "image": picture(20, 30),
        "boxes": np.array([[2, 4, 10, 14], [25, 15, 30, 20]], dtype=np.float32),
        "labels": np.array([3, 1]),
        "crowd": np.array([False, True]),
        "area": np.array([80, 25], dtype=np.float32),
        "masks": [
            PolygonMask([np.array([[2, 4], [10, 4], [10, 14], [2, 14]])]),
            BitmapMask(np.ones((5, 5), np.uint8), 25, 15),
        ],
        "keypoints": np.array([[[3, 5, 2], [4, 6, 2], [9, 13, 1]], [[0, 0, 0]] * 3], dtype=np.float32),
    }
    return Sample(**{**settings, **changes})


def test_the_unmoved_view_is_the_sample_itself() -> None:
    before = sample()
    after = apply_view(before, View(20, 30), skeleton=SKELETON)
    assert np.array_equal(after.image, before.image)
    assert np.array_equal(after.boxes, before.boxes)
    assert np.array_equal(after.keypoints, before.keypoints)
    assert np.array_equal(after.area, before.area)
    assert after.original_size == (20, 30)


def test_horizontal_flip_maps_x_to_width_minus_x_everywhere_and_swaps_the_pairs() -> None:
    before = sample()
    after = apply_view(before, View(20, 30).moved(horizontal_flip(30), 20, 30), skeleton=SKELETON)
    assert np.array_equal(after.image, before.image[:, ::-1])
    assert after.boxes.tolist() == [[20, 4, 28, 14], [0, 15, 5, 20]]
    # nose 30 − 3; the left eye is the former right eye, 30 − 9; the right eye the former left, 30 − 4
    assert after.keypoints[0].tolist() == [[27, 5, 2], [21, 13, 1], [26, 6, 2]]
    assert after.keypoints[1].tolist() == [[0, 0, 0]] * 3
    for mask, old in zip(after.masks, before.masks, strict=True):
        assert np.array_equal(mask.bitmap(20, 30), old.bitmap(20, 30)[:, ::-1])


def test_vertical_flip_maps_y_to_height_minus_y_and_swaps_the_pairs_as_any_mirror_does() -> None:
    before = sample()
    after = apply_view(before, View(20, 30).moved(vertical_flip(20), 20, 30), skeleton=SKELETON)
    assert np.array_equal(after.image, before.image[::-1])
    assert after.boxes.tolist() == [[2, 6, 10, 16], [25, 0, 30, 5]]
    assert after.keypoints[0].tolist() == [[3, 15, 2], [9, 7, 1], [4, 14, 2]]


def test_two_flips_are_a_rotation_and_swap_nothing() -> None:
    view = View(20, 30).moved(horizontal_flip(30), 20, 30).moved(vertical_flip(20), 20, 30)
    after = apply_view(sample(), view, skeleton=SKELETON)
    assert after.keypoints[0].tolist() == [[27, 15, 2], [26, 14, 2], [21, 7, 1]]


def test_a_composed_view_is_its_steps_by_hand() -> None:
    """Resize to twice the size, flip, crop 21 × 33 at (5, 7): by cv2.resize and slicing, and by the one map."""
    before = sample()
    view = View(20, 30).moved(scaling(2, 2), 40, 60).moved(horizontal_flip(60), 40, 60)
    view = view.moved(translation(-5, -7), 21, 33)
    after = apply_view(before, view, skeleton=SKELETON)
    by_steps = cv2.resize(before.image, (60, 40), interpolation=cv2.INTER_LINEAR)[:, ::-1][7:28, 5:38]
    assert np.array_equal(after.image, by_steps)
    # x: 2 … 10 → 4 … 20 → 40 … 56 → 35 … 51, right of the canvas; the crowd's y: 15 → 30 → 23, below it
    assert after.labels.tolist() == []
    wider = apply_view(before, view.moved(translation(0, 0), 40, 60), skeleton=SKELETON)
    assert wider.boxes.tolist() == [[35, 1, 51, 21], [0, 23, 5, 33]]
    assert wider.keypoints[0].tolist() == [[49, 3, 2], [37, 19, 1], [47, 5, 2]]


def test_boxes_are_cut_to_the_canvas_and_those_nearly_gone_are_dropped_but_crowds_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [9.5, 0, 19.5, 10], [9.5, 0, 19.5, 10], [12, 0, 15, 5]])
    count = len(boxes)
    before = sample(
        boxes=boxes.astype(np.float32),
        labels=np.arange(count),
        crowd=np.array([False, True, False, True, True]),
        area=np.full(count, 50, dtype=np.float32),
        masks=None,
        keypoints=None,
    )
    after = apply_view(before, View(20, 10), min_visible=0.1)
    assert after.labels.tolist() == [0, 1, 3]  # 2 keeps a twentieth, 4 nothing
    assert after.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [9.5, 0, 10, 10]]
    assert after.area.tolist() == [50, 50, 2.5]


def test_area_grows_with_the_scale_of_both_axes() -> None:
    after = apply_view(sample(), View(20, 30).moved(scaling(2, 3), 40, 90))
    assert after.area.tolist() == [480, 150]


def test_keypoints_off_the_canvas_become_unlabelled() -> None:
    keypoints = np.array([[[5, 5, 2], [-0.5, 5, 2], [10, 5, 1], [9.9, 9.9, 1]]], dtype=np.float32)
    moved = transform_keypoints(keypoints, np.eye(2, 3), 10, 10, None)
    assert moved[0, :, 2].tolist() == [2, 0, 0, 1]
    assert moved[0, 1].tolist() == [0, 0, 0]


def test_a_crop_beyond_the_image_is_filled() -> None:
    image = picture(4, 6)
    canvas = render(image, View(4, 6).moved(translation(2, -1), 5, 9, fill=(1, 2, 3)))
    expected = np.empty((5, 9, 3), dtype=np.uint8)
    expected[:] = (1, 2, 3)
    expected[:3, 2:8] = image[1:]
    assert np.array_equal(canvas, expected)


def test_a_canvas_that_misses_the_image_is_all_fill() -> None:
    canvas = render(picture(4, 6), View(4, 6).moved(translation(50, 0), 5, 5, fill=(9, 9, 9)))
    assert (canvas == 9).all()


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_quarter_turn_through_the_general_warp_is_exact(degrees: int) -> None:
    """The general path has no slicing; a turn by 90° shows that its half-pixel convention is right."""
    image = picture(16, 16)
    cosine, sine = round(np.cos(np.deg2rad(degrees))), round(np.sin(np.deg2rad(degrees)))
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    turn[:, 2] = 8 - turn[:, :2] @ [8, 8]
    turned = render(image, View(16, 16).moved(turn, 16, 16))
    assert np.array_equal(turned, np.rot90(image, -degrees // 90))
    box = transform_boxes(np.array([[0, 0, 4, 2]]), turn)[0]
    mask = np.zeros((16, 16), np.uint8)
    mask[0:2, 0:4] = 1
    rows, columns = np.nonzero(np.rot90(mask, -degrees // 90))
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_the_general_warp_agrees_with_resize_and_crop() -> None:
    """A hair of shear forces the general path; away from the border it reads what resize and slicing read."""
    image = cv2.GaussianBlur(picture(40, 60), (0, 0), 2)
    upright = View(40, 60).moved(scaling(1.5, 1.5), 60, 90).moved(translation(-10, -5), 50, 70)
    sheared = upright.moved(np.array([[1, 1e-9, 0], [0, 1, 0.0]]), 50, 70)
    difference = np.abs(render(image, upright).astype(int) - render(image, sheared))
    assert difference.max() <= 1


def test_a_sample_says_which_field_does_not_fit() -> None:
    with pytest.raises(ValueError, match="labels has 1 entries for 2 boxes"):
        sample(labels=np.array([1]))
    with pytest.raises(ValueError, match="image is"):
        sample(image=np.zeros((3, 4, 4)))


def test_an_object_whose_mask_a_crop_leaves_behind_is_dropped_and_a_crowd_is_not() -> None:
    """An L along the left and the lower edge of its box: the crop sees the empty part of the box, then one column."""
    shape = np.array([[0, 0], [4, 0], [4, 16], [20, 16], [20, 20], [0, 20]], dtype=np.float64)
    bitmap = np.zeros((20, 20), np.uint8)
    bitmap[:, :4] = bitmap[16:] = 1
    before = sample(
        image=picture(20, 30),
        boxes=np.array([[0, 0, 20, 20]] * 3, dtype=np.float32),
        labels=np.arange(3),
        crowd=np.array([False, False, True]),
        area=np.full(3, 144, dtype=np.float32),
        masks=[PolygonMask([shape]), BitmapMask(bitmap, 0, 0), BitmapMask(bitmap, 0, 0)],
        keypoints=np.zeros((3, 3, 3), dtype=np.float32),
    )
    empty = apply_view(before, View(20, 30).moved(translation(-4, 0), 16, 16))
    assert empty.labels.tolist() == [2]
    assert len(empty.masks) == len(empty.keypoints) == 1
    column = apply_view(before, View(20, 30).moved(translation(-3, 0), 16, 16))
    assert column.labels.tolist() == [0, 1, 2]
    assert [mask.bitmap(16, 16).sum() for mask in column.masks] == [16, 16, 16]


def test_an_object_that_no_crop_cuts_keeps_even_an_empty_mask() -> None:
    masks = [BitmapMask(np.zeros((1, 1), np.uint8), 0, 0), sample().masks[1]]
    assert len(apply_view(sample(masks=masks), View(20, 30).moved(scaling(2, 2), 40, 60))) == 2
