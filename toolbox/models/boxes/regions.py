"""Padded batches of boxes to one list of regions, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from toolbox.structures import Regions


def to_regions(boxes: Tensor, valid: Tensor, *, labels: Tensor | None = None, matched: Tensor | None = None) -> Regions:
    """Flatten a padded batch and drop its padding.

    Dropping waits for the device, and pays: ten detections must not cost a hundred mask heads, and padding would enter
    the statistics of a batch norm. Under export every row stays, so that shapes are fixed.

    Args:
        boxes: (N, S, 4).
        valid: (N, S) bool.
        labels: (N, S) int64, zeros if None.
        matched: (N, S) int64, zeros if None.
    """
    images, capacity = valid.shape
    image = torch.arange(images, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(images, capacity, 1)
    zeros = torch.zeros_like(valid, dtype=torch.int64)
    regions = Regions(
        rois=torch.cat((image, boxes), dim=-1).flatten(0, 1),
        labels=(zeros if labels is None else labels).flatten(),
        matched=(zeros if matched is None else matched).flatten(),
        valid=valid.flatten(),
        rows=torch.arange(images * capacity, device=boxes.device),
    )
    if torch.compiler.is_exporting():
        return regions
    return regions.subset(regions.valid.nonzero().squeeze(1))


def to_padded(values: Tensor, regions: Regions, shape: torch.Size) -> Tensor:
    """Put per-region values (R, …) back at their places of a padded batch (N, S, …), zero elsewhere.

    Args:
        values: (R, …).
        regions: the regions that the values belong to.
        shape: (N, S) of the padded batch.
    """
    padded = values.new_zeros(shape.numel(), *values.shape[1:])
    return padded.index_copy(0, regions.rows, values).unflatten(0, tuple(shape))
