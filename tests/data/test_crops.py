"""Crops that look at where objects are, and transforms made of transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from toolbox.data.composition import OneOf, RandomApply, in_order
from toolbox.data.geometry import apply_view, scaling
from toolbox.data.interfaces import Sample, View
from toolbox.data.transforms import HorizontalFlip, MinIoUCrop, RandomCrop, VerticalFlip

HEIGHT, WIDTH = 100, 140


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sample(boxes: list, crowd: tuple[int, ...] = ()) -> Sample:
    count = len(boxes)
    return Sample(
        image=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.arange(count),
        crowd=np.isin(np.arange(count), crowd),
        area=np.ones(count, np.float32),
    )


def view_of(boxes: list, crowd: tuple[int, ...] = ()) -> View:
    return View(HEIGHT, WIDTH, sample=sample(boxes, crowd))


def crop_of(view: View) -> list[float]:
    left, top = -view.matrix[:, 2]
    return [left, top, left + view.width, top + view.height]


@pytest.mark.parametrize("least", [0.3, 0.7])
def test_a_min_iou_crop_overlaps_an_object_enough_whose_centre_it_holds(least: float) -> None:
    boxes = [[10, 10, 60, 80], [100, 50, 130, 90]]
    shapes, changed = set(), 0
    for seed in range(150):
        view = MinIoUCrop(overlaps=(least,))(view_of(boxes), rng(seed))
        crop = crop_of(view)
        if crop == [0, 0, WIDTH, HEIGHT]:
            continue  # none was found
        changed += 1
        inside = [crop[0] < (b[0] + b[2]) / 2 < crop[2] and crop[1] < (b[1] + b[3]) / 2 < crop[3] for b in boxes]
        ious = box_iou(torch.tensor(boxes, dtype=torch.float64), torch.tensor([crop], dtype=torch.float64))[:, 0]
        assert any(ok and iou >= least for ok, iou in zip(inside, ious.tolist(), strict=True))
        assert 0 <= crop[0] < crop[2] <= WIDTH
        assert 0 <= crop[1] < crop[3] <= HEIGHT
        assert 0.5 <= view.width / view.height <= 2
        assert view.width >= 0.3 * WIDTH - 1
        assert view.height >= 0.3 * HEIGHT - 1
        shapes.add((view.width, view.height))
    assert changed > 75
    assert len(shapes) > 50


def test_an_overlap_of_one_and_an_image_without_objects_stay_whole() -> None:
    for view in (view_of([]), view_of([[10, 10, 60, 80]], crowd=(0,)), View(HEIGHT, WIDTH)):
        assert MinIoUCrop()(view, rng()) is view
    view = view_of([[10, 10, 60, 80]])
    assert MinIoUCrop(overlaps=(1.0,))(view, rng()) is view
    assert MinIoUCrop(prob=0.0)(view, rng()) is view


def test_a_crop_looks_at_where_objects_are_on_the_view_not_in_the_file() -> None:
    """Everything is shrunk to a tenth, into the upper left corner of a larger canvas."""
    view = view_of([[0, 0, 140, 100]]).moved(scaling(0.1, 0.1), 400, 400)
    for seed in range(40):
        left, top, right, bottom = crop_of(RandomCrop(height=20, width=20, on_object=True)(view, rng(seed)))
        left, top, right, bottom = (int(round(side)) for side in (left, top, right, bottom))
        assert left <= 7 < right
        assert top <= 5 < bottom


def test_a_crop_on_an_object_holds_the_centre_of_one_at_any_place_of_the_crop() -> None:
    boxes = [[10, 10, 16, 16], [120, 80, 130, 90], [60, 40, 70, 50]]
    crop = RandomCrop(height=30, width=40, on_object=True)
    held, places = [], set()
    for seed in range(600):
        view = crop(view_of(boxes, crowd=(2,)), rng(seed))
        assert (view.height, view.width) == (30, 40)
        x1, y1, x2, y2 = crop_of(view)
        assert x1 >= 0 and y1 >= 0 and x2 <= WIDTH and y2 <= HEIGHT  # noqa: PT018
        labels = apply_view(view.sample, view, min_visible=0.25).labels.tolist()
        held.append(labels[0])
        if labels[0] == 1:
            places.add((x1, y1))
        plain = RandomCrop(height=30, width=40)(view_of(boxes), rng(seed))
        assert crop_of(plain) == crop_of(RandomCrop(height=30, width=40, on_object=True)(view_of([]), rng(seed)))
    assert 200 < held.count(0) < 400
    assert {x for x, _ in places} == set(range(125 - 39, 101))  # the centre's pixel 125 in the last … first column
    assert {y for _, y in places} == set(range(85 - 29, 71))


def test_a_crop_on_an_object_pads_an_image_that_is_smaller() -> None:
    view = RandomCrop(height=200, width=200, on_object=True)(view_of([[10, 10, 16, 16]]), rng())
    assert crop_of(view) == [0, 0, 200, 200]


def test_random_apply_does_all_in_order_or_nothing() -> None:
    both = RandomApply(transforms=[HorizontalFlip(prob=1.0), RandomCrop(height=10, width=10)], prob=0.3)
    views = [both(View(20, 30), rng(seed)) for seed in range(500)]
    done = [view for view in views if (view.height, view.width) == (10, 10)]
    assert 110 < len(done) < 190
    assert all(view.matrix[0, 0] == -1 for view in done)
    assert all(np.array_equal(view.matrix, np.eye(2, 3)) for view in views if view.height == 20)


def test_one_of_draws_by_its_weights() -> None:
    one = OneOf(transforms=[HorizontalFlip(prob=1.0), VerticalFlip(prob=1.0)], weights=[1.0, 3.0])
    signs = [(view.matrix[0, 0], view.matrix[1, 1]) for view in (one(View(20, 30), rng(seed)) for seed in range(400))]
    assert set(signs) == {(-1, 1), (1, -1)}
    assert 70 < signs.count((-1, 1)) < 130


def test_another_image_goes_through_the_transforms_before_also_inside_a_nested_list() -> None:
    class Asks:
        def __init__(self) -> None:
            self.got: list[View] = []

        def __call__(self, view: View, generator: np.random.Generator) -> View:
            self.got.append(view.another(generator))
            return view

    asks = Asks()
    crops = [RandomCrop(height=12, width=14), RandomCrop(height=7, width=9)]
    nested = RandomApply(transforms=[crops[1], asks, VerticalFlip(prob=1.0)], prob=1.0)
    start = View(HEIGHT, WIDTH, another=lambda generator: view_of([]))
    view = in_order(start, [crops[0], nested, HorizontalFlip(prob=1.0)], rng())
    (other,) = asks.got
    assert (other.height, other.width) == (7, 9)
    assert other.another is None
    assert np.linalg.det(other.matrix[:, :2]) == 1  # neither flip stands before
    assert view.another is start.another


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="overlaps are IoUs.*\nmin_scale.*\nmin_ratio.*\ntrials"):
        MinIoUCrop(overlaps=(2.0,), min_scale=0, min_ratio=3, trials=0)
    with pytest.raises(ValueError, match="transforms is a list of one transform or more"):
        RandomApply(transforms=[])
    with pytest.raises(ValueError, match="weights are one number for each of the 1 transforms"):
        OneOf(transforms=[HorizontalFlip()], weights=[1.0, 2.0])
