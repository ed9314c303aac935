"""Copy-paste: images equal np.where, masks equal boolean algebra on bitmaps, what is not touched stays what it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from toolbox.data.batching import Key
from toolbox.data.copy_paste import CopyPaste
from toolbox.data.geometry import apply_view, horizontal_flip, scaling, translation
from toolbox.data.interfaces import Layer, Sample, View
from toolbox.data.loader import training_loader
from toolbox.data.paste import paste
from toolbox.data.photometry import RandomInvert
from toolbox.data.resize import Resize
from toolbox.data.shapes import Shapes
from toolbox.data.transforms import HorizontalFlip, ScaleJitter
from toolbox.errors import DataError
from toolbox.masks import BitmapMask, PolygonMask

HEIGHT, WIDTH = 12, 16


def rectangle(x1: float, y1: float, x2: float, y2: float) -> PolygonMask:
    return PolygonMask([[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]])


def without_masks(sample: Sample) -> Sample:
    return replace(sample, masks=None)


def sample(masks: list, *, seed: int = 0, crowd: tuple[int, ...] = (), **changes: Any) -> Sample:
    """Objects with these masks; their boxes are the masks' own, their areas the masks' pixels."""
    count = len(masks)
    settings = {
        "image": np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        "boxes": np.array([mask.box() for mask in masks], np.float32).reshape(-1, 4),
        "labels": np.arange(count) + 10 * seed,
        "crowd": np.isin(np.arange(count), crowd),
        "area": np.array([mask.bitmap(HEIGHT, WIDTH).sum() for mask in masks], np.float32),
        "masks": masks,
        "image_id": seed,
    }
    return Sample(**{**settings, **changes})


def layer(**settings: float) -> Layer:
    return Layer(View(HEIGHT, WIDTH), **settings)


def bitmaps(seen: Sample) -> list[np.ndarray]:
    return [mask.bitmap(HEIGHT, WIDTH) for mask in seen.masks]


def test_pixels_masks_boxes_and_areas_after_a_paste_by_hand() -> None:
    """A 6 × 4 object loses its right third, one beside it nothing; the pasted one comes last."""
    below = sample([rectangle(2, 3, 8, 7), rectangle(11, 8, 15, 11)])
    above = sample([rectangle(6, 2, 10, 9)], seed=1)
    seen = paste(below, above, layer())
    expected = below.image.copy()
    expected[2:9, 6:10] = above.image[2:9, 6:10]
    assert np.array_equal(seen.image, expected)
    assert seen.boxes.tolist() == [[2, 3, 6, 7], [11, 8, 15, 11], [6, 2, 10, 9]]
    assert seen.area.tolist() == [16, 12, 28]
    assert seen.labels.tolist() == [0, 1, 10]
    assert isinstance(seen.masks[0], BitmapMask)
    assert seen.masks[0].patch.tolist() == [[1, 1, 1, 1]] * 4
    assert (seen.masks[0].x, seen.masks[0].y) == (2, 3)
    assert seen.masks[1] is below.masks[1]
    assert seen.masks[2] is above.masks[0]
    assert seen.image_id == below.image_id


def test_masks_are_boolean_algebra_for_random_polygons_and_bitmaps() -> None:
    touched = removed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        masks = []
        for _ in range(6):
            if rng.random() < 0.5:
                points = rng.uniform(-2, 18, (int(rng.integers(3, 7)), 2))
                masks.append(PolygonMask([points]))
            else:
                patch = (rng.random((int(rng.integers(1, 6)), int(rng.integers(1, 6)))) < 0.7).astype(np.uint8)
                masks.append(BitmapMask(patch, int(rng.integers(-2, 14)), int(rng.integers(-2, 10))))
        masks = [mask for mask in masks if mask.bitmap(HEIGHT, WIDTH).any()]
        below, above = sample(masks[:3]), sample(masks[3:], seed=1)
        seen = paste(below, above, layer())
        union = np.any([np.zeros((HEIGHT, WIDTH)), *bitmaps(above)], axis=0)
        assert np.array_equal(seen.image, np.where(union[..., None], above.image, below.image))
        left = [mask.astype(bool) & ~union for mask in bitmaps(below)]
        removed += sum(not mask.any() for mask in left)
        touched += sum(
            mask.any() and not np.array_equal(mask, old) for mask, old in zip(left, bitmaps(below), strict=True)
        )
        expected = [mask for mask in left if mask.any()] + bitmaps(above)
        assert len(seen.masks) == len(expected)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(bitmaps(seen), expected, strict=True))
        areas = [mask.sum() for mask in expected]
        assert np.allclose(seen.area, areas)
        assert seen.labels.tolist() == [i for i, mask in enumerate(left) if mask.any()] + above.labels.tolist()
    assert touched > 20
    assert removed > 5


def test_a_box_moves_only_on_the_sides_where_its_mask_lost_pixels() -> None:
    """The annotator's box is looser than the mask and not on whole pixels: that stays where nothing was lost."""
    below = sample([rectangle(2, 3, 8, 7)], boxes=np.array([[1.25, 2.5, 8.75, 7.5]], np.float32))
    seen = paste(below, sample([rectangle(6, 2, 10, 9)], seed=1), layer())
    assert seen.boxes[0].tolist() == [1.25, 2.5, 6, 7.5]
    middle = paste(below, sample([rectangle(4, 2, 6, 9)], seed=1), layer())
    assert middle.boxes[0].tolist() == [1.25, 2.5, 8.75, 7.5]
    assert middle.masks[0].bitmap(HEIGHT, WIDTH)[3].tolist() == [0, 0, 1, 1, 0, 0, 1, 1] + [0] * 8


