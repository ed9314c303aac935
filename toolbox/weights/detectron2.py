"""Detectron2's weights under our names: ResNet and ResNeXt with FPN, C4 and dilated C5, and ImageNet backbones."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from toolbox.errors import CheckpointError
from toolbox.weights.renaming import Rules, rename

ZOO = "Detectron2 Model Zoo"  # the author that the model zoo's files name

_MOST = 16  # convolutions or layers in a row that are known by number
_STAGES = range(2, 6)
_BACKBONE = r"(?:backbone\.bottom_up\.|backbone\.)?"  # files of ImageNet backbones have no prefix
_CELLS = "proposal_generator.anchor_generator.cell_anchors."
# What batch norm's tensors are called: Caffe2 writes either four, or the two of an affine map made from them.
_CAFFE2_NORM = {
    "weight": "bn_s|bn_gamma|gn_s",
    "bias": "bn_b|bn_beta|gn_b",
    "running_mean": "bn_rm|bn_running_mean",
    "running_var": "bn_riv|bn_running_var",
}
_LEFT_OUT: Rules = (
    (re.escape(_CELLS) + r"\d+", "anchors are made from the config"),
    (r"pixel_mean|pixel_std", "pixel statistics are the config's"),
    (r"(?:stem\.fc|backbone\.linear|linear)\.(?:weight|bias)|(?:fc1000|pred)_[wb]", "the classifier of ImageNet"),
    (r"conv1_b", "Caffe's bias before the first norm, which Detectron2 leaves out too"),
    (r".*_momentum|lr", "state of the optimizer"),
)
_REFUSED: Rules = (
    (r"roi_heads\.box_(?:head|predictor)\.\d+\..*", "a cascade of box heads; ours have one"),
    (r".*\.conv2_offset\..*", "deformable convolutions"),
    (r"sem_seg_head\..*", "a head for semantic segmentation (panoptic FPN)"),
    (r"roi_heads\.mask_(?:point|coarse)_head\..*", "PointRend's mask head"),
    (r"head\..*|backbone\.top_block\..*", "a one-stage detector (RetinaNet, FCOS), not an R-CNN"),
    (r"backbone\.(?:net|simfp_\d|bottom_up\.s\d)\..*", "a backbone that is no ResNet"),
    (
        r"(?:conv_rpn|rpn|fpn|fc[67]|cls_score|bbox_pred|mask_fcn|_\[mask\]|conv5_mask|conv_fcn|kps_score|head_conv)_.*",
        "a detector of Detectron (Caffe2), whose boxes count pixels otherwise; of its files, backbones are read",
    ),
    (r"box\.head\..*|neck\..*", "this is a model of this toolbox already"),
    (r"roi_head\..*|neck\.lateral_convs.*", "this is a model of MMDetection; say --from mmdetection"),
)


def from_detectron2(state: Mapping[str, Tensor], *, ratios: int = 3) -> dict[str, Tensor]:
    """Rename the tensors of Detectron2's Faster, Mask or Keypoint R-CNN, or of an ImageNet backbone.

    Background is the last class there as here. Where a cell has anchors of several sizes, Detectron2 goes through the
    ratios of one size first and ours through the sizes of one ratio, so the RPN's rows are sorted anew.

    Args:
        state: `checkpoint["model"]`, or the tensors of a Caffe2 backbone (`res2_0_branch2a_w`).
        ratios: aspect ratios of the anchors, for checkpoints that do not hold the anchors (those since August 2021).

    Returns:
        Name → tensor of our model.

    Raises:
        CheckpointError: a tensor has no counterpart here, or the anchors are not `ratios` for every size.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    names = [*_backbone_names(), *_neck_and_rpn_names(), *_head_names(state), *_caffe2_names()]
    renamed = rename(state, names, _LEFT_OUT, _REFUSED, "Detectron2")
    _sort_anchors(renamed, state, ratios)
    return _with_statistics(renamed, state)


def cell_anchors(state: Mapping[str, Tensor]) -> list[Tensor]:
    """(A, 4) anchors around the origin of each level, in Detectron2's order; empty if the checkpoint has none."""
    found = [name for name in state if name.startswith(_CELLS)]
    return [state[name] for name in sorted(found, key=lambda name: int(name.removeprefix(_CELLS)))]


def anchor_order(anchors: int, ratios: int) -> Tensor:
    """(A,): which of Detectron2's anchors of a cell stands where in ours.

    Raises:
        CheckpointError: A is no multiple of the number of ratios.
    """
    if anchors % ratios:
        raise CheckpointError(
            f"there are {anchors} anchors in a cell, which is no multiple of {ratios} aspect ratios; "
            "give the number of ratios that it was trained with"
        )
    return torch.arange(anchors).view(-1, ratios).t().flatten()


def _backbone_names() -> Rules:
    rules = [
        (rf"{_BACKBONE}stem\.conv1\.(weight)", r"backbone.conv1.\1"),
        (rf"{_BACKBONE}stem\.conv1\.norm\.(\w+)", r"backbone.bn1.\1"),
    ]
    for stage in _STAGES:
        for theirs, ours in (
            (rf"{_BACKBONE}res{stage}", f"backbone.layer{stage - 1}"),
            (rf"roi_heads\.res{stage}", f"roi_stage.layer{stage - 1}"),
        ):
            rules += [
                (rf"{theirs}\.(\d+)\.conv(\d)\.(weight)", rf"{ours}.\1.conv\2.\3"),
                (rf"{theirs}\.(\d+)\.conv(\d)\.norm\.(\w+)", rf"{ours}.\1.bn\2.\3"),
                (rf"{theirs}\.(\d+)\.shortcut\.(weight)", rf"{ours}.\1.downsample.0.\2"),
                (rf"{theirs}\.(\d+)\.shortcut\.norm\.(\w+)", rf"{ours}.\1.downsample.1.\2"),
            ]
    return rules


