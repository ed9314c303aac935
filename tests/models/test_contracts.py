"""What single components do beyond the promises of their family, which tests/testing tries by the kit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import toolbox.models  # noqa: F401  (registers the components)
from toolbox.registry import BACKBONES, LOSSES, ROI_EXTRACTORS
from toolbox.structures import FeatureSpec

PYRAMID = {f"p{level}": FeatureSpec(8, 2**level) for level in range(2, 7)}


def builtin(registry: Any) -> list[str]:
    return [name for name in registry if registry.get(name).__module__.startswith("toolbox.")]


@pytest.mark.parametrize("name", builtin(ROI_EXTRACTORS))
def test_extractor_leaves_p6_to_the_rpn(name: str) -> None:
    assert ROI_EXTRACTORS.get(name)(PYRAMID).pyramid.names == ("p2", "p3", "p4", "p5")


@pytest.mark.parametrize("name", builtin(ROI_EXTRACTORS))
def test_extractor_refuses_maps_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match="no feature map named p9; there are p2, p3"):
        ROI_EXTRACTORS.get(name)(PYRAMID, features=["p9"])
    with pytest.raises(ValueError, match="maps of different width"):
        ROI_EXTRACTORS.get(name)({"c2": FeatureSpec(8, 4), "c3": FeatureSpec(16, 8)})


@pytest.mark.parametrize("name", builtin(LOSSES))
def test_loss_is_per_element_and_scales_with_its_weight(name: str) -> None:
    prediction = torch.randn(6, 4)
    target = torch.arange(6) % 4 if name == "CrossEntropy" else torch.rand(6, 4)
    values = LOSSES.get(name)()(prediction, target)
    assert values.shape == target.shape
    torch.testing.assert_close(LOSSES.get(name)(weight=2.0)(prediction, target), 2 * values)


@pytest.mark.parametrize("name", builtin(BACKBONES))
def test_frozen_norm_without_weights_is_refused(name: str) -> None:
    if name == "TimmBackbone":
        pytest.importorskip("timm", reason="extra 'timm' is not installed")
    settings = {"name": "tf_efficientnet_lite0"} if name == "TimmBackbone" else {}
    with pytest.raises(ValueError, match="needs pretrained weights"):
        BACKBONES.get(name)(norm="frozen_bn", **settings)


def test_resnet_keys_are_torchvisions() -> None:
    from torchvision.models import resnet50

    ours = BACKBONES.get("ResNet")(depth=50, norm="bn").state_dict()
    theirs = {key: value for key, value in resnet50().state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_folded_norm_equals_torchvisions_resnet_in_evaluation() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = BACKBONES.get("ResNet")(depth=18, norm="bn").eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images, expected = torch.randn(1, 3, 64, 64), []
    theirs.layer4.register_forward_hook(lambda *call: expected.append(call[2]))
    with torch.no_grad():
        theirs(images)
        torch.testing.assert_close(ours(images)["c5"], expected[0], rtol=1e-4, atol=1e-4)


def test_frozen_stages_take_no_gradient_and_keep_their_statistics() -> None:
    backbone = BACKBONES.get("ResNet")(depth=18, norm="bn", frozen_stages=2).train()
    before = backbone.layer1[0].bn1.running_mean.clone()
    sum(x.sum() for x in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert torch.equal(backbone.layer1[0].bn1.running_mean, before)
    assert backbone.conv1.weight.grad is None and backbone.layer1[0].conv1.weight.grad is None
    assert backbone.layer2[0].conv1.weight.grad is not None
