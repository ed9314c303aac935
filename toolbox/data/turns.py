"""Augmentations that turn, shear and shift: everything else that one affine map can do."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from toolbox.data.geometry import about, keeps_boxes_upright, rotation, transform_boxes
from toolbox.data.interfaces import IMAGENET_GREY, View
from toolbox.data.transforms import check_probability
from toolbox.registry import TRANSFORMS


@TRANSFORMS.register
class RandomRotation:
    """Turn about the centre, counter-clockwise for positive angles.

    Boxes become those of the turned masks; without masks they are estimated (docs/augmentation.md). Quarter turns move
    whole pixels and read none twice.

    Args:
        degrees: an angle for both directions, or a list: the smallest and largest of a range, or values to choose from.
        draw: `range` takes any angle between the smallest and the largest, `choice` one of the list.
        expand: make the canvas as large as the turned image, instead of keeping its size and losing the corners.
        fill: value of each channel where the canvas lies outside the image.
        prob: of turning at all.
    """

    def __init__(
        self,
        *,
        degrees: float | list[float] = 10.0,
        draw: Literal["range", "choice"] = "range",
        expand: bool = False,
        fill: tuple[int, ...] = IMAGENET_GREY,
        prob: float = 1.0,
    ) -> None:
        wrong = []
        self.degrees = [-abs(degrees), abs(degrees)] if isinstance(degrees, int | float) else list(degrees)
        if not self.degrees or not all(map(math.isfinite, self.degrees)):
            wrong.append(f"degrees is an angle or a list of angles, got {degrees}")
        if draw not in ("range", "choice"):
            wrong.append(f"draw is 'range' or 'choice', got '{draw}'")
        if wrong:
            raise ValueError("\n".join(wrong))
        self.draw = draw
        self.expand = expand
        self.fill = fill
        self.prob = check_probability(prob)

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        if rng.random() >= self.prob:
            return view
        if self.draw == "range":
            angle = rng.uniform(min(self.degrees), max(self.degrees))
        else:
            angle = float(rng.choice(self.degrees))
        return turned(view, angle, expand=self.expand, fill=self.fill)


@TRANSFORMS.register
class RandomAffine:
    """Turn, shear, scale and shift about the centre, on a canvas of the same size.

    Boxes become those of the moved masks; without masks they are estimated (docs/augmentation.md).

    Args:
        degrees: largest angle of the turn, in both directions.
        shear: largest angle, in degrees, by which upright lines lean, in both directions.
        min_scale: least factor on both sides.
        max_scale: largest.
        shift: largest part of the height and width by which the image moves, in both directions.
        fill: value of each channel where the canvas lies outside the image.
        prob: of doing anything.
    """

    def __init__(
        self,
        *,
        degrees: float = 10.0,
        shear: float = 0.0,
        min_scale: float = 1.0,
        max_scale: float = 1.0,
        shift: float = 0.0,
        fill: tuple[int, ...] = IMAGENET_GREY,
        prob: float = 1.0,
    ) -> None:
        wrong = []
        if not 0 <= degrees < math.inf:
            wrong.append(f"degrees is 0 or more, got {degrees}")
        if not 0 <= shear < 90:
            wrong.append(f"shear is an angle from 0 to below 90 degrees, got {shear}")
        if not 0 < min_scale <= max_scale:
            wrong.append(f"min_scale is more than 0 and at most max_scale ({max_scale}), got {min_scale}")
        if not 0 <= shift <= 1:
            wrong.append(f"shift is a part of the image, 0 to 1, got {shift}")
        if wrong:
            raise ValueError("\n".join(wrong))
        self.degrees = degrees
        self.shear = shear
        self.scales = (min_scale, max_scale)
        self.shift = shift
        self.fill = fill
        self.prob = check_probability(prob)

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        if rng.random() >= self.prob:
            return view
        matrix = rotation(rng.uniform(-self.degrees, self.degrees)) * rng.uniform(*self.scales)
        lean = math.tan(math.radians(rng.uniform(-self.shear, self.shear)))
        matrix[:, :2] = matrix[:, :2] @ [[1.0, lean], [0.0, 1.0]]
        across, down = rng.uniform(-self.shift, self.shift, size=2)
        centre = (view.width / 2, view.height / 2)
        onto = (centre[0] + across * view.width, centre[1] + down * view.height)
        return view.moved(about(matrix, centre, onto), view.height, view.width, fill=self.fill)


def turned(view: View, degrees: float, *, expand: bool, fill: tuple[int, ...]) -> View:
    """The view turned about the centre of its canvas."""
    matrix, height, width = rotation(degrees), view.height, view.width
    if expand:
        x1, y1, x2, y2 = transform_boxes(np.array([[0.0, 0.0, view.width, view.height]]), matrix)[0]
        # A hair of float64 must not cost a column.
        height, width = math.ceil(y2 - y1 - 1e-6), math.ceil(x2 - x1 - 1e-6)
    moved = about(matrix, (view.width / 2, view.height / 2), (width / 2, height / 2))
    if keeps_boxes_upright(matrix):
        # On a kept canvas whose sides differ by an odd number the centre is half a pixel off: whole pixels stay whole.
        moved[:, 2] = np.floor(moved[:, 2])
    return view.moved(moved, height, width, fill=fill)