def test_a_box_annotated_apart_from_its_mask_becomes_that_of_what_is_left() -> None:
    below = sample([rectangle(2, 3, 12, 7)], boxes=np.array([[2, 3, 5, 7]], np.float32))
    seen = paste(below, sample([rectangle(0, 0, 8, 12)], seed=1), layer())
    assert seen.boxes[0].tolist() == [8, 3, 12, 7]


def test_hidden_objects_are_removed_and_slivers_as_asked() -> None:
    below = sample([rectangle(2, 2, 6, 4), rectangle(2, 6, 12, 8)])
    above = sample([rectangle(1, 1, 11, 9)], seed=1)  # hides the first wholly, nine tenths of the second
    assert paste(below, above, layer()).labels.tolist() == [1, 10]
    assert paste(below, above, layer(min_left=0.1)).labels.tolist() == [1, 10]
    assert paste(below, above, layer(min_left=0.11)).labels.tolist() == [10]


def test_crowds_are_neither_pasted_nor_cut() -> None:
    below = sample([rectangle(2, 2, 6, 6), rectangle(0, 0, 16, 12)], crowd=(1,))
    above = sample([rectangle(2, 2, 6, 6), rectangle(8, 0, 16, 12)], seed=1, crowd=(1,))
    seen = paste(below, above, layer())
    assert seen.labels.tolist() == [1, 10]
    assert seen.crowd.tolist() == [True, False]
    assert seen.masks[0] is below.masks[1]
    assert seen.boxes[0].tolist() == [0, 0, 16, 12]
    assert seen.area[0] == 192
    assert np.array_equal(seen.image[:, 8:], below.image[:, 8:])


def test_a_joint_that_rounding_puts_on_the_border_is_off_the_canvas() -> None:
    """16 - 1e-9 is inside in float64 and is 16 in float32, where there is no pixel to look under."""
    joints = np.array([[[1e-9, 4.5, 2], [6.0, 4.5, 2]]], np.float32)
    below = sample([rectangle(2, 3, 12, 10)], keypoints=joints)
    above = sample([rectangle(0, 2, 16, 9)], seed=1, keypoints=joints)
    view = View(HEIGHT, WIDTH).moved(horizontal_flip(WIDTH), HEIGHT, WIDTH)
    assert np.array_equal(apply_view(below, view).keypoints[0], [[0, 0, 0], [10, 4.5, 2]])
    seen = apply_view(below, view.pasted(Layer(View(HEIGHT, WIDTH, sample=above))))
    assert np.array_equal(seen.keypoints[0], [[0, 0, 0], [10, 4.5, 1]])


def test_covered_joints_become_hidden_and_no_others() -> None:
    joints = np.array([[[3.5, 4.5, 2], [6.0, 4.5, 2], [9.999, 8.999, 1], [10.0, 5.0, 2], [0, 0, 0]]], np.float32)
    below = sample([rectangle(2, 3, 12, 10)], keypoints=joints)
    above = sample([rectangle(6, 2, 10, 9)], seed=1, keypoints=joints + np.array([0, 0, 0], np.float32))
    seen = paste(below, above, layer())
    assert seen.keypoints[0, :, 2].tolist() == [2, 1, 1, 2, 0]
    assert np.array_equal(seen.keypoints[0, :, :2], joints[0, :, :2])
    assert np.array_equal(seen.keypoints[1], joints[0])
    assert joints[0, 1, 2] == 2  # the data set's own array is as it was


