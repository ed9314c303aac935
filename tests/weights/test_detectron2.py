"""Detectron2's and MMDetection's names: every tensor finds its place, and settings are compared."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_names import detectron2_state, mmdetection_state
from torch import Tensor, nn

import toolbox
from toolbox.errors import CheckpointError
from toolbox.models.backbones.weights import load_backbone_weights
from toolbox.models.builder import check_wiring
from toolbox.models.rpn import AnchorGenerator
from toolbox.structures import FeatureSpec, PixelStats, Skeleton
from toolbox.weights import check_fits
from toolbox.weights.detectron2 import ZOO, from_detectron2
from toolbox.weights.foreign_files import ForeignCheckpoint
from toolbox.weights.mmdetection import from_mmdetection
from toolbox.weights.trained_with import CAFFE, check_settings, warn_of_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs/detectron2"
JOINTS = Skeleton(names=tuple(f"joint {index}" for index in range(17)))
MODELS = {
    "fpn": ("mask_rcnn_r50_fpn", {}, []),
    "c4": ("mask_rcnn_r50_c4", {}, []),
    "dc5": ("mask_rcnn_r50_dc5", {}, []),
    "keypoint": ("keypoint_rcnn_r50_fpn", {}, []),
    "fpn, ResNeXt": (
        "mask_rcnn_r50_fpn",
        {"depth": 101, "groups": 32, "width": 8},
        ["model.backbone.depth=101", "model.backbone.groups=32", "model.backbone.width_per_group=8"],
    ),
}


def outline(config: str, classes: int, overrides: list[str]) -> nn.Module:
    names = [str(index) for index in range(classes)]
    loaded = toolbox.load_config(CONFIGS / f"{config}.yaml", overrides)
    skeleton = JOINTS if "keypoint" in config else None
    return check_wiring(loaded, classes=names, skeleton=skeleton, weights=False)


def zoo(kind: str, classes: int = 80, **body: int) -> ForeignCheckpoint:
    return ForeignCheckpoint(detectron2_state(kind.split(",")[0], classes, **body), ZOO, path="model.pkl")


@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_detectron2s_zoo_fits_its_config_tensor_for_tensor(model: str) -> None:
    config, body, overrides = MODELS[model]
    classes = 1 if model == "keypoint" else 80
    checkpoint = zoo(model, classes, **body)
    own = from_detectron2(checkpoint.state)
    assert len(own) == len(checkpoint.state)
    check_fits(outline(config, classes, overrides), own, model)


@pytest.mark.parametrize(("kind", "config"), [("fpn", "mask_rcnn_r50_fpn"), ("c4", "mask_rcnn_r50_c4")])
def test_a_model_of_mmdetection_fits_tensor_for_tensor(kind: str, config: str) -> None:
    state = mmdetection_state(kind, 80)
    own = from_mmdetection(state)
    assert len(own) == len(state)
    check_fits(outline(config, 80, []), own, kind)


def test_normed_heads_are_numbered_with_their_norms() -> None:
    # The zoo's mask_rcnn_R_50_FPN_100ep_LSJ: two convolutions in the RPN, and norms in both heads.
    names = [
        "proposal_generator.rpn_head.conv.conv1.weight",
        "roi_heads.box_head.conv2.weight",
        "roi_heads.box_head.conv2.norm.running_var",
        "roi_heads.box_head.fc1.weight",
        "roi_heads.mask_head.mask_fcn3.norm.weight",
        "roi_heads.keypoint_head.conv_fcn3.bias",
        "backbone.fpn_output4.norm.weight",
    ]
    assert list(from_detectron2({name: torch.zeros(1) for name in names})) == [
        "rpn.head.convolutions.2.weight",
        "box.head.convolutions.3.weight",
        "box.head.convolutions.4.running_var",
        "box.head.hidden.0.weight",
        "instance.mask.head.convolutions.7.weight",
        "instance.keypoint.head.convolutions.4.bias",
        "neck.output.p4.1.weight",
    ]
    theirs = [
        "roi_head.bbox_head.shared_convs.1.bn.bias",
        "neck.lateral_convs.3.gn.weight",
        "backbone.layer4.2.gn3.bias",
    ]
    assert list(from_mmdetection({name: torch.zeros(1) for name in theirs})) == [
        "box.head.convolutions.4.bias",
        "neck.lateral.c5.1.weight",
        "backbone.layer4.2.bn3.bias",
    ]


def rpn(anchors: int) -> dict[str, Tensor]:
    """Predictors whose bias says the row: 0, 1, … for objectness, tens and the coordinate for deltas."""
    rows = torch.arange(anchors)
    return {
        "proposal_generator.rpn_head.objectness_logits.weight": rows.view(-1, 1, 1, 1).float(),
        "proposal_generator.rpn_head.objectness_logits.bias": rows.float(),
        "proposal_generator.rpn_head.anchor_deltas.weight": torch.zeros(4 * anchors, 1, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas.bias": (10 * rows[:, None] + torch.arange(4)).flatten().float(),
    }


def test_rows_of_anchors_go_from_ratios_first_to_sizes_first() -> None:
    own = from_detectron2(rpn(6))  # two sizes of three ratios: there 1a 1b 1c 2a 2b 2c, here 1a 2a 1b 2b 1c 2c
    assert own["rpn.head.objectness.bias"].tolist() == [0, 3, 1, 4, 2, 5]
    assert own["rpn.head.objectness.weight"].flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert own["rpn.head.deltas.bias"].tolist()[:8] == [0, 1, 2, 3, 30, 31, 32, 33]


def test_the_anchors_in_a_checkpoint_say_the_order() -> None:
    sizes, ratios = (32, 64, 128), (0.5, 2.0)
    theirs = []
    for size in sizes:
        for ratio in ratios:
            width = (size**2 / ratio) ** 0.5
            theirs.append([-width / 2, -ratio * width / 2, width / 2, ratio * width / 2])
    cells = torch.tensor(theirs)
    state = {**rpn(6), "proposal_generator.anchor_generator.cell_anchors.0": cells}
    order = from_detectron2(state)["rpn.head.objectness.bias"].long()
    ours = AnchorGenerator({"c4": FeatureSpec(1, 16)}, sizes=[sizes], ratios=ratios)
    torch.testing.assert_close(cells[order], ours.cells[0])
    with pytest.raises(CheckpointError, match="6 anchors in a cell, which is no multiple of 4 aspect ratios"):
        from_detectron2(rpn(6), ratios=4)


def test_caffe2s_affine_norm_becomes_a_batch_norm_that_is_the_same_map() -> None:
    scale, shift = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    own = from_detectron2(
        {
            "conv1_w": torch.ones(2, 3, 7, 7),
            "conv1_b": torch.zeros(2),
            "res_conv1_bn_s": scale,
            "res_conv1_bn_b": shift,
            "res3_1_branch2b_bn_s": scale,
            "res3_1_branch2b_bn_b": shift,
            "fc1000_w": torch.zeros(1),
        }
    )
    norm = nn.BatchNorm2d(2).eval()
    norm.load_state_dict(
        {name.removeprefix("backbone.bn1."): own[name] for name in own if ".bn1." in name}, strict=False
    )
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x), x * scale[:, None, None] + shift[:, None, None])
    assert torch.equal(own["backbone.layer2.1.bn2.weight"], scale)


def test_a_backbone_of_detectron2s_imagenet_files_starts_ours() -> None:
    caffe2 = {"conv1_w": torch.zeros(64, 3, 7, 7)}
    parts = {"running_mean": "rm", "running_var": "riv", "weight": "s", "bias": "b"}
    branches = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}
    for name, tensor in detectron2_state("dc5", 80).items():
        stage, *rest = name.removeprefix("backbone.").split(".")
        if name.startswith("backbone.stem.conv1.norm."):
            caffe2[f"res_conv1_bn_{parts[rest[-1]]}"] = tensor
        elif stage.startswith("res"):
            last = f"bn_{parts[rest[-1]]}" if "norm" in rest else "w"
            caffe2[f"{stage}_{rest[0]}_branch{branches[rest[1]]}_{last}"] = tensor
    own = from_detectron2(caffe2)
    assert own.keys() == {name for name in from_detectron2(detectron2_state("dc5", 80)) if name.startswith("backbone.")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("roi_heads.box_head.1.fc1.weight", "a cascade of box heads"),
        ("backbone.bottom_up.res4.0.conv2_offset.weight", "deformable convolutions"),
        ("sem_seg_head.predictor.weight", "panoptic"),
        ("head.cls_score.weight", "one-stage"),
        ("fpn_inner_res5_2_sum_w", "a detector of Detectron"),
        ("roi_heads.mystery.weight", "no part of ours is named so"),
    ],
)
def test_what_has_no_counterpart_is_named_with_its_reason(name: str, message: str) -> None:
    state = {"backbone.fpn_lateral2.bias": torch.zeros(1), name: torch.zeros(1)}
    with pytest.raises(CheckpointError, match=rf"1 of 2 tensors of Detectron2 .*\n  {name}: .*{message}"):
        from_detectron2(state)


def test_two_tensors_of_one_name_here_are_refused() -> None:
    state = {name: torch.zeros(1) for name in ("res2.0.conv1.weight", "backbone.res2.0.conv1.weight")}
    with pytest.raises(CheckpointError, match=r"'backbone\.res2.* is a second 'backbone\.layer1\.0\.conv1\.weight'"):
        from_detectron2(state)


@pytest.mark.parametrize("rows", [None, 5])
def test_a_predictor_of_the_rpn_without_its_rows_is_left_to_the_model_to_refuse(rows: int | None) -> None:
    state, name = rpn(6), "proposal_generator.rpn_head.anchor_deltas.bias"
    if rows is None:
        del state[name]
    else:
        state[name] = torch.zeros(rows)
    own = from_detectron2(state)
    assert own["rpn.head.objectness.bias"].tolist() == [0, 3, 1, 4, 2, 5]
    assert len(own.get("rpn.head.deltas.bias", ())) == (rows or 0)


def test_what_is_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="toolbox"):
        assert from_detectron2({"pixel_mean": torch.zeros(3), "stem.fc.bias": torch.zeros(1)}) == {}
    assert caplog.messages == [
        "Detectron2: left out pixel_mean: pixel statistics are the config's",
        "Detectron2: left out stem.fc.bias: the classifier of ImageNet",
    ]


def test_mmdetections_first_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"MMDetection 1.x, where background is the first class"):
        from_mmdetection({"bbox_head.fc_cls.weight": torch.zeros(81, 1024)})
    old = ForeignCheckpoint({}, meta={"mmdet_version": "1.2.0"})
    with pytest.raises(CheckpointError, match=r"MMDetection 1\.2\.0, where background"):
        check_settings("mmdetection", old, nn.Module())
    with pytest.raises(CheckpointError, match=r"the RPN has 6 scores for 3 anchors"):
        from_mmdetection({"rpn_head.rpn_cls.weight": torch.zeros(6, 1), "rpn_head.rpn_reg.weight": torch.zeros(12, 1)})


@pytest.mark.parametrize("model", ["fpn", "c4", "dc5"])
def test_the_configs_have_the_settings_of_the_zoo(model: str) -> None:
    check_settings("detectron2", zoo(model), outline(MODELS[model][0], 80, []))


def test_settings_that_no_shape_tells_are_named_together() -> None:
    given = ["model.backbone.stride_in_1x1=false", "model.backbone.pixels={}", "model.roi_stage.stride_in_1x1=false"]
    with pytest.raises(CheckpointError) as error:
        check_settings("detectron2", zoo("c4"), outline("mask_rcnn_r50_c4", 80, given))
    assert str(error.value).splitlines() == [
        "model.pkl: the config has other settings than these weights",
        "  images were normalised otherwise: set model.backbone.pixels: "
        "{mean: [103.53, 116.28, 123.675], std: [1.0, 1.0, 1.0], scale: 1.0, order: bgr}",
        "  it was trained with the stride in the 1x1 convolution: set model.backbone.stride_in_1x1: true",
        "  it was trained with the stride in the 1x1 convolution: set model.roi_stage.stride_in_1x1: true",
    ]
    with pytest.raises(CheckpointError, match="dilation in all of c5: set model.backbone.dilated_c5: true"):
        check_settings("detectron2", zoo("dc5"), outline("mask_rcnn_r50_dc5", 80, ["model.backbone.dilated_c5=false"]))


@pytest.mark.parametrize(
    "changed", ["order=rgb", "std=[57.375, 57.12, 58.395]", "mean=[103.53, 116.28, 122.0]", "scale=0.5"]
)
def test_pixels_that_differ_in_one_respect_are_told(changed: str) -> None:
    model = outline("mask_rcnn_r50_fpn", 80, [f"model.backbone.pixels.{changed}"])
    with pytest.raises(CheckpointError, match="images were normalised otherwise"):
        check_settings("detectron2", zoo("fpn"), model)


def test_pixels_in_another_unit_are_the_same() -> None:
    unit = [
        f"model.backbone.pixels.{name}={[round(v / 255, 7) for v in values]}"
        for name, values in (("mean", CAFFE.mean), ("std", CAFFE.std))
    ]
    model = outline("mask_rcnn_r50_fpn", 80, [*unit, f"model.backbone.pixels.scale={1 / 255}"])
    check_settings("detectron2", zoo("fpn"), model)


def test_a_resnext_has_other_settings_than_a_resnet() -> None:
    config, body, overrides = MODELS["fpn, ResNeXt"]
    with pytest.raises(CheckpointError, match="3x3 convolution: set model.backbone.stride_in_1x1: false"):
        check_settings("detectron2", zoo("fpn", **body), outline(config, 80, overrides))
    std = "{mean: [103.53, 116.28, 123.675], std: [57.375, 57.12, 58.395], scale: 1.0, order: bgr}"
    right = [*overrides, "model.backbone.stride_in_1x1=false", f"model.backbone.pixels={std}"]
    check_settings("detectron2", zoo("fpn", **body), outline(config, 80, right))


def test_pixel_statistics_in_a_checkpoint_count_more_than_its_author(caplog: pytest.LogCaptureFixture) -> None:
    model = outline("mask_rcnn_r50_fpn", 80, ["model.backbone.pixels={}", "model.backbone.stride_in_1x1=false"])
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    state = {**detectron2_state("fpn", 80), "pixel_mean": mean, "pixel_std": std}
    check_settings("detectron2", ForeignCheckpoint(state), model)
    assert not caplog.messages
    check_settings("detectron2", ForeignCheckpoint(detectron2_state("fpn", 80), path="own.pth"), model)
    assert caplog.messages[0].startswith("own.pth does not say how its images were normalised; Detectron2's default is")


def test_mmdetections_config_inside_the_checkpoint_is_compared() -> None:
    text = "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\nstyle='caffe'"
    checkpoint = ForeignCheckpoint(mmdetection_state("fpn", 80), meta={"mmdet_version": "2.25.0", "config": text})
    check_settings("mmdetection", checkpoint, outline("mask_rcnn_r50_fpn", 80, []))
    with pytest.raises(CheckpointError, match=r"model.backbone.pixels: .*\n.*model.backbone.stride_in_1x1: true"):
        given = ["model.backbone.pixels={}", "model.backbone.stride_in_1x1=false"]
        check_settings("mmdetection", checkpoint, outline("mask_rcnn_r50_fpn", 80, given))


def test_other_anchors_than_the_configs_are_named() -> None:
    model = toolbox.build_detector(
        toolbox.load_config(
            CONFIGS / "mask_rcnn_r50_fpn.yaml", ["model.backbone.weights=null", "model.backbone.norm=bn"]
        ),
        classes=["a"],
    )
    root = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    halves = [torch.stack((size / root, size * root), dim=1) / 2 for size in (16, 32, 64, 128, 256)]
    state = {
        f"proposal_generator.anchor_generator.cell_anchors.{i}": torch.cat((-h, h), dim=1) for i, h in enumerate(halves)
    }
    with pytest.raises(
        CheckpointError, match=r"sizes: \[\[16\], \[32\], \[64\], \[128\], \[256\]\], ratios: \[0.5, 1.0, 2.0\]"
    ):
        check_settings("detectron2", ForeignCheckpoint(state), model)
    state["proposal_generator.anchor_generator.cell_anchors.4"] = torch.cat((-halves[4], halves[4]), dim=1).repeat(2, 1)
    with pytest.raises(CheckpointError, match="another number of anchors on each level"):
        check_settings("detectron2", ForeignCheckpoint(state), model)


def test_a_backbone_that_starts_with_other_settings_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    right = outline("mask_rcnn_r50_c4", 80, [])
    for module in (right.backbone, right.roi_stage):
        warn_of_settings(zoo("c4"), module)
    assert not caplog.messages
    given = ["model.backbone.stride_in_1x1=false", "model.roi_stage.stride_in_1x1=false"]
    wrong = outline("mask_rcnn_r50_c4", 80, given)
    for module in (wrong.backbone, wrong.roi_stage):
        warn_of_settings(zoo("c4"), module)
    told = "model.pkl: it was trained with the stride in the 1x1 convolution: set model"
    assert caplog.messages == [f"{told}.backbone.stride_in_1x1: true", f"{told}.roi_stage.stride_in_1x1: true"]


def test_a_backbone_reads_a_pickle_of_detectron2_as_its_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 2, 7, bias=False)
            self.bn1 = nn.BatchNorm2d(2)
            self.pixels = PixelStats()

    path = tmp_path / "R-50.pkl"
    weight = np.arange(2 * 3 * 49, dtype=np.float32).reshape(2, 3, 7, 7)
    ones = np.ones(2, dtype=np.float32)
    norm = {f"res_conv1_bn_{kind}": value * ones for value, kind in enumerate(("s", "b", "rm", "riv"), start=1)}
    path.write_bytes(pickle.dumps({"conv1_w": weight, **norm, "fc1000_w": ones}, protocol=2))
    stem = Stem()
    load_backbone_weights(stem, str(path), "resnet50")
    assert np.array_equal(stem.conv1.weight.detach().numpy(), weight)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1 and "images were normalised otherwise" in warned[0]
    caplog.clear()
    stem.pixels = CAFFE
    load_backbone_weights(stem, str(path), "resnet50")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    values = [stem.bn1.weight, stem.bn1.bias, stem.bn1.running_mean, stem.bn1.running_var]
    assert [value.tolist() for value in values] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]
