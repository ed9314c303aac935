"""Affine maps in the continuous convention, and what they do to pixels, boxes, masks and keypoints.

All augmentations of an image are one (2, 3) matrix by the time anything here runs: pixels are read once, and boxes,
masks and keypoints move exactly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from toolbox.data.interfaces import Layer, PixelEdit, Sample, View
from toolbox.data.paste import paste
from toolbox.data.rendering import render
from toolbox.data.resize import ResizeMethod
from toolbox.masks import Mask
from toolbox.structures import Skeleton

_GRID = 56  # places across and down a box where a mask is looked for: twice as fine as the targets of mask heads
_WHOLE = 1e-6  # of a box's area: what may be lost to rounding where nothing is lost
_STRAIGHT = 1e-12  # what is left of a cosine of 90 degrees


def scaling(height_factor: float, width_factor: float) -> np.ndarray:
    """(2, 3) scale about the origin."""
    return np.array([[width_factor, 0.0, 0.0], [0.0, height_factor, 0.0]])


def translation(dx: float, dy: float) -> np.ndarray:
    """(2, 3) shift."""
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])


def horizontal_flip(width: int) -> np.ndarray:
    """(2, 3), x ↦ width − x."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0]])


def vertical_flip(height: int) -> np.ndarray:
    """(2, 3), y ↦ height − y."""
    return np.array([[1.0, 0.0, 0.0], [0.0, -1.0, height]])


def rotation(degrees: float) -> np.ndarray:
    """(2, 3) turn about the origin, counter-clockwise as the image is seen; exact for quarter turns."""
    quarters, rest = divmod(degrees, 90)
    if rest:
        cosine, sine = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    else:
        cosine, sine = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarters) % 4]
    return np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0]])


def about(matrix: np.ndarray, centre: tuple[float, float], onto: tuple[float, float]) -> np.ndarray:
    """(2, 3) map with the linear part of `matrix` that takes the point `centre` (x, y) to `onto`."""
    moved = matrix.copy()
    moved[:, 2] = np.array(onto) - matrix[:, :2] @ np.array(centre)
    return moved


def keeps_boxes_upright(matrix: np.ndarray) -> bool:
    """Whether boxes stay boxes: a scale, a flip or a quarter turn, not a shear or another turn."""
    linear = np.abs(matrix[:, :2])
    return bool(linear[[0, 1], [1, 0]].max() < _STRAIGHT or linear[[0, 1], [0, 1]].max() < _STRAIGHT)


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map points (…, 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes (G, 4) to the upright boxes (G, 4) around their mapped corners: exact unless the map rotates or shears."""
    corners = boxes.reshape(-1, 4)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved = transform_points(corners, matrix)
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (G, 4) cut to the canvas."""
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Area (G,) of boxes (G, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def transform_keypoints(
    keypoints: np.ndarray, matrix: np.ndarray, height: int, width: int, skeleton: Skeleton | None
) -> np.ndarray:
    """Keypoints (G, J, 3) on the canvas.

    A map that mirrors (its determinant is negative: one flip, or three) turns a left joint into a right one, so the
    skeleton's pairs trade places. Points off the canvas become (0, 0, 0), unlabelled.
    """
    # Rounded first: just inside the right border in float64 may be on it in float32, and that is no pixel any more.
    points = transform_points(keypoints[..., :2], matrix).astype(np.float32)
    visibility = keypoints[..., 2]
    inside = (points >= 0).all(-1) & (points[..., 0] < width) & (points[..., 1] < height) & (visibility > 0)
    moved = np.concatenate([points, visibility[..., None]], axis=-1) * inside[..., None]
    if skeleton is not None and np.linalg.det(matrix[:, :2]) < 0:
        order = np.arange(keypoints.shape[1])
        for left, right in skeleton.pairs:
            order[[left, right]] = order[[right, left]]
        moved = moved[:, order]
    return moved.astype(np.float32)


def _reaches(mask: Mask, box: np.ndarray) -> bool:
    """Whether any of a mask is inside a box (4,). An empty one would teach the mask head that there is no object."""
    found = np.zeros((_GRID, _GRID), np.uint8)
    mask.fill(box.tolist(), found)
    return bool(found.any())


def moved_boxes(sample: Sample, matrix: np.ndarray) -> np.ndarray:
    """Boxes (G, 4) float64 of a sample's objects after a map, not cut to a canvas.

    A map that keeps boxes upright moves the data set's own boxes. One that turns or shears would make them grow, as the
    upright box around a turned box is too large for what is in it. So there an object's box is that of its moved mask;
    without a mask that of the moved ellipse inside the box, as Kalra et al. (arXiv:2109.13488) found best, widened to
    hold the joints that the box held.
    """
    boxes = sample.boxes.astype(np.float64)
    around = transform_boxes(boxes, matrix)
    if keeps_boxes_upright(matrix) or not len(boxes):
        return around
    centres = transform_points((boxes[:, :2] + boxes[:, 2:]) / 2, matrix)
    radii = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ matrix[:, :2].T ** 2)
    moved = np.concatenate([centres - radii, centres + radii], axis=1)
    if sample.keypoints is not None:
        points = sample.keypoints[..., :2].astype(np.float64)
        held = (points >= boxes[:, None, :2]).all(-1) & (points <= boxes[:, None, 2:]).all(-1)
        held = (held & (sample.keypoints[..., 2] > 0))[..., None]
        points = transform_points(points, matrix)
        moved[:, :2] = np.minimum(moved[:, :2], np.where(held, points, np.inf).min(axis=1))
        moved[:, 2:] = np.maximum(moved[:, 2:], np.where(held, points, -np.inf).max(axis=1))
    for index, mask in enumerate(sample.masks or ()):
        outline = mask.transformed(matrix).box()
        if (outline[2:] > outline[:2]).all():  # else the mask is empty
            moved[index] = outline
    return moved


def boxes_on(view: View) -> np.ndarray:
    """Boxes (G, 4) float64 of the view's objects, cut to its canvas: without an area where they are off it.

    A view that does not know its image has no objects.
    """
    if view.sample is None:
        return np.zeros((0, 4))
    return clip_boxes(moved_boxes(view.sample, view.matrix), view.height, view.width)


def shown_on(view: View) -> np.ndarray:
    """Which of the view's objects have their box on the canvas, at least in part: indices (G',)."""
    boxes = boxes_on(view)
    return np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))


