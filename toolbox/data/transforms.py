"""Geometric augmentations: each follows the view's map with one more, and no pixel is read here."""

from __future__ import annotations

import numpy as np

from toolbox.data.geometry import box_area, boxes_on, horizontal_flip, scaling, shown_on, translation, vertical_flip
from toolbox.data.interfaces import IMAGENET_GREY, View
from toolbox.registry import TRANSFORMS

_ROUNDS = 50  # overlaps that are drawn; where 1 is among them, it ends them sooner


def check_probability(prob: float) -> float:
    """Return `prob`, if it is one."""
    if not 0 <= prob <= 1:
        raise ValueError(f"prob lies between 0 and 1, got {prob}")
    return prob


def check_canvas(height: int, width: int) -> tuple[int, int]:
    """Return height and width, if a canvas can have them."""
    wrong = [f"{name} is 1 pixel or more, got {n}" for name, n in (("height", height), ("width", width)) if n < 1]
    if wrong:
        raise ValueError("\n".join(wrong))
    return height, width


@TRANSFORMS.register
class HorizontalFlip:
    """Mirror left and right; left and right joints trade places."""

    def __init__(self, *, prob: float = 0.5) -> None:
        self.prob = check_probability(prob)

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        if rng.random() >= self.prob:
            return view
        return view.moved(horizontal_flip(view.width), view.height, view.width)


@TRANSFORMS.register
class VerticalFlip:
    """Mirror top and bottom; a mirror too, so left and right joints trade places."""

    def __init__(self, *, prob: float = 0.5) -> None:
        self.prob = check_probability(prob)

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        if rng.random() >= self.prob:
            return view
        return view.moved(vertical_flip(view.height), view.height, view.width)


@TRANSFORMS.register
class RandomCrop:
    """Crop of a fixed size at a random place; an image smaller than it is padded at the right and bottom.

    Args:
        height: of the crop.
        width: of the crop.
        fill: value of each channel where the crop lies outside the image.
        on_object: choose among the places that hold the centre of an object, itself drawn at random. Where objects are
            few, most other crops show none.
    """

    def __init__(
        self, *, height: int, width: int, fill: tuple[int, ...] = IMAGENET_GREY, on_object: bool = False
    ) -> None:
        self.height, self.width = check_canvas(height, width)
        self.fill = fill
        self.on_object = on_object

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        objects = _learned(view) if self.on_object else np.zeros((0, 4))
        if not len(objects):
            return _cropped(view, self.height, self.width, self.fill, rng)
        x1, y1, x2, y2 = objects[rng.integers(len(objects))]
        top = _start_around((y1 + y2) / 2, view.height, self.height, rng)
        left = _start_around((x1 + x2) / 2, view.width, self.width, rng)
        return view.moved(translation(-left, -top), self.height, self.width, fill=self.fill)


