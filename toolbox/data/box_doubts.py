"""Boxes that read well one by one and are all wrong: corners, fractions of the image, pixels of a larger one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOLERANCE = 1.0  # pixels that a box may stick out of its image: rounding, in COCO itself
_SUSPICIOUS = 0.05  # share of boxes that leave their image from which on they are probably written otherwise
_MOST = 0.5  # share from which on they certainly are
_FEWEST = 4  # boxes to judge by


@dataclass
class BoxDoubts:
    """Counts over the boxes of a file, and what they say together.

    Attributes:
        total: boxes.
        leaving: boxes that stick out of their image, or lie outside.
        corners: boxes that would lie in their image as x1 y1 x2 y2.
        fractions: boxes that lie in the first pixel of a larger image.
        example: the first that leaves its image, or the first of all.
    """

    total: int = 0
    leaving: int = 0
    corners: int = 0
    fractions: int = 0
    example: str = ""

    def add(self, box: Sequence[float], name: str, height: int, width: int) -> None:
        """Count a box, x y width height."""
        x, y, w, h = box
        leaves = max(-x, -y, x + w - width, y + h - height) > TOLERANCE
        if not self.example or (leaves and not self.leaving):
            self.example = f"{name}: bbox {list(box)} in an image of {width} x {height}"
        self.total += 1
        self.leaving += leaves
        self.corners += -TOLERANCE <= x < w <= width + TOLERANCE and -TOLERANCE <= y < h <= height + TOLERANCE
        self.fractions += x + w <= 1 and y + h <= 1 and min(height, width) > 1

    @property
    def _share(self) -> float:
        return self.leaving / max(1, self.total)

    def hint(self) -> str:
        """What is to be suspected, where some boxes leave their image; empty otherwise."""
        if self._share <= _SUSPICIOUS:
            return ""
        question = "are they x1 y1 x2 y2? COCO wants x y width height"
        return f"{self._share:.0%} of the boxes leave their image: {question}"

    def verdict(self) -> str:
        """Why the boxes cannot be what COCO says they are, and what to do; empty where they can."""
        if self.total and self.fractions == self.total:
            return (
                f"all boxes lie in the first pixel of their image, e.g. {self.example}: they are fractions of the "
                "image, and COCO wants pixels; multiply x and width by the image's width, y and height by its height"
            )
        if self.total < _FEWEST or self._share <= _MOST:
            return ""
        leaving = f"{self._share:.0%} of the boxes leave their image, e.g. {self.example}"
        if self.corners == self.total:
            return (
                f"{leaving}; all of them fit as corners x1 y1 x2 y2, and COCO wants x y width height: "
                "set 'boxes: xyxy' to read them as corners, or 'boxes: xywh' if they are right as they are"
            )
        return (
            f"{leaving}; do they belong to images of another size? Scale them or correct the images' width and "
            "height; 'boxes: xywh' takes them as they are"
        )


def with_sizes(content: dict[str, Any]) -> dict[str, Any]:
    """A COCO file whose boxes are corners x1 y1 x2 y2, with x y width height instead; what is no box stays."""

    def converted(record: Any) -> Any:
        box = record.get("bbox") if isinstance(record, Mapping) else None
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
            return record
        x1, y1, x2, y2 = box
        return {**record, "bbox": [x1, y1, x2 - x1, y2 - y1]}

    return {**content, "annotations": [converted(record) for record in content["annotations"]]}
