"""What mask heads have in common, whatever layers make their logits: loss, probabilities, and masks in the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolbox.masks import encode_roi_masks
from toolbox.models.interfaces import Loss
from toolbox.models.losses import BinaryCrossEntropy, CrossEntropy
from toolbox.structures import Regions, Targets

Activation = Literal["sigmoid", "softmax"]
Convention = Literal["torchvision", "detectron2"]


class MaskOutput(nn.Module):
    """What logits (R, `channels`, M, M) mean: a mask per class, or classes that compete at each pixel.

    With `sigmoid` the loss is on the mask of the true class alone (*Mask R-CNN*, arXiv:1703.06870, section 3). With
    `softmax` each pixel has one of K classes or, last, background, as in semantic segmentation (table 2b).

    Args:
        num_classes: K, without background.
        activation: which of the two.
        class_agnostic: one mask per region instead of one per class.
        loss: per mask pixel, averaged; binary cross-entropy or cross-entropy if None.
        threshold: probability above which a pixel is in the mask.
        convention: whose sampling pastes the mask into the image.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        activation: Activation,
        class_agnostic: bool,
        loss: Loss | None,
        threshold: float,
        convention: Convention,
    ) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold lies between 0 and 1, got {threshold}")
        right, wrong = BinaryCrossEntropy, CrossEntropy
        if activation == "softmax":
            right, wrong = wrong, right  # type: ignore[assignment]
        if isinstance(loss, wrong):
            raise ValueError(
                f"loss {wrong.__name__} does not go with activation '{activation}'; "
                f"leave it out, or give {right.__name__}"
            )
        self.activation = activation
        self.masks = 1 if class_agnostic else num_classes
        self.channels = self.masks + 1 if activation == "softmax" else self.masks
        self.pixel_loss = loss or right()
        self.threshold = threshold
        self.convention = convention

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        """Mean loss over the pixels of each valid region."""
        if len(regions.rois) == 0:
            return {"mask": prediction.float().sum() * 0}
        if targets.masks is None:
            raise ValueError("the mask head needs ground-truth masks, but the data set has none (no 'segmentation')")
        height, width = prediction.shape[-2:]
        wanted = targets.masks.rasterise(regions.rois, regions.matched, (height, width))
        own = self._mask_of(regions.labels)
        if self.activation == "sigmoid":
            pixels = self.pixel_loss(_chosen(prediction, own), wanted)
        else:
            background = torch.full_like(own, self.masks)[:, None, None]
            pixels = self.pixel_loss(prediction, torch.where(wanted > 0.5, own[:, None, None], background))
        of_region = torch.where(regions.valid, pixels.mean(dim=(1, 2)), 0.0)
        return {"mask": of_region.sum() / regions.valid.sum().clamp(min=1)}

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Logits and classes (R,) → probabilities (R, M, M) that a pixel is of the region's own class."""
        own = _chosen(prediction, self._mask_of(labels)).float()
        if self.activation == "sigmoid":
            return own.sigmoid()
        return (own - prediction.float().logsumexp(dim=1)).exp()

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> Mapping[str, Any]:
        """Probabilities (D, M, M) and boxes (D, 4) of one image → COCO RLE, without a full-size bitmap."""
        masks = encode_roi_masks(values, boxes, height, width, threshold=self.threshold, convention=self.convention)
        return {"masks": masks}

    def _mask_of(self, labels: Tensor) -> Tensor:
        """Classes (R,) → the masks (R,) that stand for them; background, which counts nowhere, has that of another."""
        return labels.clamp(max=self.masks - 1)


def _chosen(prediction: Tensor, channel: Tensor) -> Tensor:
    """(R, channels, M, M) and (R,) → (R, M, M)."""
    index = channel[:, None, None, None].expand(-1, 1, *prediction.shape[-2:])
    return prediction.gather(1, index).squeeze(1)
