"""From a view to its pixels: by resize and crop where that is exact, by one warp elsewhere."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from toolbox.data.interfaces import View
from toolbox.data.resize import ResizeMethod, in_groups, scale_pixels
from toolbox.errors import DataError, counted

_WHOLE = 1e-6  # how far from a whole pixel still counts as whole; far above float64's error, far below what is seen
_STRAIGHT = 1e-12  # what is left of a cosine of 90 degrees


def render(image: np.ndarray, view: View, method: ResizeMethod = "cv2") -> np.ndarray:
    """The canvas (view.height, view.width, C) uint8 that the view shows of `image` (h, w, C) uint8, without layers."""
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
            f"fill has {counted(len(fill), 'value')}, but the images have {counted(channels, 'channel')}; "
            "give one for each, or leave it out"
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
    """Render by resize, flip, quarter turn and crop, exact and several times faster; None when the map needs more."""
    matrix = view.matrix
    if abs(matrix[0, 0]) < _STRAIGHT and abs(matrix[1, 1]) < _STRAIGHT:  # x and y trade places
        image, matrix = image.transpose(1, 0, 2), matrix[:, [1, 0, 2]]
    (a, shear_x, tx), (shear_y, d, ty) = matrix
    h, w = image.shape[:2]
    extent = np.array([a * w, d * h, tx, ty])  # the image's size on the canvas, signed, and where its origin goes
    whole = np.rint(extent)
    if max(abs(shear_x), abs(shear_y)) >= _STRAIGHT or np.abs(extent - whole).max() > _WHOLE or not whole[:2].all():
        return None
    width, height, x, y = (int(value) for value in whole)
    scaled = scale_pixels(image, abs(height), abs(width), method)
    if width < 0 or height < 0:
        code = -1 if width < 0 and height < 0 else int(width < 0)
        scaled = in_groups(scaled, lambda part: cv2.flip(part, code), most=4)
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