@TRANSFORMS.register
class MinIoUCrop:
    """SSD's crop (Liu et al., arXiv:1512.02325): of a random size and shape that overlaps an object enough.

    One of `overlaps` is drawn. A crop is kept if the centre of an object lies in it and its IoU with the box of such an
    object is at least that; 1 stands for the whole image. After `trials` crops that are not kept, another overlap is
    drawn. Which objects stay is decided by `data.min_visible`, not by their centres as in SSD. An image without objects
    stays whole.

    Args:
        overlaps: least IoU of the crop with an object, drawn from these.
        min_scale: least part of the image's height and of its width.
        max_scale: largest part.
        min_ratio: least width / height of the crop in pixels.
        max_ratio: largest.
        trials: crops tried for one overlap.
        prob: of trying at all.
    """

    def __init__(
        self,
        *,
        overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
        min_scale: float = 0.3,
        max_scale: float = 1.0,
        min_ratio: float = 0.5,
        max_ratio: float = 2.0,
        trials: int = 40,
        prob: float = 1.0,
    ) -> None:
        wrong = []
        if not overlaps or not all(0 <= overlap <= 1 for overlap in overlaps):
            wrong.append(f"overlaps are IoUs, 0 to 1, got {list(overlaps)}")
        if not 0 < min_scale <= max_scale <= 1:
            wrong.append(f"min_scale is more than 0 and at most max_scale ({max_scale}, at most 1), got {min_scale}")
        if not 0 < min_ratio <= max_ratio:
            wrong.append(f"min_ratio is more than 0 and at most max_ratio ({max_ratio}), got {min_ratio}")
        if trials < 1:
            wrong.append(f"trials is 1 or more, got {trials}")
        if wrong:
            raise ValueError("\n".join(wrong))
        self.overlaps = overlaps
        self.scales = (min_scale, max_scale)
        self.ratios = (min_ratio, max_ratio)
        self.trials = trials
        self.prob = check_probability(prob)

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        boxes = _learned(view)
        if rng.random() >= self.prob or not len(boxes):
            return view
        for _ in range(_ROUNDS):
            overlap = float(rng.choice(self.overlaps))
            if overlap >= 1:
                return view
            for _ in range(self.trials):
                crop = self._drawn(view, rng)
                if crop is not None and _overlaps(boxes, crop, overlap):
                    x1, y1, x2, y2 = crop
                    return view.moved(translation(-x1, -y1), y2 - y1, x2 - x1)
        return view

    def _drawn(self, view: View, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        """A crop x1 y1 x2 y2, or None if its shape does not fit."""
        height, width = (max(1, int(side * rng.uniform(*self.scales))) for side in (view.height, view.width))
        x = int(rng.integers(view.width - width, endpoint=True))
        y = int(rng.integers(view.height - height, endpoint=True))
        fits = self.ratios[0] <= width / height <= self.ratios[1]
        return (x, y, x + width, y + height) if fits else None


@TRANSFORMS.register
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al., arXiv:2012.07177): scale at random, then crop or pad to a fixed canvas.

    The image is fitted into the canvas, times a factor drawn between `min_scale` and `max_scale`; what size it had
    before does not matter, so this replaces the resize. As maps compose, nothing is resampled twice.
    """

    def __init__(
        self,
        *,
        height: int = 1024,
        width: int = 1024,
        min_scale: float = 0.1,
        max_scale: float = 2.0,
        fill: tuple[int, ...] = IMAGENET_GREY,
    ) -> None:
        self.height, self.width = check_canvas(height, width)
        if not 0 < min_scale <= max_scale:
            raise ValueError(f"min_scale is more than 0 and at most max_scale ({max_scale}), got {min_scale}")
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.fill = fill

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        fit = min(self.height / view.height, self.width / view.width)
        scale = fit * rng.uniform(self.min_scale, self.max_scale)
        # Whole sizes, so that the pixels are made by a plain resize and crop.
        height = max(1, round(view.height * scale))
        width = max(1, round(view.width * scale))
        scaled = view.moved(scaling(height / view.height, width / view.width), height, width)
        return _cropped(scaled, self.height, self.width, self.fill, rng)


def _cropped(view: View, height: int, width: int, fill: tuple[int, ...], rng: np.random.Generator) -> View:
    top = int(rng.integers(max(view.height - height, 0), endpoint=True))
    left = int(rng.integers(max(view.width - width, 0), endpoint=True))
    return view.moved(translation(-left, -top), height, width, fill=fill)


def _start_around(centre: float, length: int, size: int, rng: np.random.Generator) -> int:
    """Where a crop of `size` begins along an axis of `length` so that the pixel of `centre` is in it."""
    pixel = min(int(centre), length - 1)
    most = max(length - size, 0)
    return int(rng.integers(max(min(pixel - size + 1, most), 0), min(pixel, most), endpoint=True))


def _learned(view: View) -> np.ndarray:
    """Boxes (G, 4) of the objects on the canvas that are no crowds."""
    if view.sample is None:
        return np.zeros((0, 4))
    shown = shown_on(view)
    return boxes_on(view)[shown[~view.sample.crowd[shown]]]


def _overlaps(boxes: np.ndarray, crop: tuple[int, int, int, int], least: float) -> bool:
    """Whether a crop holds the centre of one of the boxes (G, 4) and has at least this IoU with one such."""
    x1, y1, x2, y2 = crop
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    boxes = boxes[((centres > (x1, y1)) & (centres < (x2, y2))).all(axis=1)]
    sides = np.minimum(boxes[:, 2:], (x2, y2)) - np.maximum(boxes[:, :2], (x1, y1))
    common = sides.prod(axis=1)
    return bool((common >= least * (box_area(boxes) + (x2 - x1) * (y2 - y1) - common)).any())
