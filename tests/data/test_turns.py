"""Rotation and other affine maps, and what they make of boxes."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from toolbox.data.geometry import apply_view, moved_boxes, rotation
from toolbox.data.interfaces import Sample, View
from toolbox.data.rendering import render
from toolbox.data.turns import RandomAffine, RandomRotation, turned
from toolbox.masks import BitmapMask, PolygonMask


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(20, 200, (height, width, 3), dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sample(**changes: object) -> Sample:
    settings: dict = {
        "image": picture(),
        "boxes": np.array([[8, 6, 24, 18]], np.float32),
        "labels": np.zeros(1, np.int64),
        "crowd": np.zeros(1, bool),
        "area": np.array([192], np.float32),
    }
    return Sample(**{**settings, **changes})


@pytest.mark.parametrize("quarters", [-3, -1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(24, 32), (21, 32)])
def test_quarter_turns_that_expand_are_numpys_rot90(quarters: int, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    view = turned(View(*shape), 90.0 * quarters, expand=True, fill=(0, 0, 0))
    assert np.array_equal(render(image, view), np.rot90(image, quarters))
    mask = PolygonMask([[(2.13, 3.27), (20.41, 5.19), (9.37, 17.11)]])
    moved = mask.transformed(view.matrix).bitmap(view.height, view.width)
    assert np.array_equal(moved, np.rot90(mask.bitmap(*shape), quarters))


def test_a_quarter_turn_on_a_kept_canvas_moves_whole_pixels() -> None:
    for height, width in ((24, 32), (21, 32)):
        image = picture(height, width)
        canvas = render(image, turned(View(height, width), 90.0, expand=False, fill=(9, 9, 9)))
        upright = np.rot90(image)
        left, top = (width - height) // 2, (width - height + 1) // 2
        assert np.array_equal(canvas[:, left : left + height], upright[top : top + height])
        assert (canvas[:, :left] == 9).all()


def test_a_turn_is_pillows_counter_clockwise_about_the_centre() -> None:
    yellow = np.zeros((60, 80, 3), np.uint8)
    yellow[10:50, 20:35] = (200, 200, 0)
    smooth = np.array(PIL.Image.fromarray(yellow).resize((80, 60)))
    for angle in (17.0, -40.0, 133.0):
        ours = render(smooth, turned(View(60, 80), angle, expand=False, fill=(0, 0, 0)))
        theirs = np.array(PIL.Image.fromarray(smooth).rotate(angle, PIL.Image.Resampling.BILINEAR))
        difference = np.abs(ours.astype(int) - theirs)
        assert (difference > 20).mean() < 0.002  # OpenCV rounds positions to 1/32 pixel
        assert difference.mean() < 0.5


def test_an_expanded_canvas_holds_the_whole_turned_image() -> None:
    view = turned(View(24, 32), 30.0, expand=True, fill=(0, 0, 0))
    # 32 cos 30 + 24 sin 30 = 39.7, 32 sin 30 + 24 cos 30 = 36.8
    assert (view.height, view.width) == (37, 40)
    white = render(np.full((24, 32, 3), 255, np.uint8), view)
    assert abs(white[..., 0].sum() / 255 - 24 * 32) < 8


def test_angles_are_drawn_from_the_range_or_from_the_list() -> None:
    def angles(transform: RandomRotation) -> np.ndarray:
        views = [transform(View(24, 32), rng(seed)) for seed in range(300)]
        return np.rad2deg([np.arctan2(view.matrix[0, 1], view.matrix[0, 0]) for view in views])

    both = angles(RandomRotation(degrees=30.0))
    assert -30 <= both.min() < -27
    assert 27 < both.max() <= 30
    assert angles(RandomRotation(degrees=[5.0, 20.0])).min() >= 5
    chosen = angles(RandomRotation(degrees=[0, 90, 180], draw="choice")).round()
    assert set(np.abs(chosen)) == {0, 90, 180}
    never = RandomRotation(prob=0.0)(View(24, 32), rng())
    assert np.array_equal(never.matrix, np.eye(2, 3))


def test_a_turned_box_is_that_of_its_turned_mask() -> None:
    """A diamond turned by 45 degrees is a square as wide as its side, 17; its box turned would be 34 wide."""
    diamond = PolygonMask([[(16, 0), (28, 12), (16, 24), (4, 12)]])
    before = sample(boxes=np.array([[4, 0, 28, 24]], np.float32), masks=[diamond])
    after = apply_view(before, turned(View(24, 32), 45.0, expand=False, fill=(0, 0, 0)))
    half = 12 / np.sqrt(2)
    assert np.allclose(after.boxes, [[16 - half, 12 - half, 16 + half, 12 + half]], atol=1e-4)


def test_a_turned_bitmap_has_the_box_of_its_turned_pixels_and_an_empty_one_that_of_the_ellipse() -> None:
    matrix = rotation(45.0)
    corner = sample(masks=[BitmapMask(np.ones((1, 1), np.uint8), 8, 6)])
    points = np.array([[8, 6], [9, 6], [9, 7], [8, 7]]) @ matrix[:, :2].T
    assert np.allclose(moved_boxes(corner, matrix), [[*points.min(0), *points.max(0)]], atol=1e-4)
    empty = sample(masks=[BitmapMask(np.zeros((0, 0), np.uint8), 0, 0)])
    assert np.allclose(moved_boxes(empty, matrix), moved_boxes(sample(), matrix))


def test_without_masks_a_turned_box_is_that_of_the_turned_ellipse() -> None:
    """By its points: the ellipse with half axes 8 and 6 about (16, 12), turned by 30 degrees about the origin."""
    angle = np.linspace(0, 2 * np.pi, 100_000)
    points = np.stack([16 + 8 * np.cos(angle), 12 + 6 * np.sin(angle)], axis=1)
    turn = np.deg2rad(30)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert np.allclose(moved_boxes(sample(), rotation(30.0)), [[*points.min(0), *points.max(0)]], atol=1e-4)


def test_without_masks_a_turned_box_still_holds_its_joints_and_no_others() -> None:
    joints = np.array([[[8.0, 6.0, 2], [24.0, 18.0, 1], [30.0, 23.0, 2], [8, 18, 0]]], np.float32)
    matrix = rotation(45.0)
    box = moved_boxes(sample(keypoints=joints), matrix)[0]
    plain = moved_boxes(sample(), matrix)[0]
    points = joints[0, :2, :2] @ matrix[:, :2].T  # the third is outside the box, the fourth unlabelled
    assert np.allclose(box[:2], np.minimum(plain[:2], points.min(0)), atol=1e-4)
    assert np.allclose(box[2:], np.maximum(plain[2:], points.max(0)), atol=1e-4)
    assert not np.allclose(box, plain)


def test_scales_flips_and_quarter_turns_move_the_data_sets_own_boxes() -> None:
    loose = sample(masks=[PolygonMask([[(10, 8), (20, 8), (20, 16)]])])
    for matrix in (rotation(90.0), np.array([[-2.0, 0, 40], [0, 3.0, 1]])):
        moved = moved_boxes(loose, matrix)[0]
        corners = np.array([[8, 6], [24, 18]]) @ matrix[:, :2].T + matrix[:, 2]
        assert moved.tolist() == [*corners.min(0), *corners.max(0)]


def test_an_affine_map_turns_scales_and_shears_about_the_centre() -> None:
    fixed = RandomAffine(degrees=0.0, min_scale=1.5, max_scale=1.5)(View(24, 32), rng())
    assert np.allclose(fixed.matrix, [[1.5, 0, -8], [0, 1.5, -6]])
    for seed in range(50):
        view = RandomAffine(degrees=0.0, shear=20.0)(View(24, 32), rng(seed))
        (one, lean, _), (none, other, _) = view.matrix
        assert (one, none, other) == (1, 0, 1)
        assert abs(lean) <= np.tan(np.deg2rad(20))
        assert np.allclose(view.matrix @ [16, 12, 1], [16, 12])
        view = RandomAffine(degrees=0.0, shift=0.25)(View(24, 32), rng(seed))
        assert (np.abs(view.matrix[:, 2]) <= [8, 6]).all()
        view = RandomAffine(degrees=180.0, min_scale=0.5, max_scale=2.0)(View(24, 32), rng(seed))
        assert 0.25 <= np.linalg.det(view.matrix[:, :2]) <= 4


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="degrees is an angle or a list of angles, got \\[\\]\ndraw is"):
        RandomRotation(degrees=[], draw="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="degrees is 0 or more.*\nshear is.*\nmin_scale.*\nshift is"):
        RandomAffine(degrees=-1, shear=90, min_scale=2, shift=2)
