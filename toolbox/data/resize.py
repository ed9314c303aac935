"""The one owner of resizing: training's loader, evaluation's loader and the Predictor all call it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image

ResizeMethod = Literal["cv2", "torchvision", "pil"]


@dataclass(frozen=True)
class Resize:
    """Scale an image so that its short edge is `short`, or its long edge `max` where that is smaller.

    Attributes:
        short: short edge in pixels; in training a list is drawn from, in evaluation its largest is used.
        max: most pixels of the long edge.
        draw: `choice` takes one of `short`'s values, `range` any whole number between its smallest and largest.
        method: `cv2` is the fast one; `pil` has an antialias filter; `torchvision` gives the sizes and pixels of
            torchvision's detectors (float bilinear without antialias, sizes rounded down; here rounded to uint8).
    """

    short: int | list[int] = 800
    max: int = 1333
    draw: Literal["choice", "range"] = "choice"
    method: ResizeMethod = "cv2"

    def __post_init__(self) -> None:
        if not self.shorts or any(short < 1 for short in self.shorts):
            raise ValueError(f"short is a size in pixels or a list of such, not {self.short}")
        if self.max < self.shorts[-1]:
            raise ValueError(
                f"max bounds the long edge, so it is at least short ({self.shorts[-1]}), got {self.max}; "
                "raise max or lower short"
            )
        if self.draw not in ("choice", "range"):
            raise ValueError(f"draw is 'choice' or 'range', not '{self.draw}'")
        if self.method not in ("cv2", "torchvision", "pil"):
            raise ValueError(f"method is 'cv2', 'torchvision' or 'pil', not '{self.method}'")

    @property
    def shorts(self) -> tuple[int, ...]:
        """The values of `short`, ascending."""
        return (self.short,) if isinstance(self.short, int) else tuple(sorted(self.short))

    def draw_short(self, rng: np.random.Generator) -> int:
        """A short edge for one training image."""
        if self.draw == "range":
            return int(rng.integers(self.shorts[0], self.shorts[-1], endpoint=True))
        return int(rng.choice(self.shorts))

    def size(self, height: int, width: int, short: int | None = None) -> tuple[int, int]:
        """Height and width of an image after resizing; `short` as drawn, or evaluation's."""
        return resized_size(height, width, short or self.shorts[-1], self.max, self.method)


def resized_size(height: int, width: int, short: int, longest: int, method: ResizeMethod = "cv2") -> tuple[int, int]:
    """Height and width with the short edge `short`, but no edge over `longest`; at least one pixel.

    Sizes are rounded to the nearest pixel, or down for `torchvision`, as its GeneralizedRCNNTransform does.
    """
    scale = min(short / min(height, width), longest / max(height, width))
    offset = 0.0 if method == "torchvision" else 0.5
    return max(1, math.floor(height * scale + offset)), max(1, math.floor(width * scale + offset))


def scale_pixels(image: np.ndarray, height: int, width: int, method: ResizeMethod = "cv2") -> np.ndarray:
    """Bilinear resize of (h, w, C) uint8 to (height, width, C) uint8; the image itself when it has that size."""
    if image.shape[:2] == (height, width):
        return image
    if method == "cv2":
        return in_groups(image, lambda part: cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR), most=4)
    if method == "pil":
        # Pillow takes other numbers of channels for colours with alpha, by which it would multiply them.
        return in_groups(image, lambda part: _by_pillow(part, height, width), most=3 if image.shape[2] == 3 else 1)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def in_groups(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray], *, most: int) -> np.ndarray:
    """Apply what knows only images of a few channels to (h, w, C), `most` channels at a time.

    Args:
        image: (h, w, C).
        function: (h, w, c ≤ most) → (H, W, c), or (H, W) where c is 1.
        most: channels that it takes.

    Returns:
        (H, W, C).
    """
    starts = range(0, image.shape[2], most)
    parts = [image] if len(starts) == 1 else [np.ascontiguousarray(image[..., i : i + most]) for i in starts]
    done = [part if part.ndim == 3 else part[..., None] for part in map(function, parts)]
    return done[0] if len(done) == 1 else np.concatenate(done, axis=2)


def _by_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    plain = image[..., 0] if image.shape[2] == 1 else image
    return np.array(Image.fromarray(plain).resize((width, height), Image.Resampling.BILINEAR))


def resize_image(image: np.ndarray, resize: Resize | None) -> np.ndarray:
    """Bring an image (h, w, C) uint8 to network size, as evaluation does; None keeps its size."""
    if resize is None:
        return image
    return scale_pixels(image, *resize.size(*image.shape[:2]), resize.method)