def apply_view(
    sample: Sample,
    view: View,
    *,
    skeleton: Skeleton | None = None,
    method: ResizeMethod = "cv2",
    min_visible: float = 0.1,
) -> Sample:
    """The sample as the view shows it, with the layers that are pasted over it.

    Boxes are the old boxes moved (`moved_boxes`) and cut to the canvas: a crop does not shrink a box to what is left of
    its mask. Objects of which less than `min_visible` of the moved box is on the canvas are dropped, and those whose
    mask is off the canvas though a part of their box is not; crowd regions only when nothing of their box is left.
    `area` is scaled by the map and by the part of the box that is left. What layers do to the objects below them is
    said in `toolbox.data.paste`.
    """
    seen = _moved_sample(sample, view, skeleton, min_visible)
    image, done = render(sample.image, replace(view, edits=()), method), 0
    for layer in view.layers:
        image, done = _edited(image, view.edits[done : layer.above]), layer.above
        seen = paste(replace(seen, image=image), _shown(layer, skeleton, method, min_visible), layer)
        image = seen.image
    return replace(seen, image=_edited(image, view.edits[done:]))


def _shown(layer: Layer, skeleton: Skeleton | None, method: ResizeMethod, min_visible: float) -> Sample:
    """A layer's objects on the canvas."""
    sample = layer.view.sample
    assert sample is not None, "a layer is made of a view that knows its image"
    return apply_view(sample, layer.view, skeleton=skeleton, method=method, min_visible=min_visible)


def _edited(image: np.ndarray, edits: tuple[PixelEdit, ...]) -> np.ndarray:
    for edit in edits:
        image = edit(image)
    return image


def _moved_sample(sample: Sample, view: View, skeleton: Skeleton | None, min_visible: float) -> Sample:
    """The sample's objects on the view's canvas; the image is still its own."""
    moved = moved_boxes(sample, view.matrix)
    boxes = clip_boxes(moved, view.height, view.width)
    left_over = box_area(boxes) / np.maximum(box_area(moved), 1e-12)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    keep = np.flatnonzero(has_area & (sample.crowd | (left_over >= min_visible)))
    scale = abs(np.linalg.det(view.matrix[:, :2]))
    masks = None if sample.masks is None else {i: sample.masks[i].transformed(view.matrix) for i in keep}
    if masks is not None:
        whole = sample.crowd | (left_over > 1 - _WHOLE)
        keep = np.array([i for i in keep if whole[i] or _reaches(masks[i], boxes[i])], dtype=np.intp)
    keypoints = sample.keypoints
    return replace(
        sample,
        boxes=boxes[keep].astype(np.float32),
        labels=sample.labels[keep],
        crowd=sample.crowd[keep],
        area=(sample.area * scale * left_over)[keep].astype(np.float32),
        masks=None if masks is None else [masks[i] for i in keep],
        keypoints=None
        if keypoints is None
        else transform_keypoints(keypoints[keep], view.matrix, view.height, view.width, skeleton),
        original_size=sample.original_size or (sample.image.shape[0], sample.image.shape[1]),
    )
