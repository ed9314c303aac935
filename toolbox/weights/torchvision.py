"""torchvision's detection weights under our names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Prefix there → prefix here; the FPN levels and the mask convolutions are numbered differently.
PREFIXES = {
    "backbone.body.": "backbone.",
    **{f"backbone.fpn.inner_blocks.{i}.": f"neck.lateral.c{i + 2}." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.": f"neck.output.p{i + 2}." for i in range(4)},
    "rpn.head.conv.0.0.": "rpn.head.convolutions.0.",
    "rpn.head.cls_logits.": "rpn.head.objectness.",
    "rpn.head.bbox_pred.": "rpn.head.deltas.",
    "roi_heads.box_head.fc6.": "box.head.hidden.0.",
    "roi_heads.box_head.fc7.": "box.head.hidden.2.",
    "roi_heads.box_predictor.cls_score.": "box.head.predictor.logits.",
    "roi_heads.box_predictor.bbox_pred.": "box.head.predictor.deltas.",
    **{f"roi_heads.mask_head.{i}.0.": f"instance.mask.head.convolutions.{2 * i}." for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask.": "instance.mask.head.upsample.0.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "instance.mask.head.predictor.",
}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of fasterrcnn_resnet50_fpn or maskrcnn_resnet50_fpn, and move background from first to last.

    Args:
        state: `model.state_dict()` of torchvision, K + 1 classes with background 0.

    Returns:
        The state dict of our model with K classes.

    Raises:
        KeyError: a tensor has no counterpart here.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            raise KeyError(f"torchvision's '{name}' has no counterpart; only the ResNet-FPN models are known")
        own = PREFIXES[prefix] + name.removeprefix(prefix)
        if own.startswith("box.head.predictor.logits."):
            tensor = torch.cat((tensor[1:], tensor[:1]))
        elif own.startswith("box.head.predictor.deltas."):
            tensor = tensor[4:]
        elif own.startswith("instance.mask.head.predictor."):
            tensor = tensor[1:]
        renamed[own] = tensor
    return renamed
