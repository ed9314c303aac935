"""Every registered component keeps the promises of its family: channels, strides, shapes, finite losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toolbox.models  # noqa: F401  (registers the components)
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.registry import (
    BACKBONES,
    BOX_HEADS,
    INSTANCE_HEADS,
    LOSSES,
    NECKS,
    ROI_EXTRACTORS,
    ROI_STAGES,
    RPN_HEADS,
    SAMPLERS,
)
from toolbox.structures import FeatureSpec, Regions, RoIShape, Targets

# Settings that make a component small, or stand for one of its forms; a component without an entry is tested bare.
BACKBONE_FORMS: dict[str, list[dict[str, Any]]] = {
    "ResNet": [
        {"depth": 18, "norm": "gn"},
        {"depth": 34, "norm": "bn", "frozen_stages": 3},
        {"depth": 50, "norm": "bn", "out": ["c4"]},
        {"depth": 50, "norm": "bn", "dilate_c5": True, "stride_in_1x1": True},
        {"depth": 50, "norm": "gn", "groups": 32, "width_per_group": 4},
    ],
    "TimmBackbone": [
        {"name": "tf_efficientnet_lite0"},
        {"name": "mobilenetv3_small_050", "strides": [8, 16, 32]},
    ],
}
NECK_INPUTS = {"SimpleFeaturePyramid": {"c4": FeatureSpec(12, 16)}}  # c2 … c5 for every other neck
BOX_HEAD_FORMS = [{}, {"class_agnostic": True}]
MASK_FORMS: dict[str, list[dict[str, Any]]] = {
    "FCNMaskHead": [{"channels": 8}, {"channels": 8, "class_agnostic": True, "norm": "gn"}, {"convolutions": 0}],
}
SHAPE = RoIShape(8, 6, 6)
PYRAMID = {f"p{level}": FeatureSpec(8, 2**level) for level in range(2, 7)}


def builtin(registry: Any) -> list[str]:
    return [name for name in registry if registry.get(name).__module__.startswith("toolbox.")]


def forms(registry: Any, table: dict[str, list[dict[str, Any]]]) -> list[Any]:
    return [
        pytest.param(name, form, id=f"{name}-{index}")
        for name in builtin(registry)
        for index, form in enumerate(table.get(name, [{}]))
    ]


def make_maps(specs: dict[str, FeatureSpec], height: int = 64, width: int = 96) -> dict[str, Tensor]:
    return {
        name: torch.randn(2, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
        for name, spec in specs.items()
    }


def make_regions(count: int, num_classes: int = 3) -> Regions:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * 30
    rois = torch.cat((torch.arange(count)[:, None] % 2, corner, corner + 20), dim=1).float()
    zeros = torch.zeros(count, dtype=torch.int64)
    return Regions(rois, torch.arange(count) % num_classes, zeros, zeros == 0, torch.arange(count))


def make_targets() -> Targets:
    boxes = torch.tensor([[[5.0, 5, 35, 35]], [[10.0, 10, 40, 30]]])
    masks = [[PolygonMask([box[0][[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2).numpy()])] for box in boxes]
    yes = torch.ones(2, 1, dtype=torch.bool)
    return Targets(boxes, torch.zeros(2, 1, dtype=torch.int64), yes, ~yes, boxes[..., 0], masks=InstanceMasks(masks))


@pytest.mark.parametrize(("name", "settings"), forms(BACKBONES, BACKBONE_FORMS))
def test_backbone_puts_out_what_it_promises(name: str, settings: dict[str, Any]) -> None:
    if name == "TimmBackbone":
        pytest.importorskip("timm", reason="extra 'timm' is not installed")
    backbone = BACKBONES.get(name)(**settings).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, len(backbone.pixels.mean), 64, 96))
    assert list(maps) == list(backbone.out_features)
    for level, spec in backbone.out_features.items():
        assert maps[level].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride), level
    strides = [spec.stride for spec in backbone.out_features.values()]
    assert strides == sorted(strides)


@pytest.mark.parametrize("name", builtin(NECKS))
@pytest.mark.parametrize("extra", ["pool", "conv", "none"])
def test_neck_puts_out_what_it_promises(name: str, extra: str) -> None:
    inputs = NECK_INPUTS.get(name, {f"c{level}": FeatureSpec(4 * level, 2**level) for level in range(2, 6)})
    neck = NECKS.get(name)(inputs, out_channels=8, extra=extra)
    maps = neck(make_maps(inputs, 64, 128))
    assert list(maps) == list(neck.out_features) == ["p2", "p3", "p4", "p5", *(["p6"] if extra != "none" else [])]
    for level, spec in neck.out_features.items():
        assert maps[level].shape == (2, spec.channels, 64 // spec.stride, 128 // spec.stride), level


@pytest.mark.parametrize("name", builtin(RPN_HEADS))
@pytest.mark.parametrize("convolutions", [0, 1, 2])
def test_rpn_head_scores_every_anchor(name: str, convolutions: int) -> None:
    head = RPN_HEADS.get(name)(8, 3, convolutions=convolutions)
    maps = list(make_maps(PYRAMID).values())
    logits, deltas = head(maps)
    assert [tuple(x.shape) for x in logits] == [(2, 3, *m.shape[-2:]) for m in maps]
    assert [tuple(x.shape) for x in deltas] == [(2, 12, *m.shape[-2:]) for m in maps]


@pytest.mark.parametrize("name", builtin(ROI_EXTRACTORS))
@pytest.mark.parametrize("size", [5, (4, 7)])
def test_extractor_pools_to_its_shape(name: str, size: int | tuple[int, int]) -> None:
    extractor = ROI_EXTRACTORS.get(name)(PYRAMID, output_size=size)
    shape = extractor.out_shape
    for count in (4, 0):
        regions = extractor(make_maps(PYRAMID), make_regions(count).rois)
        assert regions.shape == (count, shape.channels, shape.height, shape.width)


@pytest.mark.parametrize("name", builtin(ROI_EXTRACTORS))
def test_extractor_leaves_p6_to_the_rpn(name: str) -> None:
    assert ROI_EXTRACTORS.get(name)(PYRAMID).features == ("p2", "p3", "p4", "p5")


@pytest.mark.parametrize("name", builtin(ROI_EXTRACTORS))
def test_extractor_refuses_maps_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match="no feature map named p9; there are p2, p3"):
        ROI_EXTRACTORS.get(name)(PYRAMID, features=["p9"])
    with pytest.raises(ValueError, match="maps of different width"):
        ROI_EXTRACTORS.get(name)({"c2": FeatureSpec(8, 4), "c3": FeatureSpec(16, 8)})


@pytest.mark.parametrize("name", builtin(ROI_STAGES))
def test_roi_stage_puts_out_what_it_promises(name: str) -> None:
    stage = ROI_STAGES.get(name)(RoIShape(256, 7, 7), depth=18, norm="gn").eval()
    shape = stage.out_shape
    assert stage(torch.randn(2, 256, 7, 7)).shape == (2, shape.channels, shape.height, shape.width)


@pytest.mark.parametrize("name", builtin(BOX_HEADS))
@pytest.mark.parametrize("settings", BOX_HEAD_FORMS)
@pytest.mark.parametrize("count", [3, 0])
def test_box_head_predicts_every_class(name: str, settings: dict[str, Any], count: int) -> None:
    head = BOX_HEADS.get(name)(SHAPE, 4, **settings)
    prediction = head(torch.randn(count, SHAPE.channels, SHAPE.height, SHAPE.width))
    assert prediction.logits.shape == (count, 5)
    assert prediction.deltas.shape == (count, 1 if settings.get("class_agnostic") else 4, 4)


@pytest.mark.parametrize(("name", "settings"), forms(INSTANCE_HEADS, MASK_FORMS))
@pytest.mark.parametrize("count", [4, 0], ids=["foreground", "no foreground"])
def test_instance_loss_is_finite_and_reaches_every_parameter(name: str, settings: dict[str, Any], count: int) -> None:
    head = INSTANCE_HEADS.get(name)(SHAPE, 3, **settings)
    prediction = head(torch.randn(count, SHAPE.channels, SHAPE.height, SHAPE.width))
    losses = head.loss(prediction, make_regions(count), make_targets())
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and (total > 0) == (count > 0)
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize(("name", "settings"), forms(INSTANCE_HEADS, MASK_FORMS))
@pytest.mark.parametrize("count", [3, 0])
def test_instance_prediction_has_an_entry_per_detection(name: str, settings: dict[str, Any], count: int) -> None:
    head = INSTANCE_HEADS.get(name)(SHAPE, 3, **settings).eval()
    regions = make_regions(count)
    with torch.no_grad():
        values = head.predict(head(torch.randn(count, SHAPE.channels, SHAPE.height, SHAPE.width)), regions.labels)
    fields = head.to_image(values, regions.rois[:, 1:], 50, 60)
    assert values.shape[0] == count
    assert fields and all(len(value) == count for value in fields.values())


@pytest.mark.parametrize(("name", "settings"), forms(INSTANCE_HEADS, MASK_FORMS))
def test_invalid_rows_do_not_count(name: str, settings: dict[str, Any]) -> None:
    head = INSTANCE_HEADS.get(name)(SHAPE, 3, **settings).eval()
    prediction, regions = head(torch.randn(4, SHAPE.channels, SHAPE.height, SHAPE.width)), make_regions(4)
    keep = torch.tensor([True, True, False, False])
    regions.valid = keep
    whole = head.loss(prediction, regions, make_targets())
    part = head.loss(prediction[keep], regions.subset(keep.nonzero()[:, 0]), make_targets())
    for key in whole:
        torch.testing.assert_close(whole[key], part[key])


@pytest.mark.parametrize("name", builtin(LOSSES))
def test_loss_is_per_element_and_scales_with_its_weight(name: str) -> None:
    prediction = torch.randn(6, 4)
    target = torch.arange(6) % 4 if name == "CrossEntropy" else torch.rand(6, 4)
    values = LOSSES.get(name)()(prediction, target)
    assert values.shape == target.shape
    torch.testing.assert_close(LOSSES.get(name)(weight=2.0)(prediction, target), 2 * values)


@pytest.mark.parametrize("name", builtin(SAMPLERS))
def test_sampler_draws_only_candidates_and_foreground_first(name: str) -> None:
    foreground = torch.rand(2, 60) > 0.6
    background = ~foreground & (torch.rand(2, 60) > 0.5)
    sampler = SAMPLERS.get(name)(size=16)
    index, valid, chosen = sampler.sample(foreground, background)
    assert (foreground | background).gather(1, index)[valid].all()
    assert foreground.gather(1, index)[chosen].all()
    assert not chosen[:, sampler.capacity :].any() and not (chosen & ~valid).any()


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
