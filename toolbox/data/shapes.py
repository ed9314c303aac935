"""A synthetic data set made on the fly: textured backgrounds, overlapping shapes, exact boxes, masks and joints."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from toolbox.data.ground_truth import coco_ground_truth
from toolbox.data.interfaces import Sample
from toolbox.data.shape_painting import (
    LOOKS,
    OUTLINES,
    PLAIN,
    RADIUS,
    SKELETON,
    Look,
    Placed,
    background,
    paint,
    shape_colour,
)
from toolbox.errors import did_you_mean
from toolbox.masks import BitmapMask, Mask
from toolbox.registry import DATASETS

Difficulty = Literal["easy", "medium", "hard"]

MAX_HIDDEN = 0.7  # a shape of which more is covered or outside the image is no object
_MIN_PIXELS = 16
_OVERLAP = 0.35  # a place that covers less of other shapes is taken at once
_TRIES = 4


@DATASETS.register
class Shapes:
    """Circles, squares, triangles, stars and others: turned, coloured and textured, painted one over the other.

    Masks, boxes and areas are of what is visible of a shape. An image depends on (seed, index) alone: another seed is
    another split.

    Args:
        length: number of images.
        height: of every image.
        width: of every image.
        objects: fewest and most shapes painted.
        classes: which shapes; circle, square, triangle and star unless told. `cross`, `arrow`, `horseshoe` and `moon`
            are thin or hollow: most of their box is background or another shape, so that a mask a few pixels off is
            mostly wrong.
        seed: of the data set.
        difficulty: `easy` has hues that hint at the class, and whole shapes; `medium` any hue, more texture and shapes
            cut by the border; `hard` low contrast, noise, clutter and small shapes.
        keypoints: show each shape's tip by a stripe, and give its joints: tip, left, right, tail.
    """

    def __init__(
        self,
        *,
        length: int = 200,
        height: int = 128,
        width: int = 128,
        objects: tuple[int, int] = (2, 6),
        classes: list[str] | None = None,
        seed: int = 0,
        difficulty: Difficulty = "medium",
        keypoints: bool = False,
    ) -> None:
        if length < 1 or min(height, width) < 32:
            raise ValueError(
                f"Shapes has 1 image or more, of 32 x 32 pixels or more, not {length} of {width} x {height}"
            )
        fewest, most = objects
        if not 0 <= fewest <= most < 255:
            raise ValueError(f"objects are the fewest and the most in an image (below 255), not {tuple(objects)}")
        if difficulty not in LOOKS:
            raise ValueError(f"difficulty is one of {', '.join(LOOKS)}, not '{difficulty}'")
        for name in classes or ():
            if name not in OUTLINES:
                raise ValueError(f"no shape '{name}'{did_you_mean(name, OUTLINES)} (shapes: {', '.join(OUTLINES)})")
        self.length = length
        self.height = height
        self.width = width
        self.objects = (fewest, most)
        self.classes = tuple(classes or PLAIN)
        self.category_ids = tuple(range(1, len(self.classes) + 1))
        self.seed = seed
        self.look = LOOKS[difficulty]
        self.skeleton = SKELETON if keypoints else None

    def __len__(self) -> int:
        return self.length

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, the same for all images."""
        return self.height, self.width

    def load(self, index: int) -> Sample:
        """Paint an image."""
        if not 0 <= index < self.length:
            raise IndexError(f"image {index} of {self.length}")
        rng = np.random.default_rng([self.seed, index])
        picture, ground = background(self.height, self.width, self.look, rng)
        owner = np.zeros((self.height, self.width), dtype=np.uint8)  # which shape is seen at a pixel, 0 for none
        painted: list[tuple[int, Placed]] = []
        for number in range(1, 1 + int(rng.integers(*self.objects, endpoint=True))):
            label = int(rng.integers(len(self.classes)))
            colour = shape_colour(label, len(self.classes), ground, self.look, rng)
            shape = _place(self.classes[label], self.look, owner, rng)
            paint(picture, owner, number, shape, colour, marked=self.skeleton is not None, rng=rng)
            painted.append((label, shape))
        # Uniform bytes have a deviation of 74, and are a tenth of the cost of normal numbers.
        noise = rng.integers(0, 256, picture.shape, dtype=np.uint8).astype(np.float32) - 127.5
        image = np.clip(picture + noise * np.float32(self.look.noise / 74), 0, 255).astype(np.uint8)
        return self._sample(image, owner, painted, index)

    def _sample(self, image: np.ndarray, owner: np.ndarray, painted: list[tuple[int, Placed]], index: int) -> Sample:
        seen = np.bincount(owner.ravel(), minlength=len(painted) + 1)
        boxes, labels, area, masks, keypoints = [], [], [], list[Mask](), []
        for number, (label, shape) in enumerate(painted, start=1):
            if seen[number] < max(_MIN_PIXELS, (1 - MAX_HIDDEN) * shape.area):
                continue
            left, top, right, bottom = shape.window
            visible = (owner[top:bottom, left:right] == number).astype(np.uint8)
            x, y, w, h = cv2.boundingRect(visible)
            masks.append(BitmapMask(visible[y : y + h, x : x + w], left + x, top + y))
            boxes.append((left + x, top + y, left + x + w, top + y + h))
            labels.append(label)
            area.append(seen[number])
            if self.skeleton is not None:
                keypoints.append(shape.visible_joints(owner, number))
        return Sample(
            image=image,
            boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.array(labels, dtype=np.int64),
            crowd=np.zeros(len(boxes), dtype=bool),
            area=np.array(area, dtype=np.float32),
            masks=masks,
            keypoints=np.array(keypoints, dtype=np.float32).reshape(-1, len(self.skeleton.names), 3)
            if self.skeleton
            else None,
            image_id=index + 1,
        )

    def ground_truth(self) -> dict[str, Any]:
        """All images painted once more; about a second for a thousand."""
        return coco_ground_truth(self)


def _place(name: str, look: Look, owner: np.ndarray, rng: np.random.Generator) -> Placed:
    """A shape at a random place: the first that covers little of the others, or the best of a few."""
    height, width = owner.shape
    radius = rng.uniform(*look.radius) * min(height, width) * RADIUS[name]
    turn = rng.uniform(0, 2 * np.pi)
    edge = min(radius * (1 - look.margin), height / 2, width / 2)
    tried: list[tuple[float, Placed]] = []
    while len(tried) < _TRIES and not (tried and tried[-1][0] < _OVERLAP):
        centre = (rng.uniform(edge, width - edge), rng.uniform(edge, height - edge))
        shape = Placed.at(name, centre, radius, turn, height, width)
        x1, y1, x2, y2 = shape.window
        tried.append((np.count_nonzero(owner[y1:y2, x1:x2]) / max(1, (y2 - y1) * (x2 - x1)), shape))
    return min(tried, key=lambda entry: entry[0])[1]