def _neck_and_rpn_names() -> Rules:
    rpn = r"proposal_generator\.rpn_head\."
    return [
        (r"backbone\.fpn_lateral(\d)\.(weight|bias)", r"neck.lateral.c\1.0.\2"),
        (r"backbone\.fpn_lateral(\d)\.norm\.(\w+)", r"neck.lateral.c\1.1.\2"),
        (r"backbone\.fpn_output(\d)\.(weight|bias)", r"neck.output.p\1.0.\2"),
        (r"backbone\.fpn_output(\d)\.norm\.(\w+)", r"neck.output.p\1.1.\2"),
        (rf"{rpn}conv\.(weight|bias)", r"rpn.head.convolutions.0.\1"),
        *((rf"{rpn}conv\.conv{i}\.(weight|bias)", rf"rpn.head.convolutions.{2 * i}.\1") for i in range(_MOST)),
        (rf"{rpn}objectness_logits\.(weight|bias)", r"rpn.head.objectness.\1"),
        (rf"{rpn}anchor_deltas\.(weight|bias)", r"rpn.head.deltas.\1"),
    ]


def _head_names(state: Mapping[str, Tensor]) -> Rules:
    box, mask, keypoint = (rf"roi_heads\.{name}_head\." for name in ("box", "mask", "keypoint"))
    rules = [
        *((rf"{box}fc{i + 1}\.(weight|bias)", rf"box.head.hidden.{2 * i}.\1") for i in range(_MOST)),
        (r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"box.head.predictor.logits.\1"),
        (r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"box.head.predictor.deltas.\1"),
        (rf"{mask}deconv\.(weight|bias)", r"instance.mask.head.upsample.0.\1"),
        (rf"{mask}predictor\.(weight|bias)", r"instance.mask.head.predictor.\1"),
        (rf"{keypoint}score_lowres\.(weight|bias)", r"instance.keypoint.head.deconvolution.\1"),
    ]
    for theirs, ours in (
        (rf"{box}conv", "box.head"),
        (rf"{mask}mask_fcn", "instance.mask.head"),
        (rf"{keypoint}conv_fcn", "instance.keypoint.head"),
    ):
        normed = any(re.fullmatch(rf"{theirs}\d+\.norm\.\w+", name) for name in state)
        step = 3 if normed else 2  # convolution, norm, ReLU
        for i in range(_MOST):
            rules.append((rf"{theirs}{i + 1}\.(weight|bias)", rf"{ours}.convolutions.{step * i}.\1"))
            rules.append((rf"{theirs}{i + 1}\.norm\.(\w+)", rf"{ours}.convolutions.{step * i + 1}.\1"))
    return rules


def _caffe2_names() -> Rules:
    rules = [(r"conv1_w", "backbone.conv1.weight")]
    rules += [(rf"(?:res_)?conv1_(?:{theirs})", f"backbone.bn1.{ours}") for ours, theirs in _CAFFE2_NORM.items()]
    for stage in _STAGES:
        theirs, ours = rf"res{stage}_(\d+)_branch", rf"backbone.layer{stage - 1}.\1."
        for branch, convolution, norm in (
            ("1", "downsample.0", "downsample.1"),
            ("2a", "conv1", "bn1"),
            ("2b", "conv2", "bn2"),
            ("2c", "conv3", "bn3"),
        ):
            rules.append((f"{theirs}{branch}_w", f"{ours}{convolution}.weight"))
            rules += [(f"{theirs}{branch}_(?:{c})", f"{ours}{norm}.{own}") for own, c in _CAFFE2_NORM.items()]
    return rules


def _sort_anchors(renamed: dict[str, Tensor], state: Mapping[str, Tensor], ratios: int) -> None:
    """Put the rows of the RPN's predictors into our order of a cell's anchors, in place."""
    objectness = renamed.get("rpn.head.objectness.weight")
    if objectness is None:
        return
    cells = cell_anchors(state)
    if cells:
        x1, y1, x2, y2 = cells[0].double().unbind(1)
        ratios = len({round(ratio, 3) for ratio in ((y2 - y1) / (x2 - x1)).tolist()})
    order = anchor_order(len(objectness), ratios)
    for name in ("rpn.head.objectness.", "rpn.head.deltas."):
        for kind in ("weight", "bias"):
            rows = renamed.get(name + kind)
            if rows is not None and len(rows) % len(order) == 0:  # else the model, which it does not fit, says so
                renamed[name + kind] = rows.unflatten(0, (len(order), -1))[order].flatten(0, 1)


def _with_statistics(renamed: dict[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the statistics of norms that Caffe2 made into affine maps: with these, a batch norm is one."""
    if not any(name.endswith("_bn_s") for name in state):
        return renamed
    complete: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        complete[name] = tensor
        norm, _, kind = name.rpartition(".")
        if kind == "bias" and norm + ".running_mean" not in renamed:
            complete[norm + ".running_mean"] = torch.zeros_like(tensor)
            complete[norm + ".running_var"] = torch.full_like(tensor, 1 - 1e-5)  # 1 with the epsilon
    return complete
