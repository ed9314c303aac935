"""Areas and overlaps of boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """(…, 4) → (…), width × height in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_overlap(objects: Tensor, boxes: Tensor, crowd: Tensor | None = None) -> Tensor:
    """Intersection over union, or over the box's own area where the object is a crowd (as COCO's evaluation does).

    Args:
        objects: (G, 4).
        boxes: (R, 4).
        crowd: (G,) bool.

    Returns:
        (G, R), zero where the denominator is zero.
    """
    a, b = objects[:, None, :], boxes[None, :, :]
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    intersection = width.mul_(height)
    own = box_area(boxes)[None, :]
    union = own + box_area(objects)[:, None] - intersection
    if crowd is not None:
        union = torch.where(crowd[:, None], own, union)
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes to their images.

    Args:
        boxes: (N, …, 4).
        sizes: (N, 2), height and width.
    """
    shape = (len(sizes),) + (1,) * (boxes.dim() - 2)
    height = sizes[:, 0].to(boxes.dtype).reshape(shape)
    width = sizes[:, 1].to(boxes.dtype).reshape(shape)
    zero = torch.zeros((), dtype=boxes.dtype, device=boxes.device)
    x = boxes[..., 0::2].maximum(zero).minimum(width[..., None])
    y = boxes[..., 1::2].maximum(zero).minimum(height[..., None])
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)
