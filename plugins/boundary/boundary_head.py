"""A plugin: the outline of each detected object, as a task of its own beside the mask.

Nothing here but what any third party can import. Use it by naming this file in a YAML (see boundary.yaml):

    plugins: [boundary_head.py]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolbox.registry import INSTANCE_HEADS
from toolbox.structures import Regions, RoIShape, Targets


@INSTANCE_HEADS.register
class BoundaryHead(nn.Module):
    """Predict an edge map per instance.

    The target is the mask inside the region less its erosion, an outline of `thickness` pixels at the head's own
    resolution. Few pixels are edges, so their loss weighs more.

    Args:
        in_shape: (R, C, P, P).
        num_classes: K; not used, one outline serves all classes.
        channels: width of the two convolutions.
        thickness: erosions between mask and outline.
        edge_weight: weight of an edge pixel against any other.
        weight: of the loss.
    """

    needs: ClassVar[tuple[str, ...]] = ("masks",)  # a data set without them is refused before the first step

    def __init__(
        self,
        in_shape: RoIShape,
        num_classes: int,
        *,
        channels: int = 64,
        thickness: int = 1,
        edge_weight: float = 3.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.size = (2 * in_shape.height, 2 * in_shape.width)
        self.thickness = thickness
        self.edge_weight = edge_weight
        self.weight = weight
        self.layers = nn.Sequential(
            nn.Conv2d(in_shape.channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 1),
        )

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, P, P) → edge logits (R, 2 P, 2 P)."""
        return self.layers(regions).squeeze(1)

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        """Weighted binary cross-entropy against the outline of the matched object."""
        if len(regions.rois) == 0:
            return {"edge": prediction.float().sum() * 0}
        if targets.masks is None:
            raise ValueError("BoundaryHead needs ground-truth masks, but the data set has none")
        wanted = outline(targets.masks.rasterise(regions.rois, regions.matched, self.size), self.thickness)
        weight = torch.where(wanted > 0, self.edge_weight, 1.0)
        pixels = F.binary_cross_entropy_with_logits(prediction.float(), wanted, weight, reduction="none")
        loss = torch.where(regions.valid, pixels.mean(dim=(1, 2)), 0.0).sum() / regions.valid.sum().clamp(min=1)
        return {"edge": self.weight * loss}

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Edge logits → edge probabilities (R, 2 P, 2 P)."""
        return prediction.float().sigmoid()

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> Mapping[str, Any]:
        """Edge probabilities (D, 2 P, 2 P) inside each box, as `extras["boundary"]`."""
        return {"boundary": values}


def outline(masks: Tensor, thickness: int) -> Tensor:
    """(R, M, M) of 0 and 1 → the pixels that `thickness` erosions by a 3×3 square take away.

    Outside the region counts as object, so a mask that the region cuts has no edge at the cut.
    """
    eroded = masks[:, None]
    for _ in range(thickness):
        eroded = -F.max_pool2d(-eroded, 3, stride=1, padding=1)
    return masks - eroded.squeeze(1)
