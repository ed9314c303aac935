"""With torchvision's weights our models give torchvision's detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.resnet import Bottleneck

import toolbox
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.models.box_branch import TestSettings
from toolbox.models.boxes import RandomSampler
from toolbox.structures import Targets
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
    smooth = nn.functional.interpolate(coarse, size=(192, 280), mode="bicubic").clamp(0, 1)
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


def test_losses_equal_torchvisions_over_all_regions() -> None:
    # With samplers that take everything nothing is left to chance; proposals, matching, targets and normalisers show.
    theirs = peer()
    model = ours(theirs.state_dict())
    images, targets = training_batch()
    everything = 10**6
    theirs.train().backbone.eval()
    theirs.rpn.fg_bg_sampler = BalancedPositiveNegativeSampler(everything, 0.5)
    theirs.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(everything, 0.5)
    model.rpn.sampler = RandomSampler(size=everything, positive_fraction=0.5)
    model.box.sampler = RandomSampler(size=everything, positive_fraction=0.5)
    model.train().backbone.eval()
    expected = theirs([image.double() / 255 for image in images], torchvision_targets(images, targets))
    found = model(images, targets)
    for own, peers in (
        ("rpn_objectness", "loss_objectness"),
        ("rpn_box", "loss_rpn_box_reg"),
        ("box_class", "loss_classifier"),
        ("box_delta", "loss_box_reg"),
    ):
        torch.testing.assert_close(found[own].double(), expected[peers].double(), rtol=1e-6, atol=1e-8)
    # torchvision's mask targets are soft (RoIAlign of the bitmap), ours are not.
    torch.testing.assert_close(found["mask"].double(), expected["loss_mask"].double(), rtol=2e-3, atol=0)


def training_batch() -> tuple[list[Tensor], Targets]:
    """Two images of different size, with three objects of three classes and with one."""
    coarse = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, size=(128, 192), mode="bicubic").clamp(0, 1)
    images = [(smooth[0] * 255).byte(), (smooth[1, :, :100, :150] * 255).byte()]
    boxes, valid = torch.zeros(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.bool)
    boxes[0] = torch.tensor([[10.0, 10, 60, 90], [70, 20, 150, 100], [5, 60, 40, 120]])
    boxes[1, 0] = torch.tensor([20.0, 20, 80, 80])
    valid[0], valid[1, 0] = True, True
    masks = [
        [PolygonMask([b[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2).numpy()]) for b in boxes[i, valid[i]]] for i in (0, 1)
    ]
    labels = torch.tensor([[0, 2, 4], [1, 0, 0]])
    return images, Targets(boxes, labels, valid, ~valid & valid, boxes[..., 0], masks=InstanceMasks(masks))


def torchvision_targets(images: list[Tensor], targets: Targets) -> list[dict[str, Tensor]]:
    found = []
    for index, image in enumerate(images):
        rows = targets.valid[index]
        masks = torch.zeros(int(rows.sum()), *image.shape[-2:], dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, targets.boxes[index, rows].long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        found.append({"boxes": targets.boxes[index, rows], "labels": targets.labels[index, rows] + 1, "masks": masks})
    return found
