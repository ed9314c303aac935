"""With torchvision's weights our models give torchvision's detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.resnet import Bottleneck

import toolbox
from toolbox.models.box_branch import TestSettings
from toolbox.weights.torchvision import from_torchvision

CONFIG = Path(__file__).resolve().parents[2] / "configs/torchvision/mask_rcnn_r50_fpn.yaml"
CLASSES = 5


def peer() -> nn.Module:
    """Random weights, damped so that proposals do not collapse, with scores that differ from region to region."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    for module in model.backbone.body.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.2)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.05)
    model.transform.resize = lambda image, target: (image, target)
    return model.eval().double()


def ours(state: dict[str, Tensor]) -> nn.Module:
    config = toolbox.load_config(CONFIG, ["model.backbone.weights=null", "model.backbone.norm=bn"])
    model = toolbox.build_detector(config, classes=[str(index) for index in range(CLASSES)]).double()
    model.load_state_dict(from_torchvision(state))
    model.box.test = TestSettings(score_threshold=0.1, nms=0.5, detections=50)
    return model.eval()


def test_detections_and_masks_equal_torchvisions_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 6, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(192, 256), mode="bicubic").clamp(0, 1)
    images = [(smooth[0] * 255).byte(), (smooth[1, :, :160, :224] * 255).byte()]
    theirs = peer()
    theirs.roi_heads.score_thresh, theirs.roi_heads.detections_per_img = 0.1, 50
    with torch.no_grad():
        expected = theirs([image.double() / 255 for image in images])
    found = ours(theirs.state_dict()).predict(images)
    for own, peers in zip(found, expected, strict=True):
        assert len(own) == len(peers["boxes"]) == 50
        torch.testing.assert_close(own.boxes, peers["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(own.scores, peers["scores"], rtol=0, atol=1e-6)
        assert own.labels.tolist() == (peers["labels"] - 1).tolist()
        bitmaps = (peers["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
        union = np.logical_or(bitmaps, [coco_mask.decode(rle) for rle in own.masks]).sum()
        differing = (bitmaps != [coco_mask.decode(rle) for rle in own.masks]).sum()
        assert differing <= 1e-4 * union  # masks are pasted in float32 here


def test_a_tensor_without_counterpart_is_named() -> None:
    with pytest.raises(KeyError, match="roi_heads.keypoint_head.0.weight"):
        from_torchvision({"roi_heads.keypoint_head.0.weight": torch.zeros(1)})
