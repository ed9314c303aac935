"""torchvision's Mask R-CNN behind the toolbox's detector interface, so that both are trained by the same loop on the
same batches and judged by the same evaluator. A plugin: benchmarks/nuclei_torchvision.yaml names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from toolbox.models.box_branch import TestSettings
from toolbox.models.interfaces import Backbone
from toolbox.registry import DETECTORS
from toolbox.structures import Detections, Targets


class PyramidBackbone(nn.Module):
    """A toolbox backbone under torchvision's FPN, with the level names that torchvision expects."""

    def __init__(self, body: Backbone, channels: int) -> None:
        super().__init__()
        self.body = body
        self.out_channels = channels
        widths = [spec.channels for spec in body.out_features.values()]
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(index): x for index, x in enumerate(self.body(images).values())})


@DETECTORS.register
class TorchvisionMaskRCNN(nn.Module):
    """torchvision.models.detection.MaskRCNN over any backbone of ours; settings not named here are torchvision's.

    Args:
        num_classes: K.
        test: which detections come out.
        backbone: of the toolbox.
        channels: of the pyramid and of the mask head.
        anchors: one size per level.
        box_channels: width of the box head.
        box_samples: regions per image that it trains on.
    """

    def __init__(
        self,
        num_classes: int,
        test: TestSettings,
        *,
        backbone: Backbone,
        channels: int = 128,
        anchors: Sequence[int] = (8, 16, 32, 64, 128),
        box_channels: int = 512,
        box_samples: int = 128,
    ) -> None:
        super().__init__()
        levels = [str(index) for index in range(4)]
        self.model = MaskRCNN(
            PyramidBackbone(backbone, channels),
            rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in anchors), ((0.5, 1.0, 2.0),) * len(anchors)),
            box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(channels * 49, box_channels),
            box_predictor=FastRCNNPredictor(box_channels, num_classes + 1),
            mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
            mask_head=MaskRCNNHeads(channels, [channels] * 4, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
            image_mean=list(backbone.pixels.mean),
            image_std=list(backbone.pixels.std),
            box_batch_size_per_image=box_samples,
            box_score_thresh=test.score_threshold,
            box_nms_thresh=test.nms,
            box_detections_per_img=test.detections,
        )
        # Images come at network size: the resize is the data's, the same for both models.
        self.model.transform.resize = lambda image, target: (image, target)

    def forward(self, images: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        pixels = [image.to(device).float() / 255 for image in images]
        return self.model(pixels, [self._target(targets, index, image) for index, image in enumerate(pixels)])

    @staticmethod
    def _target(targets: Targets, index: int, image: Tensor) -> dict[str, Tensor]:
        """torchvision's own form: labels from 1, one full-size bitmap per object."""
        rows = targets.valid[index] & ~targets.crowd[index]
        height, width = image.shape[-2:]
        masks = targets.masks.images[index]  # type: ignore[union-attr]
        bitmaps = [masks[row].bitmap(height, width) for row in rows.nonzero()[:, 0].tolist()]
        stack = np.stack(bitmaps) if bitmaps else np.zeros((0, height, width), np.uint8)
        return {
            "boxes": targets.boxes[index, rows].to(image.device),
            "labels": targets.labels[index, rows].to(image.device) + 1,
            "masks": torch.from_numpy(stack).to(image.device),
        }

    @torch.no_grad()
    def predict(
        self,
        images: Sequence[Tensor],
        original_sizes: Sequence[tuple[int, int]] | None = None,
        image_ids: Sequence[int] = (),
    ) -> list[Detections]:
        device = next(self.parameters()).device
        batch, _ = self.model.transform([image.to(device).float() / 255 for image in images])
        features = self.model.backbone(batch.tensors)
        proposals, _ = self.model.rpn(batch, features)
        found, _ = self.model.roi_heads(features, proposals, batch.image_sizes)
        sizes = [tuple(size) for size in original_sizes or batch.image_sizes]
        found = self.model.transform.postprocess(found, batch.image_sizes, sizes)
        ids = list(image_ids) or list(range(len(images)))
        return [_detections(*image) for image in zip(found, sizes, ids, strict=True)]


def _detections(found: Mapping[str, Tensor], size: tuple[int, int], image_id: int) -> Detections:
    bitmaps = (found["masks"][:, 0] > 0.5).to(torch.uint8).cpu().numpy()
    masks: list[dict[str, Any]] = [coco_mask.encode(np.asfortranarray(bitmap)) for bitmap in bitmaps]
    return Detections(
        image_size=size,
        boxes=found["boxes"].cpu(),
        scores=found["scores"].cpu(),
        labels=found["labels"].cpu() - 1,
        masks=masks,
        image_id=image_id,
    )
