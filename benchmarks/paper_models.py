"""Parameters and multiply-adds of the paper's models, ours beside torchvision's; nothing is trained, nor takes memory.

    python benchmarks/paper_models.py [--size 800 1344] [--detections 100]

Counted are all parameters (a frozen batch norm has none), and the multiply-adds of convolutions and matrix products, as
torch's flop counter has them (its count halved), for one image in network pixels: backbone, neck, RPN head, the box
head on the model's proposals (300 for C4, else 1000), and the mask or keypoint head on as many detections as are asked
for. In C4 models stage 5 runs on the proposals, and once more on the detections. Pooling, norms, activations and NMS
are not counted.

All models have 90 classes and background, torchvision's 91 rows for COCO (keypoints: one class and background). Its
models are made here, in this process, of its own parts and with frozen norms, as its published weights are; `published`
is what it documents of those. It has rows of box deltas and a mask for the background too: 4,100 parameters, and 257
with masks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection, get_model_weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import toolbox
from toolbox.cli.wiring import rcnn_rows
from toolbox.models.builder import check_wiring
from toolbox.structures import Skeleton

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PEERS = {
    "fasterrcnn": detection.FasterRCNN,
    "maskrcnn": detection.MaskRCNN,
    "keypointrcnn": detection.KeypointRCNN,
}
JOINTS = 17


@dataclass(frozen=True)
class Paper:
    """A model of the paper.

    Attributes:
        name: in the table.
        config: in `configs/`.
        overrides: of it.
        peer: torchvision's model of the same architecture, `maskrcnn_resnet50_fpn`, or of the same parts.
        classes: K.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    peer: str | None = None
    classes: int = 90

    def build(self, *more: str) -> Any:
        """On the meta device, in evaluation."""
        config = toolbox.load_config(CONFIGS / self.config, [*self.overrides, *more])
        names = [str(index) for index in range(self.classes)]
        skeleton = Skeleton(tuple(f"joint {index}" for index in range(JOINTS)))
        return check_wiring(config, classes=names, skeleton=skeleton, weights=False).eval()


DEEP = "model.backbone.depth=101"
MLP = "model.instance.mask.head={type: MLPMaskHead, fully_connected: %d}"
MODELS = (
    Paper("Faster R-CNN R50-FPN", "faster_rcnn_r50_fpn.yaml", (), "fasterrcnn_resnet50_fpn"),
    Paper("Faster R-CNN R101-FPN", "faster_rcnn_r50_fpn.yaml", (DEEP,), "fasterrcnn_resnet101_fpn"),
    Paper("Mask R-CNN R50-C4", "mask_rcnn_r50_c4.yaml"),
    Paper("Mask R-CNN R101-C4", "mask_rcnn_r50_c4.yaml", (DEEP, "model.roi_stage.depth=101")),
    Paper("… R50-C4, softmax", "mask_rcnn_r50_c4.yaml", ("model.instance.mask.head.activation=softmax",)),
    Paper("… R50-C4, class-agnostic", "mask_rcnn_r50_c4.yaml", ("model.instance.mask.head.class_agnostic=true",)),
    Paper("Mask R-CNN R50-C5", "mask_rcnn_r50_c5.yaml"),
    Paper("Mask R-CNN R50-C5 dilated", "mask_rcnn_r50_dc5.yaml"),
    Paper("Mask R-CNN R50-FPN", "mask_rcnn_r50_fpn.yaml", (), "maskrcnn_resnet50_fpn"),
    Paper("… R50-FPN, MLP 2 layers", "mask_rcnn_r50_fpn.yaml", (MLP % 2,)),
    Paper("… R50-FPN, MLP 3 layers", "mask_rcnn_r50_fpn.yaml", (MLP % 3,)),
    Paper("Mask R-CNN R101-FPN", "mask_rcnn_r50_fpn.yaml", (DEEP,), "maskrcnn_resnet101_fpn"),
    *(
        Paper(
            f"Mask R-CNN X101-{groups}x{width}d-FPN",
            "mask_rcnn_r50_fpn.yaml",
            (DEEP, f"model.backbone.groups={groups}", f"model.backbone.width_per_group={width}"),
            f"maskrcnn_resnext101_{groups}x{width}d_fpn",
        )
        for groups, width in ((32, 8), (64, 4))
    ),
    Paper(
        "Keypoint R-CNN R50-FPN", "torchvision/keypoint_rcnn_r50_fpn.yaml", (), "keypointrcnn_resnet50_fpn", classes=1
    ),
    Paper("Faster R-CNN R50-FPN v2", "torchvision/faster_rcnn_r50_fpn_v2.yaml", (), "fasterrcnn_resnet50_fpn_v2"),
    Paper("Mask R-CNN R50-FPN v2", "torchvision/mask_rcnn_r50_fpn_v2.yaml", (), "maskrcnn_resnet50_fpn_v2"),
)


