"""Ground-truth masks: polygons or a bitmap in a frame of their own, and an affine map to the current image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolbox.errors import counted
from toolbox.masks.raster import fill_polygons, sample_bitmap
from toolbox.masks.rle import decode_box, encode_bitmap, read_counts

Floats = NDArray[np.float64]
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


class _Mapped(ABC):
    """An affine map (2, 3) from the mask's own frame to the current image; pixel i covers [i, i + 1) in both."""

    matrix: Floats

    def _composed(self, matrix: ArrayLike) -> Floats:
        """`matrix` after the map so far."""
        after = _checked_matrix(matrix)
        composed = after[:, :2] @ self.matrix
        composed[:, 2] += after[:, 2]
        return composed

    @abstractmethod
    def fill(self, box: Sequence[float], out: NDArray[np.uint8]) -> None:
        """Set the pixels of `out` (h, w), zeros laid over `box` (x1 y1 x2 y2), whose centre lies in the mask."""

    def bitmap(self, height: int, width: int) -> NDArray[np.uint8]:
        """The mask in the current image: (height, width) of 0 and 1, set where a pixel's centre lies in the mask."""
        out = np.zeros((height, width), np.uint8)
        if out.size:
            self.fill((0, 0, width, height), out)
        return out

    def to_rle(self, height: int, width: int) -> dict[str, Any]:
        """`bitmap` as a compressed COCO RLE."""
        return encode_bitmap(self.bitmap(height, width))


