"""The synthetic data set."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pycocotools.coco import COCO

from toolbox.data.shape_painting import LOOKS, OUTLINES, SKELETON, Placed
from toolbox.data.shapes import Shapes


@pytest.mark.parametrize("difficulty", list(LOOKS))
def test_an_image_depends_on_seed_and_index_alone(difficulty: str) -> None:
    first, again = (Shapes(seed=5, difficulty=difficulty) for _ in range(2))
    again.load(3)
    a, b = first.load(7), again.load(7)
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.boxes, b.boxes)
    assert not np.array_equal(a.image, first.load(8).image)
    assert not np.array_equal(a.image, Shapes(seed=6, difficulty=difficulty).load(7).image)


@pytest.mark.parametrize("difficulty", list(LOOKS))
def test_boxes_and_areas_are_those_of_the_visible_pixels_and_masks_are_disjoint(difficulty: str) -> None:
    dataset = Shapes(difficulty=difficulty, height=96, width=160, objects=(4, 8))
    for index in range(10):
        sample = dataset.load(index)
        total = np.zeros((96, 160), dtype=int)
        for mask, box, area in zip(sample.masks, sample.boxes, sample.area, strict=True):
            bitmap = mask.bitmap(96, 160)
            rows, columns = np.nonzero(bitmap)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == bitmap.sum()
            total += bitmap
        assert total.max() <= 1


def test_ground_truth_is_what_pycocotools_reads_back() -> None:
    dataset = Shapes(length=8, keypoints=True)
    reference = COCO()
    reference.dataset = dataset.ground_truth()
    reference.createIndex()
    assert [category["name"] for category in reference.loadCats(reference.getCatIds())] == list(dataset.classes)
    assert len(reference.getImgIds()) == 8
    for index in range(8):
        sample = dataset.load(index)
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=[sample.image_id]))
        assert len(annotations) == len(sample)
        for row, annotation in enumerate(annotations):
            assert np.array_equal(reference.annToMask(annotation), sample.masks[row].bitmap(128, 128))
            x, y, w, h = annotation["bbox"]
            assert [x, y, x + w, y + h] == sample.boxes[row].tolist()
            assert annotation["category_id"] == dataset.category_ids[sample.labels[row]]
            assert np.allclose(np.reshape(annotation["keypoints"], (-1, 3)), sample.keypoints[row])


def test_hidden_shapes_are_no_objects() -> None:
    """In crowded images some of the painted shapes are covered, and each that counts shows 30 % of its outline."""
    smallest_area = {name: Placed.at(name, (0, 0), 0.10 * 128 * r, 0, 128, 128).area for name, r in _radii().items()}
    counted = 0
    dataset = Shapes(length=20, objects=(12, 12))
    for index in range(20):
        sample = dataset.load(index)
        counted += len(sample)
        for label, area in zip(sample.labels, sample.area, strict=True):
            assert area >= 0.3 * smallest_area[dataset.classes[label]] - 1
    assert counted < 12 * 20


def _radii() -> dict[str, float]:
    from toolbox.data.shape_painting import RADIUS

    return RADIUS


def test_mirroring_a_shape_exchanges_left_and_right_only() -> None:
    for name in OUTLINES:
        shape = Placed.at(name, (50, 50), 20, 0.0, 100, 100)
        mirrored = shape.joints * [1, -1] + [0, 100]  # about the axis through the tip
        assert np.allclose(mirrored[[0, 2, 1, 3]], shape.joints)
        outline = {tuple(point) for point in shape.outline.round(6).tolist()}
        assert {tuple(point) for point in (shape.outline * [1, -1] + [0, 100]).round(6).tolist()} == outline
    assert SKELETON.pairs == ((1, 2),)


def test_a_turned_square_has_the_joints_of_geometry() -> None:
    shape = Placed.at("square", (50, 40), 10, np.pi / 2, 100, 100)  # its tip looks down
    assert shape.joints.round(6).tolist() == [[50, 50], [60, 40], [40, 40], [50, 30]]
    assert shape.area == pytest.approx(200)
    assert shape.window == (40, 30, 60, 50)


@pytest.mark.parametrize("name", ["cross", "arrow", "horseshoe", "moon"])
def test_thin_shapes_leave_most_of_their_box_to_others(name: str) -> None:
    outline = Placed.at(name, (50, 50), 40, 0.0, 100, 100).outline
    shape = Placed.at(name, (50, 50), 40, 0.0, 100, 100)
    width, height = outline.max(axis=0) - outline.min(axis=0)
    assert shape.area < 0.5 * width * height
    assert shape.covers(shape.outline).sum() == pytest.approx(shape.area, rel=0.02)  # the outline does not cross itself


def test_a_cross_has_the_area_of_its_two_bars() -> None:
    shape = Placed.at("cross", (500, 500), 100, 0.0, 1000, 1000)
    assert shape.area == pytest.approx(200 * 40 + 196 * 40 - 40 * 40)


def test_joints_off_the_image_are_unlabelled_and_covered_ones_are_hidden() -> None:
    shape = Placed.at("square", (5, 40), 10, 0.0, 100, 100)
    owner = np.zeros((100, 100), dtype=np.uint8)
    owner[35:60, 0:30] = 1
    owner[25:34, 0:30] = 2
    # tip (15, 40) is seen, left (5, 30) is under shape 2, right (5, 50) is seen, tail (−5, 40) is outside
    assert shape.visible_joints(owner, 1).tolist() == [[15, 40, 2], [5, 30, 1], [5, 50, 2], [0, 0, 0]]


def test_chosen_classes_and_sizes() -> None:
    dataset = Shapes(length=3, height=48, width=200, classes=["star", "circle"], objects=(0, 0))
    assert dataset.classes == ("star", "circle")
    assert Shapes().classes == ("circle", "square", "triangle", "star")
    assert dataset.size(0) == (48, 200)
    sample = dataset.load(0)
    assert sample.image.shape == (48, 200, 3)
    assert sample.masks == []
    assert sample.keypoints is None
    with pytest.raises(IndexError):
        dataset.load(3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"classes": ["sqare"]}, "no shape 'sqare'; did you mean 'square'"),
        ({"length": 0}, "1 image or more"),
        ({"objects": (3, 2)}, "the fewest and the most"),
        ({"difficulty": "trivial"}, "easy, medium, hard"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Shapes(**settings)


def test_an_image_takes_a_few_milliseconds() -> None:
    dataset = Shapes()
    dataset.load(0)
    start = time.process_time()
    for index in range(100):
        dataset.load(index)
    assert (time.process_time() - start) / 100 < 0.02  # 2 ms on an idle core; others may be using it
