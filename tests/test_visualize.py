"""Drawing: exact extents, untouched surroundings, readable labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from toolbox.data.interfaces import Sample
from toolbox.masks import BitmapMask, PolygonMask
from toolbox.structures import Detections, Skeleton
from toolbox.visualize import (
    CAPTION_HEIGHT,
    SIDE_COLOURS,
    captioned,
    colour_of,
    draw_detections,
    draw_sample,
    grid,
    picture_scale,
)

GREY = 120


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def encode(bitmap: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))


def detections(boxes: list[list[float]], size: tuple[int, int], **fields) -> Detections:
    count = len(boxes)
    return Detections(
        image_size=size,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=fields.pop("scores", torch.full((count,), 0.9)),
        labels=fields.pop("labels", torch.zeros(count, dtype=torch.int64)),
        **fields,
    )


def test_only_pixels_inside_the_box_change_when_labels_are_off() -> None:
    bitmap = np.zeros((90, 120), bool)
    bitmap[22:68, 35:79] = True
    found = detections([[30.4, 20.2, 80.0, 70.0]], (90, 120), masks=[encode(bitmap)])
    picture = draw_detections(grey(90, 120), found, ["cell"], labels=False)
    changed = (picture != GREY).any(axis=2)
    outside = np.ones((90, 120), bool)
    outside[20:70, 30:80] = False
    assert not changed[outside].any()
    assert changed[bitmap].all()


def test_the_box_line_is_on_the_outermost_pixels_of_the_box() -> None:
    picture = draw_detections(grey(40, 40), detections([[10, 5, 30, 25]], (40, 40)), ["a", "b"], labels=False)
    assert tuple(picture[5, 10]) == tuple(picture[24, 29]) == colour_of(0)
    assert tuple(picture[15, 15]) == (GREY,) * 3


def test_objects_below_the_threshold_are_not_drawn() -> None:
    found = detections([[5, 5, 15, 15], [20, 20, 35, 35]], (40, 40), scores=torch.tensor([0.6, 0.4]))
    picture = draw_detections(grey(40, 40), found, ["a"], threshold=0.5, labels=False)
    assert (picture[5:15, 5:15] != GREY).any() and (picture[20:35, 20:35] == GREY).all()


def test_the_input_image_stays_as_it_was() -> None:
    image = grey(40, 40)
    draw_detections(image, detections([[5, 5, 30, 30]], (40, 40)), ["a"])
    assert (image == GREY).all()


def test_labels_never_cover_each_other() -> None:
    boxes = [[20.0 + i, 30.0 + i, 90.0 + i, 80.0 + i] for i in range(6)]
    one = draw_detections(grey(120, 200), detections(boxes[:1], (120, 200)), ["car", "bus"])
    every = draw_detections(grey(120, 200), detections(boxes, (120, 200)), ["car", "bus"])
    plate = (one[:30] != GREY).any(axis=2)  # the first label stands above its box
    assert plate.any() and np.array_equal(every[:30][plate], one[:30][plate])


def test_boxes_beyond_the_image_and_empty_masks_are_drawn_without_error() -> None:
    found = detections([[-20, -20, 500, 500], [39.9, 39.9, 40, 40]], (40, 40), masks=[encode(np.zeros((40, 40)))] * 2)
    assert draw_detections(grey(40, 40), found, ["a"]).shape == (40, 40, 3)


def test_no_detections_give_the_image_itself() -> None:
    assert (draw_detections(grey(20, 30), detections([], (20, 30)), ["a"]) == GREY).all()


def test_a_class_keeps_its_colour_and_a_single_class_has_one_colour_per_object() -> None:
    found = detections([[0, 0, 10, 10], [20, 20, 30, 30]], (40, 40))
    many = draw_detections(grey(40, 40), found, ["a", "b"], labels=False)
    single = draw_detections(grey(40, 40), found, ["a"], labels=False)
    assert tuple(many[0, 0]) == tuple(many[20, 20])
    assert tuple(single[0, 0]) != tuple(single[20, 20])
    assert len({colour_of(i) for i in range(100)}) == 100


def test_limbs_join_only_joints_that_are_there() -> None:
    skeleton = Skeleton(names=("head", "hip", "foot"), limbs=((0, 1), (1, 2)))
    keypoints = torch.tensor([[[20.0, 20.0, 1.0], [20.0, 60.0, 1.0], [80.0, 60.0, 0.0]]])
    found = detections([[5, 5, 95, 95]], (100, 100), keypoints=keypoints)
    picture = draw_detections(grey(100, 100), found, ["bee", "ant"], skeleton=skeleton, labels=False)
    assert tuple(picture[40, 20]) == colour_of(0)
    assert tuple(picture[60, 50]) == (GREY,) * 3


def test_left_limbs_right_limbs_and_those_between_differ_in_colour() -> None:
    names = ("nose", "left_hand", "right_hand", "left_foot", "right_foot", "tail")
    limbs = ((0, 1), (0, 2), (1, 3), (2, 4), (3, 4), (0, 5))
    skeleton = Skeleton(names, pairs=((2, 1), (3, 4)), limbs=limbs)  # the names say which of a pair is the left one
    places = [[50, 10], [20, 40], [80, 40], [20, 90], [80, 90], [50, 60]]
    found = detections([[1, 1, 99, 99]], (100, 100), keypoints=torch.tensor([[[*p, 5.0] for p in places]]))
    picture = draw_detections(grey(100, 100), found, ["bee", "ant"], skeleton=skeleton, labels=False)
    left, right, middle = SIDE_COLOURS["left"], SIDE_COLOURS["right"], colour_of(0)
    assert len({left, right, middle}) == 3
    for (x, y), colour in (((20, 65), left), ((80, 65), right), ((50, 90), middle), ((50, 35), middle)):
        assert tuple(picture[y, x]) == colour
    for (x, y), colour in zip(places, (middle, left, right, left, right, middle), strict=True):
        assert tuple(picture[y, x]) == colour


def test_joints_at_or_below_the_joint_threshold_are_hidden_with_their_limbs() -> None:
    skeleton = Skeleton(("a", "b", "c"), limbs=((0, 1), (1, 2)))
    keypoints = torch.tensor([[[20.0, 20, 3.1], [60, 20, 2.9], [60, 80, 3.0]]])
    found = detections([[5, 5, 95, 95]], (100, 100), keypoints=keypoints)
    picture = draw_detections(grey(100, 100), found, ["x"], skeleton=skeleton, joint_threshold=3.0, labels=False)
    plain = draw_detections(grey(100, 100), detections([[5, 5, 95, 95]], (100, 100)), ["x"], labels=False)
    changed = np.argwhere((picture != plain).any(axis=2))
    assert len(changed) and (abs(changed - [20, 20]) <= 4).all()
    assert keypoints[0, 0, 2] == torch.tensor(3.1)


def test_ground_truth_is_drawn_from_polygons_and_bitmaps_with_crowds_marked() -> None:
    bitmap = np.zeros((60, 80), np.uint8)
    bitmap[30:50, 40:70] = 1
    sample = Sample(
        image=grey(60, 80),
        boxes=np.array([[10, 10, 30, 25], [40, 30, 70, 50]], np.float32),
        labels=np.array([0, 1]),
        crowd=np.array([False, True]),
        area=np.array([300, 600], np.float32),
        masks=[PolygonMask([[(10, 10), (30, 10), (30, 25), (10, 25)]]), BitmapMask.from_rle(encode(bitmap))],
    )
    picture = draw_sample(sample, ["cell", "clump"], labels=False)
    changed = (picture != GREY).any(axis=2)
    expected = bitmap.astype(bool)
    expected[10:25, 10:30] = True
    assert np.array_equal(changed, expected)
    labelled = draw_sample(sample, ["cell", "clump"])
    assert (labelled != picture).any()


def test_truth_of_a_single_class_has_no_labels_but_on_crowds() -> None:
    def drawn(classes: list[str], crowd: bool, labels: bool) -> np.ndarray:
        sample = Sample(
            image=grey(60, 80),
            boxes=np.array([[10, 30, 30, 45]], np.float32),
            labels=np.array([0]),
            crowd=np.array([crowd]),
            area=np.array([300], np.float32),
        )
        return draw_sample(sample, classes, labels=labels)

    assert np.array_equal(drawn(["cell"], False, True), drawn(["cell"], False, False))
    assert not np.array_equal(drawn(["cell"], True, True), drawn(["cell"], True, False))
    assert not np.array_equal(drawn(["cell", "dust"], False, True), drawn(["cell", "dust"], False, False))


def test_a_caption_stands_above_the_picture_and_leaves_it_alone() -> None:
    picture = captioned(grey(20, 60), "annotated, and wider than the picture")
    assert picture.shape == (20 + CAPTION_HEIGHT, 60, 3)
    assert (picture[CAPTION_HEIGHT:] == GREY).all() and picture[:CAPTION_HEIGHT].max() > 200


def test_scale_enlarges_boxes_and_masks_with_the_picture() -> None:
    bitmap = np.zeros((20, 20), bool)
    bitmap[5:10, 5:10] = True
    found = detections([[5, 5, 10, 10]], (20, 20), masks=[encode(bitmap)])
    picture = draw_detections(grey(20, 20), found, ["a"], labels=False, scale=3)
    changed = np.argwhere((picture != GREY).any(axis=2))
    assert picture.shape == (60, 60, 3)
    assert changed.min(axis=0).tolist() == [15, 15] and changed.max(axis=0).tolist() == [29, 29]


def test_detections_of_another_image_are_refused() -> None:
    with pytest.raises(ValueError, match="image is 20 x 30, its detections are for 40 x 30"):
        draw_detections(grey(20, 30), detections([], (40, 30)), ["a"])


def test_grid_lays_out_rows_of_equal_cells() -> None:
    white = [np.full((h, w, 3), 255, np.uint8) for h, w in ((10, 20), (6, 8), (10, 4))]
    sheet = grid(white, 2, gap=2)
    assert sheet.shape == (22, 42, 3)
    assert (sheet[:10, :20] == 255).all() and (sheet[:6, 22:30] == 255).all() and (sheet[12:, :4] == 255).all()
    assert int((sheet == 255).all(axis=2).sum()) == 10 * 20 + 6 * 8 + 10 * 4


def test_picture_scale_enlarges_small_images_only() -> None:
    assert [picture_scale(128, 160), picture_scale(800, 600), picture_scale(4, 1000)] == [4, 1, 2]