def parameters(model: nn.Module) -> int:
    """All of them, frozen ones too."""
    return sum(parameter.numel() for parameter in model.parameters())


def cost(paper: Paper, height: int, width: int, detections: int) -> int:
    """Multiply-adds of one of our models."""
    rows = rcnn_rows(paper.build(f"test.detections={max(detections, 1)}"), height, width)
    return sum(row.cost or 0 for row in rows if detections or not row.stage.startswith("model.instance."))


def make_peer(name: str, classes: int) -> Any:
    """torchvision's model of this name on the meta device, or one of its parts where it has no such function."""
    kind, _, rest = name.partition("_")
    with torch.device("meta"):
        if name.endswith("_v2"):
            return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes + 1).eval()
        layers = rest.removesuffix("_fpn")
        body = resnet_fpn_backbone(backbone_name=layers, weights=None, norm_layer=FrozenBatchNorm2d)
        return PEERS[kind](body, classes + 1).eval()


def peer_cost(model: Any, height: int, width: int, detections: int, proposals: int = 1000) -> int:
    """Multiply-adds of one of torchvision's models on the meta device, stage by stage as ours."""

    def regions(count: int, size: int) -> Tensor:
        return torch.empty(count, model.backbone.out_channels, size, size, device="meta")

    heads = model.roi_heads
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps: Mapping[str, Tensor] = model.backbone(torch.empty(1, 3, height, width, device="meta"))
        model.rpn.head(list(maps.values()))
        heads.box_predictor(heads.box_head(regions(proposals, heads.box_roi_pool.output_size[0])))
        for branch in ("mask", "keypoint"):
            if detections and getattr(heads, f"has_{branch}")():
                head, predictor = getattr(heads, f"{branch}_head"), getattr(heads, f"{branch}_predictor")
                predictor(head(regions(detections, getattr(heads, f"{branch}_roi_pool").output_size[0])))
    return counter.get_total_flops() // 2


def published(name: str) -> Mapping[str, Any]:
    """What torchvision documents of its weights: `num_params`, and `_ops` in billions; empty where there are none."""
    try:
        return get_model_weights(name).DEFAULT.meta
    except ValueError:
        return {}


def table(height: int, width: int, detections: int) -> list[str]:
    """The table in markdown."""
    lines = [
        "| model | parameters | torchvision's | published | multiply-adds | torchvision's | proposals |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for paper in MODELS:
        model = paper.build()
        peer = make_peer(paper.peer, paper.classes) if paper.peer else None
        known = published(paper.peer).get("num_params") if paper.peer else None
        cells = [
            paper.name,
            f"{parameters(model):,}",
            "" if peer is None else f"{parameters(peer):,}",
            "" if known is None else f"{known:,}",
            f"{cost(paper, height, width, detections) / 1e9:.1f} G",
            "" if peer is None else f"{peer_cost(peer, height, width, detections) / 1e9:.1f} G",
            str(model.rpn.test_counts.after_nms),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--detections", type=int, default=100)
    chosen = parser.parse_args(arguments)
    print("\n".join(table(*chosen.size, chosen.detections)))
    print(f"\none image of {chosen.size[0]} × {chosen.size[1]} pixels, {chosen.detections} detections")


if __name__ == "__main__":
    main()
