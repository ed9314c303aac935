"""With the same weights our models are torchvision's: proposals, detections, losses and gradients.

benchmarks/equality.py compares the same on real images of real size.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision_twins import MODELS, Objects, detect, gradients, losses, make_twins

from toolbox.structures import Skeleton
from toolbox.weights.exchange.classes import ClassTable

CLASSES = ClassTable(("cat", "dog", "cow", "pig"), (2, 3, 5, 9), None, "the test")  # torchvision's rows go by these ids
ANIMAL = ClassTable(("fly",), (1,), Skeleton(("head", "waist", "tail")), "the test")


def pictures() -> list[Tensor]:
    """Two images of different size, smooth enough that a network sees something."""
    coarse = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(3))
    smooth = nn.functional.interpolate(coarse, size=(96, 160), mode="bicubic").clamp(0, 1)
    return [(smooth[0] * 255).byte(), (smooth[1, :, :80, :120] * 255).byte()]


def objects(classes: int) -> list[Objects]:
    """Two in the first image, one in the second, with masks and three joints, one of them not labelled."""
    boxes = [torch.tensor([[10.0, 10, 60, 90], [70, 20, 150, 80]]), torch.tensor([[20.0, 15, 95, 70]])]
    found = []
    for own, (height, width) in zip(boxes, ((96, 160), (80, 120)), strict=True):
        masks = torch.zeros(len(own), height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, own.long().tolist(), strict=True):
            mask[y1 : (y1 + y2) // 2, x1:x2] = 1  # the upper half
        corners = torch.stack((own[:, :2] + 5, (own[:, :2] + own[:, 2:]) / 2, own[:, 2:]), dim=1)
        visible = torch.tensor([2.0, 1.0, 0.0]).expand(len(own), 3)[..., None]
        labels = torch.arange(len(own)) % classes
        found.append(Objects(own, labels, masks, torch.cat((corners, visible), dim=2)))
    return found


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_detections_losses_and_gradients_equal_torchvisions(name: str) -> None:
    kind = name.partition("rcnn")[0]
    classes = ANIMAL if kind == "keypoint" else CLASSES
    rows = max(classes.category_ids)
    count = 4 if kind == "keypoint" else 12  # its head is the costly one
    counts = {"proposals": 30, "detections": count, "samples": 16}
    twins = make_twins(name, classes, pictures(), peer_classes=rows, **counts)
    for ours, theirs in detect(twins, pictures()):
        assert_near(ours.proposals, theirs.proposals, 1e-6)
        assert len(theirs.labels) == count and ours.labels.tolist() == theirs.labels.tolist()
        assert len(set(theirs.labels.tolist())) > 1 or len(classes) == 1, "a test of one class alone says little"
        assert_near(ours.boxes, theirs.boxes, 1e-6)
        assert_near(ours.scores, theirs.scores, 1e-6)
        if kind == "mask":
            assert ours.masks is not None and theirs.masks is not None
            assert_near(ours.masks, theirs.masks, 1e-6)
        if kind == "keypoint":
            assert ours.keypoints is not None and theirs.keypoints is not None
            assert_near(ours.keypoints, theirs.keypoints, 1e-5)  # torchvision keeps them in float32

    truth = objects(len(classes))
    for one in truth:
        one.masks = one.masks if kind == "mask" else None
        one.keypoints = one.keypoints if kind == "keypoint" else None
    found, expected = losses(twins, pictures(), truth, live=name.endswith("_v2"))
    assert found.keys() == expected.keys() and (kind == "faster" or kind in found)
    for key, loss in expected.items():
        torch.testing.assert_close(found[key].double(), loss.double(), rtol=1e-5, atol=0)
    sum(found.values()).backward()  # type: ignore[union-attr]
    sum(expected.values()).backward()  # type: ignore[union-attr]
    pairs = gradients(twins)
    assert len(pairs) > 70
    largest = max(float(theirs.norm()) for _, theirs in pairs.values())
    for key, (ours, theirs) in pairs.items():
        # A bias that a norm or a softmax behind it takes away has no gradient but rounding.
        assert float((ours - theirs).norm()) <= 1e-5 * max(float(theirs.norm()), 1e-3 * largest), key
