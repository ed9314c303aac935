"""COCO segmentations of a whole data set in one block of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

_POLYGONS, _COMPRESSED, _COUNTS = range(3)


def segmentation_fault(segmentation: Any, height: int, width: int) -> str:
    """What is wrong with a COCO segmentation of an image of that size; empty when nothing is."""
    if not segmentation:
        return "no segmentation, though other annotations have one"
    if isinstance(segmentation, Mapping):
        size = segmentation.get("size")
        if size != [height, width]:
            swapped = "; height and width are swapped" if size == [width, height] else ""
            return f"segmentation has size {size}; the image is [{height}, {width}] (height, width){swapped}"
        counts = segmentation.get("counts")
        if not isinstance(counts, (str, bytes, list)):
            return f"segmentation counts are {type(counts).__name__}; they are a string or a list"
        if isinstance(counts, str) and not counts.isascii():
            return "segmentation counts are no RLE: they have letters outside ASCII"
        if isinstance(counts, list) and not all(type(count) is int and count >= 0 for count in counts):
            return "segmentation counts are whole numbers from 0"
        if isinstance(counts, list) and sum(counts) != height * width:
            return f"segmentation counts add up to {sum(counts)}; the image has {height * width} pixels"
        return ""
    if not isinstance(segmentation, list) or not all(isinstance(ring, list) for ring in segmentation):
        return "segmentation is a list of polygons, [[x1, y1, x2, y2, …], …], or an RLE mapping"
    if any(isinstance(value, list) for ring in segmentation for value in ring):
        return "a polygon is one flat list of numbers, x1 y1 x2 y2 …"
    odd = next((len(ring) for ring in segmentation if len(ring) % 2), 0)
    if odd:
        return f"a polygon has an odd number ({odd}) of coordinates; they are x1 y1 x2 y2 …"
    rings = [np.asarray(ring) for ring in segmentation]
    if not all(ring.dtype.kind in "iuf" and np.isfinite(ring).all() for ring in rings):
        return "a polygon has a coordinate that is not a number"
    if all(len(ring) < 6 for ring in segmentation):
        return "no polygon of the segmentation has three points"
    return ""


def box_outline(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    """A box as a COCO segmentation: one polygon."""
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def rings_with_area(rings: Sequence[list[float]]) -> list[list[float]]:
    """Without rings of fewer than three points: they cover nothing, and pycocotools takes one for a box."""
    return [ring for ring in rings if len(ring) >= 6]


class SegmentationStore:
    """Packs A segmentations, each checked by `segmentation_fault`, and gives each back in COCO's form.

    Polygon rings of fewer than three points are left out. Coordinates are kept to float32.
    """

    def __init__(self, segmentations: Sequence[Any]) -> None:
        parts = []
        kinds = []
        for segmentation in segmentations:
            kind, packed = _pack(segmentation)
            kinds.append(kind)
            parts.append(packed)
        self._kinds = np.array(kinds, dtype=np.uint8)
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        self._bytes = np.frombuffer(b"".join(parts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._kinds)

    def get(self, index: int, height: int, width: int) -> list[np.ndarray] | dict[str, Any]:
        """Segmentation of object `index`, which lies on an image of that size; polygons as flat float32 arrays."""
        packed = self._bytes[self._starts[index] : self._starts[index + 1]].tobytes()
        kind = self._kinds[index]
        if kind == _COMPRESSED:
            return {"size": [height, width], "counts": packed}
        if kind == _COUNTS:
            return {"size": [height, width], "counts": np.frombuffer(packed, dtype=np.uint32).tolist()}
        rings = int(np.frombuffer(packed, dtype=np.int32, count=1)[0])
        lengths = np.frombuffer(packed, dtype=np.int32, count=rings, offset=4)
        numbers = np.frombuffer(packed, dtype=np.float32, offset=4 + 4 * rings)
        ends = list(accumulate(lengths.tolist(), initial=0))
        return [numbers[start:end] for start, end in pairwise(ends)]


def _pack(segmentation: Any) -> tuple[int, bytes]:
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if isinstance(counts, list):
            return _COUNTS, np.array(counts, dtype=np.uint32).tobytes()
        return _COMPRESSED, counts.encode("ascii") if isinstance(counts, str) else counts
    rings = rings_with_area(segmentation)
    lengths = np.array([len(rings), *map(len, rings)], dtype=np.int32)
    numbers = np.array([value for ring in rings for value in ring], dtype=np.float32)
    return _POLYGONS, lengths.tobytes() + numbers.tobytes()
