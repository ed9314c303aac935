"""State dicts of Detectron2 and MMDetection with their real names and shapes, on the meta device (no memory)."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
FROZEN = ("weight", "bias", "running_mean", "running_var")


class Names:
    """Collects tensors by name."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def add(self, name: str, *shape: int) -> None:
        self.state[name] = torch.empty(shape, device="meta")

    def layer(self, name: str, *shape: int, outputs: int | None = None) -> None:
        """A convolution or linear layer with bias."""
        self.add(f"{name}.weight", *shape)
        self.add(f"{name}.bias", shape[0] if outputs is None else outputs)

    def norm(self, name: str, channels: int) -> None:
        for kind in FROZEN:
            self.add(f"{name}.{kind}", channels)

    def stage(self, prefix: str, stage: int, *, depth: int, groups: int = 1, width: int = 64, detectron2: bool) -> None:
        """A stage of bottlenecks: stage 2 … 5."""
        norm = "conv{}.norm" if detectron2 else "bn{}"
        convolution, shortcut_norm = ("shortcut", "shortcut.norm") if detectron2 else ("downsample.0", "downsample.1")
        out = 64 * 2**stage
        inner = groups * width * 2 ** (stage - 2)
        for block in range(BLOCKS[depth][stage - 2]):
            into = out if block else (64 if stage == 2 else out // 2)
            name = f"{prefix}.{block}"
            shapes = ((inner, into, 1, 1), (inner, inner // groups, 3, 3), (out, inner, 1, 1))
            for index, shape in enumerate(shapes, start=1):
                self.add(f"{name}.conv{index}.weight", *shape)
                self.norm(f"{name}.{norm.format(index)}", shape[0])
            if block == 0:
                self.add(f"{name}.{convolution}.weight", out, into, 1, 1)
                self.norm(f"{name}.{shortcut_norm}", out)


def detectron2_state(
    kind: str, classes: int, *, depth: int = 50, groups: int = 1, width: int = 64
) -> dict[str, Tensor]:
    """Of its model zoo; `kind` is fpn, c4 or dc5, or keypoint (with FPN)."""
    names = Names()
    pyramid = kind in ("fpn", "keypoint")
    body = "backbone.bottom_up" if pyramid else "backbone"
    names.add(f"{body}.stem.conv1.weight", 64, 3, 7, 7)
    names.norm(f"{body}.stem.conv1.norm", 64)
    for stage in range(2, 5 if kind == "c4" else 6):
        names.stage(f"{body}.res{stage}", stage, depth=depth, groups=groups, width=width, detectron2=True)
    maps, anchors = {"c4": (1024, 15), "dc5": (2048, 15)}.get(kind, (256, 3))
    if pyramid:
        for stage in range(2, 6):
            names.layer(f"backbone.fpn_lateral{stage}", 256, 64 * 2**stage, 1, 1)
            names.layer(f"backbone.fpn_output{stage}", 256, 256, 3, 3)
    names.layer("proposal_generator.rpn_head.conv", maps, maps, 3, 3)
    names.layer("proposal_generator.rpn_head.objectness_logits", anchors, maps, 1, 1)
    names.layer("proposal_generator.rpn_head.anchor_deltas", 4 * anchors, maps, 1, 1)
    if kind == "c4":
        names.stage("roi_heads.res5", 5, depth=depth, groups=groups, width=width, detectron2=True)
    else:
        names.layer("roi_heads.box_head.fc1", 1024, maps * 49)
        names.layer("roi_heads.box_head.fc2", 1024, 1024)
    hidden = 2048 if kind == "c4" else 1024
    names.layer("roi_heads.box_predictor.cls_score", classes + 1, hidden)
    names.layer("roi_heads.box_predictor.bbox_pred", 4 * classes, hidden)
    if kind == "keypoint":
        for index in range(8):
            names.layer(f"roi_heads.keypoint_head.conv_fcn{index + 1}", 512, 512 if index else 256, 3, 3)
        names.layer("roi_heads.keypoint_head.score_lowres", 512, 17, 4, 4, outputs=17)
        return names.state
    for index in range(0 if kind == "c4" else 4):
        names.layer(f"roi_heads.mask_head.mask_fcn{index + 1}", 256, 256 if index else maps, 3, 3)
    names.layer("roi_heads.mask_head.deconv", 2048 if kind == "c4" else 256, 256, 2, 2, outputs=256)
    names.layer("roi_heads.mask_head.predictor", classes, 256, 1, 1)
    return names.state


def mmdetection_state(kind: str, classes: int) -> dict[str, Tensor]:
    """Of versions 2 and 3, ResNet-50; `kind` is fpn, or c4 (its configs end in caffe-c4)."""
    names = Names()
    names.add("backbone.conv1.weight", 64, 3, 7, 7)
    names.norm("backbone.bn1", 64)
    for stage in range(2, 5 if kind == "c4" else 6):
        names.stage(f"backbone.layer{stage - 1}", stage, depth=50, detectron2=False)
    for name in [name for name in names.state if name.endswith("running_var")]:
        names.add(name.replace("running_var", "num_batches_tracked"))
    maps, anchors, hidden = (1024, 15, 2048) if kind == "c4" else (256, 3, 1024)
    if kind == "fpn":
        for index in range(4):
            names.layer(f"neck.lateral_convs.{index}.conv", 256, 256 * 2**index, 1, 1)
            names.layer(f"neck.fpn_convs.{index}.conv", 256, 256, 3, 3)
    names.layer("rpn_head.rpn_conv", maps, maps, 3, 3)
    names.layer("rpn_head.rpn_cls", anchors, maps, 1, 1)
    names.layer("rpn_head.rpn_reg", 4 * anchors, maps, 1, 1)
    if kind == "c4":
        names.stage("roi_head.shared_head.layer4", 5, depth=50, detectron2=False)
    names.layer("roi_head.bbox_head.fc_cls", classes + 1, hidden)
    names.layer("roi_head.bbox_head.fc_reg", 4 * classes, hidden)
    if kind == "fpn":
        names.layer("roi_head.bbox_head.shared_fcs.0", 1024, 256 * 49)
        names.layer("roi_head.bbox_head.shared_fcs.1", 1024, 1024)
        for index in range(4):
            names.layer(f"roi_head.mask_head.convs.{index}.conv", 256, 256, 3, 3)
    names.layer("roi_head.mask_head.upsample", 2048 if kind == "c4" else 256, 256, 2, 2, outputs=256)
    names.layer("roi_head.mask_head.conv_logits", classes, 256, 1, 1)
    return names.state