def test_soft_edges_mix_the_images_by_the_blurred_mask_and_leave_masks_alone() -> None:
    below, above = sample([rectangle(2, 3, 8, 7)]), sample([rectangle(6, 2, 10, 9)], seed=1)
    seen = paste(below, above, layer(sigma=1.0))
    mask = above.masks[0].bitmap(HEIGHT, WIDTH).astype(np.float64)
    kernel = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(mask, 3, mode="reflect")
    share = sum(w * padded[i : i + HEIGHT] for i, w in enumerate(kernel))
    share = sum(w * share[:, i : i + WIDTH] for i, w in enumerate(kernel))[..., None]
    assert np.abs(seen.image - (share * above.image + (1 - share) * below.image)).max() <= 0.51
    hard = paste(below, above, layer())
    assert all(np.array_equal(a, b) for a, b in zip(bitmaps(seen), bitmaps(hard), strict=True))


def test_without_masks_the_image_and_the_remedy_are_named() -> None:
    with pytest.raises(DataError, match="image 1: copy-paste needs masks.*remove CopyPaste"):
        paste(sample([]), without_masks(sample([rectangle(0, 0, 4, 4)], seed=1)), layer())


def test_nothing_pasted_is_the_image_as_it_was() -> None:
    below = sample([rectangle(2, 3, 8, 7)])
    assert paste(below, sample([], seed=1), layer()) is below
    off = sample([rectangle(-8, 0, -1, 4)], seed=1)
    assert paste(below, off, layer()) is below


def both(view: View, other: View, **settings: float) -> View:
    return view.pasted(Layer(other, **settings))


def test_a_layer_follows_what_moves_the_canvas_later_and_is_read_once() -> None:
    """Pasted, then flipped and cut: by hand on arrays, and by one map for each image."""
    below, above = sample([rectangle(2, 3, 8, 7)]), sample([rectangle(6, 2, 10, 9)], seed=1)
    view = both(View(HEIGHT, WIDTH, sample=below), View(HEIGHT, WIDTH, sample=above))
    view = view.moved(horizontal_flip(WIDTH), HEIGHT, WIDTH).moved(translation(-3, -1), 10, 12)
    seen = apply_view(below, view)
    by_hand = paste(below, above, layer())
    assert np.array_equal(seen.image, by_hand.image[:, ::-1][1:11, 3:15])
    expected = [mask[:, ::-1][1:11, 3:15] for mask in bitmaps(by_hand)]
    assert all(np.array_equal(m.bitmap(10, 12), e) for m, e in zip(seen.masks, expected, strict=True))
    # x: 2 … 6 → 10 … 14 → 7 … 11; 6 … 10 → 6 … 10 → 3 … 7
    assert seen.boxes.tolist() == [[7, 2, 11, 6], [3, 1, 7, 8]]


