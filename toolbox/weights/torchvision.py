"""torchvision's ResNet-FPN detectors: their tensors under our names, and back."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from toolbox.errors import CheckpointError

_LEVELS, _CONVOLUTIONS = 4, 16  # as many as are numbered below
# Names that torchvision's own loader takes for older ones (before 0.13); its first published files have them.
_OLD_NAMES = (
    (re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)"), r"backbone.fpn.\1_blocks.\2.0.\3"),
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
)
_OLD_MASK_NAME = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)")
# Sign of another origin (a name's beginning) → what it is, and what to do.
_OTHERS = {
    "box.head.": "this is a model of this toolbox already; rcnn predict and rcnn eval read it as it is",
    "backbone.bottom_up.": "this is a model of Detectron2; say --from detectron2",
    "roi_heads.box_predictor.cls_score.": "its backbone is no ResNet of torchvision",
    "bbox_head.": "this is a one-stage detector of MMDetection, not an R-CNN",
    "roi_head.": "this is a model of MMDetection; say --from mmdetection",
    "head.classification_head.": "this is a one-stage detector (RetinaNet, FCOS, SSD), not an R-CNN",
    "fc.": "this is a classifier; give it as the backbone's weights: model.backbone.weights=FILE",
}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of fasterrcnn_, maskrcnn_ or keypointrcnn_resnet50_fpn, or of a `_v2`, and move background.

    Args:
        state: `model.state_dict()` of torchvision with K + 1 classes, background first; of any version of torchvision,
            and also one of `DistributedDataParallel`.

    Returns:
        Name → tensor of our model with K classes, in their order. What torchvision has for the box and the mask of the
        background, which nothing reads, is left out.

    Raises:
        CheckpointError: a tensor has no counterpart here.
    """
    state = _current_names(state)
    prefixes = _prefixes(state, theirs=True)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix = _prefix_of(name, prefixes)
        if prefix is None:
            raise CheckpointError(_unknown(name, state))
        renamed[prefixes[prefix] + name.removeprefix(prefix)] = tensor
    for own, tensor in renamed.items():
        if own.startswith("box.head.predictor.logits."):
            renamed[own] = torch.cat((tensor[1:], tensor[:1]))
        elif own.startswith("box.head.predictor.deltas."):
            renamed[own] = tensor[4:]
        elif own.startswith("instance.mask.head.predictor."):
            renamed[own] = tensor[1:]
    return renamed


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name our tensors as torchvision does, and move background from last to first.

    Args:
        state: of our model with K classes.

    Returns:
        A state dict for torchvision's model with K + 1 classes. The rows of the background's box and mask, which ours
        lacks and torchvision's never reads, are zero. Class-agnostic boxes and masks are repeated for every class.

    Raises:
        CheckpointError: a tensor has no counterpart there.
    """
    theirs_to_ours = _prefixes(state, theirs=False)
    prefixes = {own: name for name, own in theirs_to_ours.items()}
    logits = state.get("box.head.predictor.logits.bias")
    classes = 0 if logits is None else len(logits) - 1
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix = _prefix_of(name, prefixes)
        if prefix is None:
            raise CheckpointError(
                f"'{name}' has no counterpart in torchvision's detectors; they are ResNet, FPN, convolutional RPN and "
                "the heads of Faster, Mask and Keypoint R-CNN"
            )
        if name.startswith("box.head.predictor.logits."):
            tensor = torch.cat((tensor[-1:], tensor[:-1]))
        elif name.startswith("box.head.predictor.deltas."):
            tensor = _with_background(tensor, 4 * classes, 4)
        elif name.startswith("instance.mask.head.predictor."):
            tensor = _with_background(tensor, classes, 1)
        renamed[prefixes[prefix] + name.removeprefix(prefix)] = tensor
    return renamed


def model_name(state: Mapping[str, Tensor]) -> str:
    """What torchvision calls the model of a state dict, as far as names tell, e.g. maskrcnn_resnet50_fpn_v2."""
    names = _current_names(state).keys()
    kind = next((kind for kind in ("keypoint", "mask") if f"roi_heads.{kind}_predictor." in " ".join(names)), "faster")
    blocks = len({name.split(".")[3] for name in names if name.startswith("backbone.body.layer3.")})
    depth = {2: 18, 6: 50, 23: 101, 36: 152}.get(blocks, "?")
    second = "backbone.fpn.inner_blocks.0.1.weight" in names
    return f"{kind}rcnn_resnet{depth}_fpn{'_v2' if second else ''}"


def _prefixes(names: Collection[str], *, theirs: bool) -> dict[str, str]:
    """Prefix there → prefix here. Layers in a sequence are numbered by what else stands in it: a norm, a ReLU.

    Args:
        names: of the tensors.
        theirs: whether those are torchvision's names or ours.
    """
    box, mask = ("roi_heads.box_head", "roi_heads.mask_head") if theirs else ("box.head", "instance.mask.head")
    norm = ".0.1.weight" if theirs else ".convolutions.1.weight"
    box_step, mask_step = (3 if head + norm in names else 2 for head in (box, mask))
    pattern = re.compile(
        r"roi_heads\.box_head\.(\d+)\.0\.weight" if theirs else r"box\.head\.convolutions\.(\d+)\.weight"
    )
    found = [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
    convolutions = len(found) if theirs else len([index for index in found if index % box_step == 0])
    return {
        "backbone.body.": "backbone.",
        **{f"backbone.fpn.inner_blocks.{i}.": f"neck.lateral.c{i + 2}." for i in range(_LEVELS)},
        **{f"backbone.fpn.layer_blocks.{i}.": f"neck.output.p{i + 2}." for i in range(_LEVELS)},
        **{f"rpn.head.conv.{i}.0.": f"rpn.head.convolutions.{2 * i}." for i in range(_CONVOLUTIONS)},
        "rpn.head.cls_logits.": "rpn.head.objectness.",
        "rpn.head.bbox_pred.": "rpn.head.deltas.",
        **_box_head(convolutions, box_step),
        "roi_heads.box_predictor.cls_score.": "box.head.predictor.logits.",
        "roi_heads.box_predictor.bbox_pred.": "box.head.predictor.deltas.",
        **_blocks("roi_heads.mask_head.", "instance.mask.head.convolutions.", _CONVOLUTIONS, mask_step),
        "roi_heads.mask_predictor.conv5_mask.": "instance.mask.head.upsample.0.",
        "roi_heads.mask_predictor.mask_fcn_logits.": "instance.mask.head.predictor.",
        "roi_heads.keypoint_head.": "instance.keypoint.head.convolutions.",
        "roi_heads.keypoint_predictor.kps_score_lowres.": "instance.keypoint.head.deconvolution.",
    }


def _box_head(convolutions: int, step: int) -> dict[str, str]:
    """Two fully connected layers, or, where there are convolutions, those and fully connected layers behind them."""
    if convolutions == 0:
        return {"roi_heads.box_head.fc6.": "box.head.hidden.0.", "roi_heads.box_head.fc7.": "box.head.hidden.2."}
    # A flattening stands between; from there on, both number a linear layer and its ReLU.
    linear = {
        f"roi_heads.box_head.{convolutions + 1 + 2 * i}.": f"box.head.hidden.{2 * i}." for i in range(_CONVOLUTIONS)
    }
    return _blocks("roi_heads.box_head.", "box.head.convolutions.", convolutions, step) | linear


def _blocks(there: str, here: str, count: int, step: int) -> dict[str, str]:
    """Blocks of convolution, norm (if step is 3) and ReLU, nested there and in one sequence here."""
    return {f"{there}{i}.{layer}.": f"{here}{step * i + layer}." for i in range(count) for layer in range(step - 1)}


def _prefix_of(name: str, prefixes: Collection[str]) -> str | None:
    return next((prefix for prefix in prefixes if name.startswith(prefix)), None)


def _current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of today's torchvision."""
    current = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        for pattern, replacement in _OLD_NAMES:
            name = pattern.sub(replacement, name) if pattern.fullmatch(name) else name
        if old := _OLD_MASK_NAME.fullmatch(name):
            name = f"roi_heads.mask_head.{int(old[1]) - 1}.0.{old[2]}"
        current[name] = tensor
    return current


def _with_background(tensor: Tensor, rows: int, each: int) -> Tensor:
    """Rows of K classes, or of one for all of them → of K + 1 classes, those of the background (first) zero."""
    tensor = tensor.repeat(rows // len(tensor), *[1] * (tensor.dim() - 1))
    return torch.cat((tensor.new_zeros(each, *tensor.shape[1:]), tensor))


def _unknown(name: str, state: Mapping[str, Tensor]) -> str:
    """What a state dict with a tensor that has no place here is."""
    told = "only the ResNet-FPN detectors of torchvision are known (Faster, Mask and Keypoint R-CNN, and their _v2)"
    if not any(known.startswith("backbone.body.layer1.") for known in state):
        for beginning, other in _OTHERS.items():
            if any(known.startswith(beginning) for known in state):
                told = other
                break
    return f"torchvision's R-CNNs have no tensor '{name}'; {told}"