class PolygonMask(_Mapped):
    """The union of polygons; within one polygon the even-odd rule holds.

    Args:
        parts: (P, 2) vertices of each polygon.
        matrix: (2, 3), from the vertices' frame to the current image.
    """

    def __init__(self, parts: Sequence[ArrayLike], matrix: ArrayLike = IDENTITY) -> None:
        self.parts = [np.asarray(part, np.float64) for part in parts]
        self.matrix = _checked_matrix(matrix)
        for part in self.parts:
            if part.ndim != 2 or part.shape[1] != 2 or len(part) < 3:
                raise ValueError(f"a polygon is (P, 2) with at least 3 points, got {part.shape}")

    def transformed(self, matrix: ArrayLike) -> PolygonMask:
        """The mask after a further affine map (2, 3)."""
        moved = PolygonMask.__new__(PolygonMask)
        moved.parts, moved.matrix = self.parts, self._composed(matrix)
        return moved

    @cached_property
    def points(self) -> Floats:
        """(V, 2) vertices of all parts in the current image."""
        if not self.parts:
            return np.zeros((0, 2))
        points = np.concatenate(self.parts)
        return points[:, :1] * self.matrix[:, 0] + points[:, 1:] * self.matrix[:, 1] + self.matrix[:, 2]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(parts + 1,) where each part begins in `points`, and V."""
        return np.cumsum([0, *map(len, self.parts)], dtype=np.int64)

    def box(self) -> NDArray[np.float32]:
        """(4,) tight box in the current image; zeros without parts."""
        return _extent(self.points)

    def fill(self, box: Sequence[float], out: NDArray[np.uint8]) -> None:
        fill_polygons(self.points, self.starts, box, out)


class BitmapMask(_Mapped):
    """A bitmap that holds only its own box.

    Args:
        patch: (h, w) uint8, not zero where set.
        x: of the patch's upper left pixel in the bitmap's frame.
        y: the same.
        matrix: (2, 3), from the bitmap's frame to the current image.
    """

    def __init__(self, patch: NDArray[np.uint8], x: int, y: int, matrix: ArrayLike = IDENTITY) -> None:
        self.patch = np.ascontiguousarray(patch, dtype=np.uint8)
        self.x, self.y = x, y
        self.matrix = _checked_matrix(matrix)
        if self.patch.ndim != 2:
            raise ValueError(f"the patch of a bitmap mask is (h, w), got {self.patch.shape}")

    @classmethod
    def from_rle(cls, rle: Mapping[str, Any]) -> BitmapMask:
        """Decode an RLE, compressed or not, inside its own box.

        Raises:
            ValueError: the RLE is broken.
        """
        return cls(*decode_box(read_counts(rle), rle["size"][0]))

    def transformed(self, matrix: ArrayLike) -> BitmapMask:
        """The mask after a further affine map (2, 3)."""
        moved = BitmapMask.__new__(BitmapMask)
        moved.patch, moved.x, moved.y, moved.matrix = self.patch, self.x, self.y, self._composed(matrix)
        return moved

    @cached_property
    def to_patch(self) -> Floats | None:
        """(2, 3) map from the current image into the patch; None if the map has no inverse."""
        (a, b, tx), (c, d, ty) = self.matrix.tolist()
        area = a * d - b * c
        if area == 0 or not np.isfinite(1 / area):
            return None
        inverse = np.array([[d, -b], [-c, a]]) / area
        offset = [-inverse[0, 0] * tx - inverse[0, 1] * ty - self.x, -inverse[1, 0] * tx - inverse[1, 1] * ty - self.y]
        return np.column_stack([inverse, offset])

    def box(self) -> NDArray[np.float32]:
        """(4,) tight box of the set pixels in the current image; zeros if none is set."""
        rows = np.flatnonzero(self.patch.any(axis=1))
        used = self.patch[rows] != 0
        if rows.size == 0:
            return np.zeros(4, np.float32)
        # An affine map takes its extremes at corners of the outermost pixels of the rows.
        left = self.x + used.argmax(axis=1)
        right = self.x + used.shape[1] - used[:, ::-1].argmax(axis=1)
        top = self.y + rows
        corners = np.concatenate(
            [np.column_stack([across, down]) for across in (left, right) for down in (top, top + 1)]
        ).astype(np.float64)
        return _extent(corners[:, :1] * self.matrix[:, 0] + corners[:, 1:] * self.matrix[:, 1] + self.matrix[:, 2])

    def fill(self, box: Sequence[float], out: NDArray[np.uint8]) -> None:
        if self.to_patch is not None:
            sample_bitmap(self.patch, self.to_patch, box, out)


Mask = PolygonMask | BitmapMask


def mask_from_coco(segmentation: Any, height: int, width: int) -> Mask:
    """A COCO `segmentation` of an image: a list of polygons (flat lists x1 y1 x2 y2 …), or an RLE, compressed or not.

    Raises:
        ValueError: what is wrong with it.
    """
    if isinstance(segmentation, Mapping):
        size = segmentation.get("size")
        if not isinstance(size, list | tuple) or list(size) != [height, width]:
            raise ValueError(f"the RLE's size is {size}, but the image has height and width {[height, width]}")
        return BitmapMask.from_rle(segmentation)
    if not isinstance(segmentation, list | tuple):
        raise ValueError(
            f"a segmentation is a list of polygons or an RLE ({{'size', 'counts'}}), got {type(segmentation).__name__}"
        )
    if not segmentation:
        raise ValueError("the segmentation has no polygon")
    return PolygonMask([_checked_polygon(polygon, i) for i, polygon in enumerate(segmentation)])


def _checked_polygon(polygon: Any, position: int) -> Floats:
    """Flat list → (P, 2)."""
    try:
        flat = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        flat = np.zeros(())
    if flat.ndim != 1:
        raise ValueError(f"polygon {position} is not a flat list of numbers x1 y1 x2 y2 …: {str(polygon)[:60]}")
    if flat.size % 2:
        raise ValueError(f"polygon {position} has an odd number of coordinates ({flat.size})")
    if flat.size < 6:
        raise ValueError(f"polygon {position} has {counted(flat.size // 2, 'point')}; at least 3 make an area")
    if not np.isfinite(flat).all():
        raise ValueError(f"polygon {position} has coordinates that are not finite")
    return flat.reshape(-1, 2)


def _checked_matrix(matrix: ArrayLike) -> Floats:
    checked = np.asarray(matrix, np.float64)
    if checked.shape != (2, 3):
        raise ValueError(f"an affine map is (2, 3), got {checked.shape}")
    return checked


def _extent(points: Floats) -> NDArray[np.float32]:
    """(V, 2) → x1 y1 x2 y2."""
    if len(points) == 0:
        return np.zeros(4, np.float32)
    return np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(np.float32)