def test_each_image_has_the_edits_that_stood_before_the_paste_and_both_those_after() -> None:
    below, above = sample([]), sample([rectangle(6, 2, 10, 9)], seed=1)
    rng = np.random.default_rng(0)
    invert = RandomInvert(prob=1.0)
    view = both(invert(View(HEIGHT, WIDTH, sample=below), rng), View(HEIGHT, WIDTH, sample=above))
    seen = apply_view(below, view.edited(lambda image: image // 2))
    covered = above.masks[0].bitmap(HEIGHT, WIDTH)[..., None] != 0
    assert np.array_equal(seen.image, np.where(covered, above.image, 255 - below.image) // 2)


def test_a_second_layer_covers_the_first() -> None:
    below = sample([])
    first, second = sample([rectangle(2, 2, 8, 8)], seed=1), sample([rectangle(4, 0, 16, 12)], seed=2)
    view = both(View(HEIGHT, WIDTH, sample=below), View(HEIGHT, WIDTH, sample=first))
    seen = apply_view(below, both(view, View(HEIGHT, WIDTH, sample=second)))
    assert seen.labels.tolist() == [10, 20]
    assert seen.boxes.tolist() == [[2, 2, 4, 8], [4, 0, 16, 12]]
    assert seen.area.tolist() == [12, 144]


def test_copy_paste_draws_from_none_to_all_of_the_others_objects_and_no_crowd() -> None:
    other = sample([rectangle(i, 0, i + 1, 12) for i in range(5)], seed=1, crowd=(2,))
    below = sample([])
    pasted: list[tuple[int, ...]] = []
    for seed in range(400):
        view = View(HEIGHT, WIDTH, sample=below, another=lambda rng: View(HEIGHT, WIDTH, sample=other))
        seen = apply_view(below, CopyPaste()(view, np.random.default_rng(seed)))
        pasted.append(tuple(seen.labels - 10))
    counts = np.bincount([len(objects) for objects in pasted], minlength=5)
    assert (counts > 50).all()  # 80 expected of each number, 0 to 4
    assert len(counts) == 5
    assert {label for objects in pasted for label in objects} == {0, 1, 3, 4}
    few = CopyPaste(max_objects=1)
    views = [few(view, np.random.default_rng(seed)) for seed in range(50)]
    assert {len(layer.view.sample) for view in views for layer in view.layers} == {1}


def test_an_image_of_boxes_only_is_refused_with_the_remedy() -> None:
    boxes_only = without_masks(sample([rectangle(0, 0, 4, 4)]))
    view = View(HEIGHT, WIDTH, sample=boxes_only, another=lambda rng: View(HEIGHT, WIDTH, sample=boxes_only))
    with pytest.raises(DataError, match="CopyPaste needs masks, and the training images have boxes only"):
        CopyPaste()(view, np.random.default_rng(0))


def loader(**settings: Any) -> Any:
    shapes = Shapes(length=6, height=40, width=48, keypoints=True)
    transforms = (ScaleJitter(height=48, width=48, min_scale=0.5, max_scale=1.5), CopyPaste(), HorizontalFlip())
    known = {"resize": Resize(short=40, max=80), "transforms": transforms, "batch": 2, "seed": 1, "steps": 9}
    return training_loader(shapes, **{**known, **settings})


def test_the_partner_is_the_same_for_any_number_of_workers_and_after_a_restart() -> None:
    alone = list(loader())
    resumed = [None] * 4 + list(loader(start_step=4))
    for step, shared in enumerate(loader(workers=2)):
        for other in (shared, resumed[step]):
            if other is not None:
                assert all(np.array_equal(a, b) for a, b in zip(alone[step].images, other.images, strict=True))
                assert np.array_equal(alone[step].targets.boxes, other.targets.boxes)
    plain = list(loader(transforms=loader()._loader.dataset.transforms[::2]))
    more = [int(a.targets.valid.sum()) - int(b.targets.valid.sum()) for a, b in zip(alone, plain, strict=True)]
    assert max(more) >= 3  # something was pasted


def test_the_partner_is_another_image_and_goes_through_the_transforms_before_with_its_own_draws() -> None:
    source = loader()._loader.dataset
    looking = Looking()
    source.transforms = (source.transforms[0], looking)
    for epoch in range(60):
        source[Key(epoch, 2)]
    assert all(view.sample.image_id != other.sample.image_id for view, other in looking.seen)
    assert all((other.height, other.width) == (48, 48) for _, other in looking.seen)
    assert len({other.sample.image_id for _, other in looking.seen}) == 5
    scales = [[round(one.matrix[0, 0], 3) for one in pair] for pair in looking.seen]
    assert sum(own == others for own, others in scales) < 10


class Looking:
    """Keeps the view and another one."""

    def __init__(self) -> None:
        self.seen: list[tuple[View, View]] = []

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        self.seen.append((view, view.another(rng)))
        return view


def test_a_data_set_of_one_image_pastes_it_over_itself() -> None:
    batches = list(loader(steps=2, batch=1, start_step=0))
    assert len(batches) == 2
    single = training_loader(
        Shapes(length=1, height=40, width=48), resize=None, transforms=[CopyPaste()], batch=1, seed=0, steps=5
    )
    assert len(list(single)) == 5


def test_pasted_objects_lie_where_the_scaled_image_has_them() -> None:
    """Through a resize to twice the size: pixels by cv2.resize, the mask by the doubled polygon."""
    below, above = sample([]), sample([rectangle(6, 2, 10, 9)], seed=1)
    big = (2 * HEIGHT, 2 * WIDTH)
    view = View(*big, sample=below).pasted(Layer(View(HEIGHT, WIDTH, sample=above).moved(scaling(2, 2), *big)))
    seen = apply_view(sample([], image=cv2.resize(below.image, big[::-1])), view)
    resized = cv2.resize(above.image, big[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(seen.image[4:18, 12:20], resized[4:18, 12:20])
    assert seen.boxes.tolist() == [[12, 4, 20, 18]]
