"""The ground-truth masks of a batch, and the targets that a mask head trains on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from toolbox.masks.ground_truth import Mask


class InstanceMasks:
    """Masks of every object of every image of a batch, on the host.

    Args:
        masks: per image, per object, in network pixels.
    """

    def __init__(self, masks: Sequence[Sequence[Mask]]) -> None:
        self.images: list[list[Mask]] = [list(image) for image in masks]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def rasterise(self, rois: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask targets: a pixel is set if its centre, in the region's own grid, lies in the object's mask.

        A row whose index names no object of its image (padding, background) is zero, as is a region of negative size.

        Args:
            rois: (R, 5), image index in the batch and x1 y1 x2 y2.
            index: (R,), which object of that image.
            size: height and width of the target.

        Returns:
            (R, height, width) float32 of 0 and 1 on the device of `rois`.
        """
        # The one wait for the device; what goes back is a byte a pixel.
        rows = torch.cat([rois.detach().double(), index.detach().double()[:, None]], dim=1).tolist()
        targets = np.zeros((len(rows), *size), np.uint8)
        for target, (image, *box, which) in zip(targets, rows, strict=True):
            masks = self.images[int(image)]
            if 0 <= which < len(masks):
                masks[int(which)].fill(box, target)
        return torch.from_numpy(targets).to(rois.device).float()
