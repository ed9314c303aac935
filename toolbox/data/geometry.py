"""Affine maps in the continuous convention, and what they do to pixels, boxes, masks and keypoints.

All augmentations of an image are one (2, 3) matrix by the time anything here runs: pixels are read once, and boxes,
masks and keypoints move exactly.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from toolbox.data.interfaces import Sample, View
from toolbox.data.resize import ResizeMethod, in_groups, scale_pixels
from toolbox.errors import DataError
from toolbox.masks import Mask
from toolbox.structures import Skeleton

_GRID = 56  # places across and down a box where a mask is looked for: twice as fine as the targets of mask heads
_WHOLE = 1e-6  # how far from a whole pixel still counts as whole; far above float64's error, far below what is seen


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


def render(image: np.ndarray, view: View, method: ResizeMethod = "cv2") -> np.ndarray:
    """The canvas (view.height, view.width, C) uint8 that the view shows of `image` (h, w, C) uint8."""
    view = replace(view, fill=fill_of(view.fill, image.shape[2]))
    canvas = _upright(image, view, method)
    if canvas is None:
        # cv2 puts pixel centres on whole numbers, we on halves.
        centred = view.matrix.copy()
        centred[:, 2] += view.matrix[:, :2].sum(axis=1) / 2 - 0.5
        canvas = _warped(image, centred, view)
    for edit in view.edits:
        canvas = edit(canvas)
    return canvas


def fill_of(fill: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """A value for each channel: three are repeated in turn for more channels, or averaged for one.

    Raises:
        DataError: there are neither three nor as many as channels.
    """
    if len(fill) == channels:
        return fill
    if len(fill) != 3:
        raise DataError(
            f"fill has {len(fill)} values, but the images have {channels} channels; give one for each, or leave it out"
        )
    return (round(sum(fill) / 3),) if channels == 1 else tuple(fill[index % 3] for index in range(channels))


def _warped(image: np.ndarray, matrix: np.ndarray, view: View) -> np.ndarray:
    """Render by OpenCV, four channels at a time; `matrix` has pixel centres on whole numbers, as OpenCV does."""
    fills = [view.fill[start : start + 4] for start in range(0, image.shape[2], 4)]
    return in_groups(
        image,
        lambda part: cv2.warpAffine(
            part,
            matrix,
            (view.width, view.height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fills.pop(0),
        ),
        most=4,
    )


def _upright(image: np.ndarray, view: View, method: ResizeMethod) -> np.ndarray | None:
    """Render by resize, flip and crop, exact and several times faster; None when the map needs more than these."""
    (a, shear_x, tx), (shear_y, d, ty) = view.matrix
    h, w = image.shape[:2]
    extent = np.array([a * w, d * h, tx, ty])  # the image's size on the canvas, signed, and where its origin goes
    whole = np.rint(extent)
    if abs(shear_x) > 1e-12 or abs(shear_y) > 1e-12 or np.abs(extent - whole).max() > _WHOLE or not whole[:2].all():
        return None
    width, height, x, y = (int(value) for value in whole)
    scaled = scale_pixels(image, abs(height), abs(width), method)
    if width < 0 or height < 0:
        scaled = scaled[:: -1 if height < 0 else 1, :: -1 if width < 0 else 1]
    left, top = x + min(width, 0), y + min(height, 0)
    return _placed(scaled, left, top, view)


def _placed(image: np.ndarray, left: int, top: int, view: View) -> np.ndarray:
    """Put an image at (left, top) on the view's canvas: a crop, with fill where the image does not reach."""
    h, w = image.shape[:2]
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + w, view.width), min(top + h, view.height)
    if (x1, y1, x2, y2) == (0, 0, view.width, view.height):
        return np.ascontiguousarray(image[-top : view.height - top, -left : view.width - left])
    canvas = np.empty((view.height, view.width, image.shape[2]), dtype=np.uint8)
    canvas[:] = view.fill
    if x1 < x2 and y1 < y2:
        canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
    return canvas


def transform_keypoints(
    keypoints: np.ndarray, matrix: np.ndarray, height: int, width: int, skeleton: Skeleton | None
) -> np.ndarray:
    """Keypoints (G, J, 3) on the canvas.

    A map that mirrors (its determinant is negative: one flip, or three) turns a left joint into a right one, so the
    skeleton's pairs trade places. Points off the canvas become (0, 0, 0), unlabelled.
    """
    points = transform_points(keypoints[..., :2], matrix)
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


def apply_view(
    sample: Sample,
    view: View,
    *,
    skeleton: Skeleton | None = None,
    method: ResizeMethod = "cv2",
    min_visible: float = 0.1,
) -> Sample:
    """The sample as the view shows it.

    Boxes are the old boxes mapped and cut to the canvas: a crop does not shrink a box to what is left of its mask.
    Objects of which less than `min_visible` of the mapped box is on the canvas are dropped, and those whose mask is
    off the canvas though a part of their box is not; crowd regions only when nothing of their box is left. `area` is
    scaled by the map and by the part of the box that is left.
    """
    moved = transform_boxes(sample.boxes.astype(np.float64), view.matrix)
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
        image=render(sample.image, view, method),
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
