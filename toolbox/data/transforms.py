"""Geometric augmentations: each follows the view's map with one more, and no pixel is read here."""

from __future__ import annotations

import numpy as np

from toolbox.data.geometry import horizontal_flip, scaling, translation, vertical_flip
from toolbox.data.interfaces import IMAGENET_GREY, View
from toolbox.registry import TRANSFORMS


def check_probability(prob: float) -> float:
    """Return `prob`, if it is one."""
    if not 0 <= prob <= 1:
        raise ValueError(f"prob lies between 0 and 1, got {prob}")
    return prob


def _check_canvas(height: int, width: int) -> tuple[int, int]:
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
    """Crop of a fixed size at a random place; an image smaller than it is padded at the right and bottom."""

    def __init__(self, *, height: int, width: int, fill: tuple[int, ...] = IMAGENET_GREY) -> None:
        self.height, self.width = _check_canvas(height, width)
        self.fill = fill

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        return _cropped(view, self.height, self.width, self.fill, rng)


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
        self.height, self.width = _check_canvas(height, width)
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
