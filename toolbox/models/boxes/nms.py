"""Non-maximum suppression over padded batches: one of the two places that may wait for the device."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, *, iou: float, keep: int
) -> tuple[Tensor, Tensor]:
    """Suppress boxes that overlap a better one of their group.

    Args:
        boxes: (N, R, 4).
        scores: (N, R).
        groups: (N, R) int64; boxes of different groups (classes, levels) do not suppress each other.
        valid: (N, R) bool.
        iou: boxes above this overlap with a better one go.
        keep: most boxes to keep per image.

    Returns:
        index (N, keep), valid (N, keep), by descending score; the index of a row that is not valid is 0.
    """
    dtype = torch.promote_types(boxes.dtype, torch.float32)  # there is none for 16 bits
    index = torch.zeros(len(boxes), keep, dtype=torch.int64, device=boxes.device)
    kept = torch.zeros_like(index, dtype=torch.bool)
    for image in range(len(boxes)):
        rows = valid[image].nonzero().squeeze(1)
        best = torchvision.ops.batched_nms(
            boxes[image, rows].to(dtype), scores[image, rows].to(dtype), groups[image, rows], iou
        )[:keep]
        index[image, : len(best)] = rows[best]
        kept[image, : len(best)] = True
    return index, kept
