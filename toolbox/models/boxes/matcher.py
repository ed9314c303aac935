"""Which object does a box belong to?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolbox.models.boxes.overlap import box_overlap


@dataclass
class Matches:
    """The assignment of R boxes of one image, or of N images with a leading dimension.

    Attributes:
        matched: (R,) int64, the object of highest overlap.
        foreground: (R,) bool.
        background: (R,) bool; a box that is neither counts in no loss.
    """

    matched: Tensor
    foreground: Tensor
    background: Tensor


@dataclass(frozen=True)
class Matcher:
    """Assign boxes to objects by intersection over union.

    A crowd is never a match; it silences the background that it covers.

    Args:
        foreground: least IoU of a foreground box.
        background: a box below this IoU with every object is background; between the two it is ignored.
        low_quality: also take, for each object, the boxes of its highest IoU, however low (Faster R-CNN,
            arXiv:1506.01497, section 3.1.2).
        crowd_overlap: background boxes with this share of their own area on a crowd are ignored.
    """

    foreground: float = 0.5
    background: float = 0.5
    low_quality: bool = False
    crowd_overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.background <= self.foreground <= 1:
            raise ValueError(f"needs 0 ≤ background ≤ foreground ≤ 1, got {self.background} and {self.foreground}")

    def match(self, boxes: Tensor, objects: Tensor, valid: Tensor, crowd: Tensor) -> Matches:
        """Assign the boxes of one image.

        Args:
            boxes: (R, 4).
            objects: (G, 4).
            valid: (G,) bool, False on padding.
            crowd: (G,) bool.
        """
        if objects.shape[0] == 0:
            nothing = torch.zeros(boxes.shape[0], dtype=torch.bool, device=boxes.device)
            return Matches(nothing.long(), nothing, ~nothing)
        overlap = box_overlap(objects, boxes, crowd)
        usable = (valid & ~crowd)[:, None]
        silenced = torch.where((valid & crowd)[:, None], overlap, 0.0).amax(0) >= self.crowd_overlap
        iou = torch.where(usable, overlap, -1.0)
        best, matched = iou.max(dim=0)
        foreground = best >= self.foreground
        if self.low_quality:
            highest = iou.amax(dim=1, keepdim=True)
            foreground = foreground | ((iou == highest) & (highest > 0)).any(dim=0)
        background = (best < self.background) & ~foreground & ~silenced
        return Matches(matched, foreground, background)

    def match_batch(self, boxes: Tensor, objects: Tensor, valid: Tensor, crowd: Tensor) -> Matches:
        """The same for N images: boxes (N, R, 4) or (R, 4) for all, objects (N, G, 4), valid and crowd (N, G)."""
        # Image by image: one (G, R) table at a time is the largest thing in a training step's matching.
        rows = boxes if boxes.dim() == 3 else boxes.expand(len(objects), *boxes.shape)
        found = [self.match(*image) for image in zip(rows, objects, valid, crowd, strict=True)]
        return Matches(*(torch.stack([getattr(match, name) for match in found]) for name in vars(found[0])))
