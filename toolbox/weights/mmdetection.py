"""MMDetection's weights under our names: its ResNet and ResNeXt with FPN and C4, of versions 2 and 3."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from toolbox.errors import CheckpointError
from toolbox.weights.renaming import Rules, rename

_MOST = 16  # convolutions or layers in a row that are known by number
_OLD = (
    "this is a model of MMDetection {}, where background is the first class, and boxes and anchors count pixels "
    "otherwise; take the checkpoint of the same model of MMDetection 2 or 3"
)
_LEFT_OUT: Rules = (
    (r"data_preprocessor\.(?:mean|std)", "pixel statistics are the config's"),
    (r"backbone\.fc\.(?:weight|bias)", "the classifier of ImageNet"),
    (r"ema_.*|steps", "averaged weights under other names"),
)
_REFUSED: Rules = (
    (r"roi_head\.(?:bbox|mask)_head\.\d+\..*", "a cascade of heads; ours have one"),
    (r".*\.conv\d_offset\..*|.*\.conv2\.conv_offset\..*", "deformable convolutions"),
    (r"roi_head\.bbox_head\.(?:cls|reg)_(?:convs|fcs)\..*", "a box head with separate branches for class and box"),
    (r"neck\.fpn_convs\.[4-9]\..*", "levels above p5 made by convolution, whose input the names do not tell"),
    (r"roi_head\.(?:semantic|glbctx|feat_relay|grid|point|mask_iou)\w*\..*", "a head that ours have not"),
    (r"bbox_head\..*|mask_head\..*", "a one-stage detector, not an R-CNN"),
    (r"backbone\.(?:stages|patch_embed|stem|s\d).*", "a backbone that is no ResNet of torchvision's form"),
    (r"box\.head\..*", "this is a model of this toolbox already"),
    (r"backbone\.bottom_up\..*|roi_heads\..*", "this is no model of MMDetection; say --from detectron2 or torchvision"),
)


def from_mmdetection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of MMDetection's Faster or Mask R-CNN.

    Since version 2.0 background is the last class there as here, and anchors are in the same order. In 1.x background
    was the first class and boxes counted pixels otherwise, so those checkpoints are refused.

    Args:
        state: `checkpoint["state_dict"]`.

    Returns:
        Name → tensor of our model.

    Raises:
        CheckpointError: a tensor has no counterpart here, or the checkpoint is of version 1.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # Version 2.0 put both heads under `roi_head`; a one-stage detector has no shared layers.
    if any(name.startswith(("bbox_head.shared_", "bbox_head.fc_", "shared_head.layer")) for name in state):
        raise CheckpointError(_OLD.format("1.x"))
    _check_objectness(state)
    names = [*_backbone_names(), *_neck_and_rpn_names(), *_head_names(state)]
    return rename(state, names, _LEFT_OUT, _REFUSED, "MMDetection")


def check_version(meta: Mapping[str, object]) -> None:
    """Refuse a checkpoint that says it is of version 1.

    Args:
        meta: what the checkpoint says of itself.

    Raises:
        CheckpointError: it is.
    """
    version = str(meta.get("mmdet_version", ""))
    if version.startswith(("0.", "1.")):
        raise CheckpointError(_OLD.format(version))


def _check_objectness(state: Mapping[str, Tensor]) -> None:
    objectness, deltas = state.get("rpn_head.rpn_cls.weight"), state.get("rpn_head.rpn_reg.weight")
    if objectness is not None and deltas is not None and 4 * len(objectness) != len(deltas):
        raise CheckpointError(
            f"the RPN has {len(objectness)} scores for {len(deltas) // 4} anchors of a cell (softmax); ours: one each"
        )


def _backbone_names() -> Rules:
    residual = r"(layer\d)\.(\d+)\.(conv\d|bn\d|downsample\.\d)\.(\w+)"
    return [
        (r"backbone\.(conv1|bn1)\.(\w+)", r"backbone.\1.\2"),
        (rf"backbone\.{residual}", r"backbone.\1.\2.\3.\4"),
        (rf"roi_head\.shared_head\.{residual}", r"roi_stage.\1.\2.\3.\4"),
        # Group norms are called gn1 …, which torchvision's names, as ours, call bn1 ….
        (r"backbone\.gn1\.(\w+)", r"backbone.bn1.\1"),
        (r"backbone\.(layer\d)\.(\d+)\.gn(\d)\.(\w+)", r"backbone.\1.\2.bn\3.\4"),
    ]


def _neck_and_rpn_names() -> Rules:
    rules = []
    for i in range(4):
        for theirs, ours in ((rf"lateral_convs\.{i}", f"lateral.c{i + 2}"), (rf"fpn_convs\.{i}", f"output.p{i + 2}")):
            rules.append((rf"neck\.{theirs}\.conv\.(weight|bias)", rf"neck.{ours}.0.\1"))
            rules.append((rf"neck\.{theirs}\.(?:bn|gn)\.(\w+)", rf"neck.{ours}.1.\1"))
    return [
        *rules,
        (r"rpn_head\.rpn_conv\.(weight|bias)", r"rpn.head.convolutions.0.\1"),
        *(
            (rf"rpn_head\.rpn_conv\.{i}\.conv\.(weight|bias)", rf"rpn.head.convolutions.{2 * i}.\1")
            for i in range(_MOST)
        ),
        (r"rpn_head\.rpn_cls\.(weight|bias)", r"rpn.head.objectness.\1"),
        (r"rpn_head\.rpn_reg\.(weight|bias)", r"rpn.head.deltas.\1"),
    ]


def _head_names(state: Mapping[str, Tensor]) -> Rules:
    box, mask = r"roi_head\.bbox_head\.", r"roi_head\.mask_head\."
    rules = [
        *((rf"{box}shared_fcs\.{i}\.(weight|bias)", rf"box.head.hidden.{2 * i}.\1") for i in range(_MOST)),
        (rf"{box}fc_cls\.(weight|bias)", r"box.head.predictor.logits.\1"),
        (rf"{box}fc_reg\.(weight|bias)", r"box.head.predictor.deltas.\1"),
        (rf"{mask}upsample\.(weight|bias)", r"instance.mask.head.upsample.0.\1"),
        (rf"{mask}conv_logits\.(weight|bias)", r"instance.mask.head.predictor.\1"),
    ]
    for theirs, ours in ((rf"{box}shared_convs", "box.head"), (rf"{mask}convs", "instance.mask.head")):
        normed = any(re.fullmatch(rf"{theirs}\.\d+\.(?:bn|gn)\.\w+", name) for name in state)
        step = 3 if normed else 2  # convolution, norm, ReLU
        for i in range(_MOST):
            rules.append((rf"{theirs}\.{i}\.conv\.(weight|bias)", rf"{ours}.convolutions.{step * i}.\1"))
            rules.append((rf"{theirs}\.{i}\.(?:bn|gn)\.(\w+)", rf"{ours}.convolutions.{step * i + 1}.\1"))
    return rules
