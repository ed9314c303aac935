"""What is asked of data sets and transforms."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch

from toolbox.data.geometry import apply_view
from toolbox.data.interfaces import Sample, View, channels_of
from toolbox.data.rendering import render
from toolbox.masks import PolygonMask
from toolbox.structures import Skeleton
from toolbox.testing.case import SKELETON, Case, Check, check, expect

_LOOKED_AT = 8  # images of a data set


def _indices(dataset: Any) -> list[int]:
    """The first, the last and some between."""
    return sorted({round(x) for x in np.linspace(0, len(dataset) - 1, _LOOKED_AT)})


def _same(one: Sample, other: Sample) -> bool:
    arrays = ("image", "boxes", "labels", "crowd", "area", "keypoints")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)  # None equals None
    return equal and one.image_id == other.image_id


@check(
    "classes",
    "it has images, class names, as many category ids, a skeleton or None",
    "see Dataset in toolbox/data/interfaces.py",
)
def _classes(case: Case) -> None:
    data = case.make()
    expect(len(data) > 0, "it has no images; give settings with which it has")
    names, ids = data.classes, data.category_ids
    expect(isinstance(names, tuple) and bool(names) and all(isinstance(n, str) for n in names), f"classes {names!r}")
    expect(len(set(names)) == len(names), f"a class twice: {names}")
    expect(len(ids) == len(names) == len(set(ids)), f"category ids {ids} for the classes {names}")
    expect(data.skeleton is None or isinstance(data.skeleton, Skeleton), f"skeleton is {data.skeleton!r}")


@check(
    "samples",
    "load(i) is a Sample: uint8 pixels of the size that size(i) says, float32 boxes x1 y1 x2 y2 inside the image, "
    "labels 0 … K-1, a mask and a row of joints per object where there are any",
    "see Sample in toolbox/data/interfaces.py; clip boxes and drop those without area",
)
def _samples(case: Case) -> None:
    data = case.make()
    for index in _indices(data):
        sample, at = data.load(index), f"load({index})"
        expect(isinstance(sample, Sample), f"{at} is {type(sample).__name__}")
        height, width, channels = sample.image.shape
        said = tuple(data.size(index))
        expect(said == (height, width), f"size({index}) is {said}, the image (height, width) is {(height, width)}")
        expect(channels == channels_of(data), f"{at} has {channels} channels, the data set says {channels_of(data)}")
        boxes, labels = sample.boxes, sample.labels
        count = len(boxes)
        expect(boxes.dtype == np.float32 and boxes.shape == (count, 4), f"{at}: boxes {boxes.dtype} {boxes.shape}")
        x1, y1, x2, y2 = boxes.T
        wrong = (x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height) | (x2 <= x1) | (y2 <= y1)
        expect(not wrong.any(), f"{at}: boxes {boxes[wrong].tolist()} in an image of {width} × {height}")
        known = (labels >= 0) & (labels < len(data.classes))
        expect(labels.dtype == np.int64 and bool(known.all()), f"{at}: labels {labels.dtype} {labels.tolist()}")
        expect(sample.crowd.dtype == bool, f"{at}: crowd is {sample.crowd.dtype}")
        expect(bool(np.all(sample.area[~sample.crowd] > 0)), f"{at}: areas {sample.area.tolist()}")
        if data.skeleton is not None:
            wanted = (count, len(data.skeleton.names), 3)
            shape = None if sample.keypoints is None else sample.keypoints.shape
            expect(shape == wanted, f"{at}: keypoints {shape} for a skeleton that gives {wanted}")


@check(
    "repeatable",
    "load(i) is the same each time, in any order, and whatever the state of the random generators",
    "seed a generator of its own: np.random.default_rng([self.seed, index])",
)
def _dataset_repeatable(case: Case) -> None:
    data = case.make()
    indices = _indices(data)
    first = {index: data.load(index) for index in indices}
    np.random.seed(7)
    random.seed(7)
    torch.manual_seed(7)
    for index in reversed(indices):
        expect(_same(first[index], data.load(index)), f"load({index}) differs from the first time")


@check(
    "pickles",
    "it is copied to loader workers: a pickled copy loads the same",
    "open files and databases in load, not in the constructor; no lambdas as attributes",
)
def _dataset_pickles(case: Case) -> None:
    data = case.make()
    copy = pickle.loads(pickle.dumps(data))
    expect(len(copy) == len(data) and _same(data.load(0), copy.load(0)), "the copy loads other samples")


@check(
    "ground truth",
    "ground_truth() is a COCO dict with every image, and with the objects that load(i) gives, by their original ids",
    "see toolbox.data.ground_truth.coco_ground_truth",
)
def _ground_truth(case: Case) -> None:
    data = case.make()
    truth = data.ground_truth()
    lacking = {"images", "annotations", "categories"} - truth.keys()
    expect(not lacking, f"no {', '.join(sorted(lacking))}")
    categories = [category["id"] for category in truth["categories"]]
    expect(set(data.category_ids) <= set(categories), f"categories {categories}, category_ids {data.category_ids}")
    images = {image["id"]: image for image in truth["images"]}
    expect(len(images) == len(data), f"{len(images)} images, the data set has {len(data)}")
    strange = {a["image_id"] for a in truth["annotations"]} - images.keys()
    expect(not strange, f"annotations of images that are not listed: {sorted(strange)[:3]}")
    for index in _indices(data):
        sample = data.load(index)
        expect(sample.image_id in images, f"load({index}) has image_id {sample.image_id}, which no image has")
        said = (images[sample.image_id]["height"], images[sample.image_id]["width"])
        size = sample.image.shape[:2]
        expect(said == size, f"image {sample.image_id} is {said}, its pixels are {size}")
        known = sorted(a["category_id"] for a in truth["annotations"] if a["image_id"] == sample.image_id)
        loaded = sorted(data.category_ids[label] for label in sample.labels)
        expect(known == loaded, f"image {sample.image_id} has the categories {known}, load({index}) gives {loaded}")


@check(
    "objects",
    "objects stay on the canvas: boxes with an area inside it, joints inside it, a mask each",
    "move by view.moved, and take objects away by nothing else than the canvas",
)
def _objects(case: Case) -> None:
    transform = case.make()
    for seed in range(8):
        seen = _seen(transform, seed)
        height, width = seen.image.shape[:2]
        x1, y1, x2, y2 = seen.boxes.T
        wrong = (x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height) | (x2 <= x1) | (y2 <= y1)
        expect(not wrong.any(), f"boxes {seen.boxes[wrong].tolist()} on a canvas of {width} × {height}")
        assert seen.keypoints is not None
        off = (seen.keypoints[..., :2] > (width, height)).any(-1) & (seen.keypoints[..., 2] > 0)
        expect(not off.any(), f"joints {seen.keypoints[off].tolist()} on a canvas of {width} × {height}")
        expect(seen.masks is not None and len(seen.masks) == len(seen.boxes), "masks and boxes differ in number")


def _scene() -> tuple[Sample, View]:
    """An image with two objects and a crowd, its view, and through that another image."""
    sample = _sample(0)
    return sample, View(40, 60, sample=sample, another=_another)


def _another(rng: np.random.Generator) -> View:
    return View(40, 60, sample=_sample(int(rng.integers(1, 9))))


def _sample(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    boxes = np.array([[4, 6, 30, 24], [20, 10, 50, 38], [40, 0, 60, 12]], np.float32)
    boxes = boxes + rng.integers(-4, 5, size=(3, 1)).astype(np.float32).clip(-boxes.min(axis=1, keepdims=True))
    keypoints = np.concatenate(
        [rng.uniform(boxes[:, None, :2], boxes[:, None, 2:], (3, 3, 2)), np.full((3, 3, 1), 2)], -1
    )
    return Sample(
        image=rng.integers(256, size=(40, 60, 3), dtype=np.uint8),
        boxes=boxes,
        labels=np.arange(3),
        crowd=np.array([False, False, True]),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        masks=[PolygonMask([[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]]) for x1, y1, x2, y2 in boxes.tolist()],
        keypoints=keypoints.astype(np.float32),
        image_id=seed,
    )


def _seen(transform: Any, seed: int) -> Sample:
    """What a transform makes of the scene."""
    sample, view = _scene()
    return apply_view(sample, transform(view, np.random.default_rng(seed)), skeleton=SKELETON, min_visible=0)


@check(
    "views",
    "a view comes back whose map can be inverted, on a canvas of a pixel or more; its edits keep uint8 and shape",
    "return view.moved(matrix, height, width), view.edited(edit), or view; view.sample and view.another may be None",
)
def _views(case: Case) -> None:
    transform = case.make()
    for seed in range(16):
        sample, view = _scene()
        moved = transform(view, np.random.default_rng(seed))
        expect(isinstance(moved, View), f"{type(moved).__name__} comes back, not View")
        expect(moved.height >= 1 and moved.width >= 1, f"a canvas of {moved.height} × {moved.width}")
        matrix = np.asarray(moved.matrix)
        expect(matrix.shape == (2, 3) and bool(np.isfinite(matrix).all()), f"matrix {matrix.tolist()}")
        expect(abs(np.linalg.det(matrix[:, :2])) > 1e-9, f"a map without inverse: {matrix.tolist()}")
        canvas = render(sample.image, moved)
        wanted = (moved.height, moved.width, 3)
        expect(canvas.dtype == np.uint8 and canvas.shape == wanted, f"edits give {canvas.dtype} {canvas.shape}")
        alone = transform(View(40, 60), np.random.default_rng(seed))
        expect(isinstance(alone, View), "a view that knows neither its image nor another one is not taken")


@check(
    "repeatable",
    "what it does depends on the generator it is given alone",
    "draw from rng; neither np.random nor torch's or Python's global generators",
)
def _transform_repeatable(case: Case) -> None:
    transform = case.make()
    for seed in range(8):
        shown = []
        for other in (1, 2):
            np.random.seed(other)
            random.seed(other)
            torch.manual_seed(other)
            shown.append(_seen(transform, seed))
        expect(_same(shown[0], shown[1]), f"two calls with np.random.default_rng({seed}) differ")


@check(
    "inputs unchanged",
    "the view that comes in, its matrix and the pixels stay as they were",
    "view.moved makes a new view; an edit copies before it writes",
)
def _transform_inputs(case: Case) -> None:
    transform = case.make()
    for seed in range(8):
        sample, view = _scene()
        moved = transform(view, np.random.default_rng(seed))
        expect(np.array_equal(view.matrix, np.eye(2, 3)), "the matrix of the view that came in was changed")
        expect(_same(sample, _sample(0)), "the sample that the view shows was changed")
        pixels = np.random.default_rng(1).integers(256, size=(moved.height, moved.width, 3), dtype=np.uint8)
        for edit in moved.edits:
            kept = pixels.copy()
            after = edit(pixels)
            expect(np.array_equal(kept, pixels), "an edit writes into the pixels that it is given")
            pixels = after


@check(
    "pickles",
    "it is copied to loader workers: a pickled copy, and its edits, do the same",
    "functools.partial of a module's function instead of a lambda or an inner function",
)
def _transform_pickles(case: Case) -> None:
    transform = case.make()
    copy = pickle.loads(pickle.dumps(transform))
    for seed in range(8):
        expect(_same(_seen(transform, seed), _seen(copy, seed)), f"the copy does other things, seed {seed}")


DATASET_CHECKS: tuple[Check, ...] = (_classes, _samples, _dataset_repeatable, _dataset_pickles, _ground_truth)
TRANSFORM_CHECKS: tuple[Check, ...] = (_views, _objects, _transform_repeatable, _transform_inputs, _transform_pickles)
