"""Masks as plain arrays, for files that hold tensors and nothing else, and back without a bit lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolbox.masks.ground_truth import BitmapMask, Mask, PolygonMask
from toolbox.masks.instance import InstanceMasks

Arrays = dict[str, NDArray[Any]]


def masks_to_arrays(masks: InstanceMasks) -> Arrays:
    """Masks of a batch, M in all, in the order of images and objects.

    Returns:
        per_image: (N,) int64, masks of each image.
        matrices: (M, 2, 3) float64, from each mask's own frame to the image.
        parts: (M,) int64, polygons of each mask; -1 where it is a bitmap.
        vertices: (P,) int64, vertices of each polygon.
        points: (V, 2) float64, the vertices.
        patches: (B, 4) int64, x, y, height and width of each bitmap's patch.
        pixels: uint8, the patches row by row, one after the other.
    """
    every = [mask for image in masks.images for mask in image]
    polygons = [part for mask in every if isinstance(mask, PolygonMask) for part in mask.parts]
    bitmaps = [mask for mask in every if isinstance(mask, BitmapMask)]
    return {
        "per_image": np.array([len(image) for image in masks.images], np.int64),
        "matrices": np.array([mask.matrix for mask in every], np.float64).reshape(-1, 2, 3),
        "parts": np.array([len(mask.parts) if isinstance(mask, PolygonMask) else -1 for mask in every], np.int64),
        "vertices": np.array([len(part) for part in polygons], np.int64),
        "points": np.concatenate([np.zeros((0, 2)), *polygons]),
        "patches": np.array([(m.x, m.y, *m.patch.shape) for m in bitmaps], np.int64).reshape(-1, 4),
        "pixels": np.concatenate([np.zeros(0, np.uint8), *(mask.patch.ravel() for mask in bitmaps)]),
    }


def masks_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> InstanceMasks:
    """What `masks_to_arrays` was given.

    Raises:
        KeyError, ValueError: the arrays contradict each other.
    """
    vertices, patches = arrays["vertices"].tolist(), arrays["patches"].tolist()
    polygons = iter(_cut(arrays["points"].reshape(-1, 2), vertices))
    pixels = _cut(arrays["pixels"].ravel(), [height * width for _, _, height, width in patches])
    bitmaps = iter(list(zip(patches, pixels, strict=True)))
    every: list[Mask] = []
    for parts, matrix in zip(arrays["parts"].tolist(), arrays["matrices"], strict=True):
        try:
            if parts >= 0:
                every.append(PolygonMask([next(polygons) for _ in range(parts)], matrix))
            else:
                (x, y, height, width), patch = next(bitmaps)
                every.append(BitmapMask(patch.reshape(height, width), x, y, matrix))
        except StopIteration:
            raise ValueError("there are fewer polygons or bitmaps than masks name") from None
    per_image = arrays["per_image"].tolist()
    if min(per_image, default=0) < 0 or sum(per_image) != len(every):
        raise ValueError(f"the images have {sum(per_image)} masks, but there are {len(every)}")
    given = iter(every)
    return InstanceMasks([[next(given) for _ in range(count)] for count in per_image])


def _cut(values: NDArray[Any], lengths: list[int]) -> list[NDArray[Any]]:
    """Consecutive pieces of `values`, of `lengths`."""
    if min(lengths, default=0) < 0 or sum(lengths) != len(values):
        raise ValueError(f"pieces of {sum(lengths)} in all do not make up {len(values)}")
    return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []
